"""What `matryoshka.qdrant` asks of an engine, in the JSON of Qdrant's REST API: one in this process, or a server."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from matryoshka import _checks
from matryoshka._optional import require

_CHECKSUM = "crc32"
"""Name of the payload by which a second upload knows a row that is there."""

_PAGE = 10_000
"""Rows whose checksums are read at once."""

_LONGEST_REASON = 300

Json = dict[str, Any]
Vectors = dict[str, list[float]]
"""Of one row, or one query, the vector of each name."""

Found = list[list[tuple[Any, float]]]
"""For each query the ids and scores that an engine found."""


def engine(client_or_path: Any, name: Any) -> Edge | Server:
    """Return the engine of a folder or of a client; a folder that is open here is shared."""
    if not _checks.text(name, "name").isprintable() or Path(name).name != name or name in ("", ".."):
        msg = f"`name` must be the name of a collection, got {_checks.describe(name)}; pass for instance 'items'."
        raise ValueError(msg)
    client = getattr(sys.modules.get("qdrant_client"), "QdrantClient", None)
    if client is not None and isinstance(client_or_path, client):
        return Server(client_or_path, name)
    path = os.fspath(client_or_path) if isinstance(client_or_path, os.PathLike) else client_or_path
    if not isinstance(path, str) or "\0" in path:
        got = _checks.describe(client_or_path)
        msg = f"`client_or_path` must be a folder or a QdrantClient, got {got}; pass a path or QdrantClient(url)."
        raise TypeError(msg)
    if "://" in path:  # which may hold a password
        msg = "`client_or_path` must be a folder or a QdrantClient, got a URL; pass QdrantClient(url)."
        raise ValueError(msg)
    folder = Path(path, name).resolve()
    return _OPEN.setdefault(folder, Edge(folder))


class Edge:
    """A collection in a folder, with the engine in this process."""

    _shard: Any = None

    def __init__(self, folder: Path) -> None:
        self._edge = require("qdrant_edge", extra="qdrant", purpose="`matryoshka.qdrant` on a folder")
        self._folder, self.address = folder, str(folder)

    @property
    def client(self) -> Any:
        """The shard, opened when it is first needed."""
        if self._shard is None:
            self._shard = self._asked(self._edge.EdgeShard.load, self.address)
        return self._shard

    def vectors(self) -> dict[str, Json] | None:
        """Read the named vectors from the file in which the engine keeps them."""
        file = self._folder / "edge_config.json"
        try:
            return dict(json.loads(file.read_bytes())["vectors"]) if file.exists() else None
        except (OSError, ValueError, KeyError, TypeError) as error:
            msg = f"`name` must be a collection of the engine, got at {self.address} what cannot be read; look there."
            raise ValueError(msg) from error

    def create(self, vectors: dict[str, Json]) -> None:
        """Make folder and collection; with so small a threshold `finish` indexes all of it."""
        edge = self._edge
        params = {
            name: edge.EdgeVectorParams(
                size=vector["size"],
                distance=getattr(edge.Distance, vector["distance"]),
                on_disk=vector["on_disk"],
                hnsw_config=edge.HnswIndexConfig(**vector["hnsw_config"]),
                quantization_config=(bits := vector["quantization_config"])
                and edge.BinaryQuantizationConfig(**bits["binary"]),
            )
            for name, vector in vectors.items()
        }
        config = edge.EdgeConfig(vectors=params, optimizers=edge.EdgeOptimizersConfig(indexing_threshold=1))
        self._asked(self._folder.parent.mkdir, parents=True, exist_ok=True)
        self._shard = self._asked(edge.EdgeShard.create, self.address, config)

    def count(self) -> int:
        """Count rows."""
        return int(self._asked(self.client.count, self._edge.CountRequest(exact=True)))

    def checksums(self) -> Iterator[tuple[Any, Any]]:
        """Read ids and checksums page by page."""

        def scroll(offset: Any) -> Any:
            page = self._edge.ScrollRequest(offset=offset, limit=_PAGE, with_payload=True, with_vector=False)
            return self._asked(self.client.scroll, page)

        return _of_pages(scroll)

    def upsert(self, ids: list[int], vectors: list[Vectors], checksums: list[int]) -> None:
        """Write rows to the log of the engine, where they outlive this process."""
        rows = zip(ids, vectors, checksums, strict=True)
        points = [self._edge.Point(i, row, {_CHECKSUM: checksum}) for i, row, checksum in rows]
        self._asked(self.client.update, self._edge.UpdateOperation.upsert_points(points))

    def finish(self) -> None:
        """Flush to the disk, build indexes."""
        self._asked(self.client.flush)
        self._asked(self.client.optimize)

    def close(self) -> None:
        """Close the shard, until it is needed again."""
        if self._shard is not None:
            self._asked(self._shard.close)
            self._shard = None

    def query(self, requests: list[Json]) -> Found:
        """Run a batch of queries."""
        batch = self._edge.QueryBatchRequest([self._stage(self._edge.QueryRequest, request) for request in requests])
        return [[(point.id, point.score) for point in found] for found in self._asked(self.client.query_batch, batch)]

    def _stage(self, kind: Any, stage: Json) -> Any:
        """Translate a request, and the stages before it."""
        edge, params = self._edge, stage["params"]
        quantization = edge.QuantizationSearchParams(**params["quantization"])
        ids = stage["filter"] and edge.HasIdCondition(set(stage["filter"]["must"][0]["has_id"]))
        return kind(
            limit=stage["limit"],
            query=edge.Query.Nearest(stage["query"], using=stage["using"]),
            prefetches=[self._stage(edge.Prefetch, before) for before in stage["prefetch"]],
            params=edge.SearchParams(exact=params["exact"], quantization=quantization),
            filter=ids and edge.Filter(must=[ids]),
        )

    def _asked(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Turn an error of the engine, which has no kind of its own, into one that names the folder."""
        try:
            return function(*args, **options)
        except Exception as error:
            if type(error) is not Exception and not isinstance(error, OSError):
                raise
            raise _lost(self.address, error, "look there, and whether another process has it open") from error


_OPEN: WeakValueDictionary[Path, Edge] = WeakValueDictionary()
"""Folders that are open in this process: a second look at one is not kept out by the first."""


class Server:
    """A collection on a server, reached by a client of the user's."""

    def __init__(self, client: Any, name: str) -> None:
        self.client, self._name = client, name
        self._models = importlib.import_module("qdrant_client.models")  # installed, with the client
        of_rest = importlib.import_module("qdrant_client.http.exceptions")
        of_client = importlib.import_module("qdrant_client.common.client_exceptions")
        self._refused = of_rest.UnexpectedResponse
        self._failed = (of_rest.ApiException, of_client.QdrantException, importlib.import_module("grpc").RpcError)
        options = client.init_options
        at = options["url"] or options["location"] or options["path"]
        at = at or f"{options['host'] or 'localhost'}:{options['port']}"
        self.address = f"{at.rpartition('@')[2]}, collection {name!r}"

    def vectors(self) -> dict[str, Json] | None:
        """Ask for the named vectors."""
        if not self._asked(self.client.collection_exists):
            return None
        found = self._asked(self.client.get_collection).config.params.vectors
        found = found if isinstance(found, dict) else {"": found}
        return {name: vector.model_dump(mode="json") for name, vector in found.items()}

    def create(self, vectors: dict[str, Json]) -> None:
        """Make the collection."""
        params = {name: self._models.VectorParams(**vector) for name, vector in vectors.items()}
        self._asked(self.client.create_collection, vectors_config=params)

    def count(self) -> int:
        """Count rows."""
        return int(self._asked(self.client.count, exact=True).count)

    def checksums(self) -> Iterator[tuple[Any, Any]]:
        """Read ids and checksums page by page."""
        options = {"limit": _PAGE, "with_payload": [_CHECKSUM]}
        return _of_pages(lambda offset: self._asked(self.client.scroll, offset=offset, **options))

    def upsert(self, ids: list[int], vectors: list[Vectors], checksums: list[int]) -> None:
        """Send rows and wait until they are applied."""
        columns = {name: [row[name] for row in vectors] for name in vectors[0]}
        payloads = [{_CHECKSUM: checksum} for checksum in checksums]
        batch = self._models.Batch(ids=ids, vectors=columns, payloads=payloads)
        self._asked(self.client.upsert, points=batch, wait=True)

    def finish(self) -> None:
        """Do nothing: the server builds indexes in the background."""

    def close(self) -> None:
        """Do nothing: the client belongs to the user."""

    def query(self, requests: list[Json]) -> Found:
        """Run a batch of queries."""
        batch = [self._models.QueryRequest(**request) for request in requests]
        found = self._asked(self.client.query_batch_points, requests=batch)
        return [[(point.id, point.score) for point in answer.points] for answer in found]

    def _asked(self, method: Callable[..., Any], **options: Any) -> Any:
        """Turn an error of the server into one that names the address."""
        try:
            return method(self._name, **options)
        except self._refused as error:
            reason = _short(error)
            msg = f"`client_or_path` must lead to a server that agrees, got from {self.address}: {reason}; look there."
            raise ValueError(msg) from error
        except self._failed as error:
            raise _lost(self.address, error, "look there") from error


def _of_pages(scroll: Callable[[Any], tuple[Iterable[Any], Any]]) -> Iterator[tuple[Any, Any]]:
    """Give the id and the checksum of each row of the pages that `scroll` gives, each from an offset to the next."""
    offset: Any = 0
    while offset is not None:
        records, offset = scroll(offset)
        yield from ((record.id, (record.payload or {}).get(_CHECKSUM)) for record in records)


def _lost(address: str, error: Exception, remedy: str) -> ConnectionError:
    rule = "`client_or_path` must lead to an engine that answers"
    return ConnectionError(f"{rule}, got from {address}: {_short(error)}; {remedy}.")


def _short(error: Exception) -> str:
    """Return what an error says, on one line; one of gRPC has the words apart."""
    text = str(error.details()) if hasattr(error, "details") else str(error)
    return " ".join(text.split())[:_LONGEST_REASON] or type(error).__name__
