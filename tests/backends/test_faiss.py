"""matryoshka.faiss: any index before a funnel, with the results of our own corpus where the index is exact."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import load

faiss = load("faiss")

from matryoshka import Corpus, Funnel, Searchable, metrics  # noqa: E402 (faiss decides whether there is anything to test)
from matryoshka._threads import n_threads  # noqa: E402
from matryoshka.faiss import FaissCorpus  # noqa: E402

PLAN = Funnel((6, 12, 24), (60, 20))
METRICS = ["cosine", "ip", "l2"]


@pytest.fixture
def rows(rng: np.random.Generator) -> np.ndarray:
    lengths = rng.uniform(0.5, 2.0, size=(400, 1))
    return (rng.normal(size=(400, 24)) * 0.85 ** np.arange(24) * lengths).astype(np.float32)


@pytest.fixture
def queries(rng: np.random.Generator) -> np.ndarray:
    return (rng.normal(size=(7, 24)) * 0.85 ** np.arange(24)).astype(np.float32)


def same(left: tuple[Any, Any], right: tuple[Any, Any]) -> None:
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def agree(left: tuple[Any, Any], right: tuple[Any, Any]) -> None:
    """Compare with a search whose first stage leaves products behind: these sums are formed in another order."""
    np.testing.assert_allclose(np.asarray(left[0]), np.asarray(right[0]), rtol=3e-6, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(left[1]), np.asarray(right[1]))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("text", ["Flat", "IDMap,Flat"])
def test_an_exact_index_gives_what_the_corpus_gives(
    rows: np.ndarray, queries: np.ndarray, metric: str, text: str
) -> None:
    corpus = Corpus(rows, metric=metric)
    indexed = FaissCorpus(corpus, text, dim=6)
    for plan in (PLAN, Funnel((6, 24), (60,)), Funnel((6,), ())):
        agree(indexed.search(queries, 9, funnel=plan), corpus.search(queries, 9, funnel=plan))
    agree(indexed.search(queries, 9), corpus.search(queries, 9))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("text", "parameters"),
    [
        ("HNSW16", "efSearch=80"),
        ("IVF8,Flat", "nprobe=8"),
        ("IVF4,PQ3x4", "nprobe=4"),
        ("SQ8", ""),
        ("SQ4", ""),
        ("IVF4,SQ8", "nprobe=4"),
        ("PCA6,Flat", ""),
    ],
)
def test_any_index_finds_candidates(
    rows: np.ndarray, queries: np.ndarray, metric: str, text: str, parameters: str
) -> None:
    corpus = Corpus(rows, metric=metric)
    indexed = FaissCorpus(corpus, text, dim=12, parameters=parameters)
    plan = Funnel((12, 24), (120,))
    scores, ids = indexed.search(queries, 5, funnel=plan)
    exact_scores, exact_ids = corpus.search(queries, 5)
    assert metrics.overlap_at_k(ids, exact_ids, 5) > 0.9
    found = ids[:, 0] == exact_ids[:, 0]
    np.testing.assert_allclose(scores[found, 0], exact_scores[found, 0], rtol=3e-6)  # from the rows, not from codes


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("text", "parameters"), [("Flat", ""), ("IVF8,Flat", "nprobe=8"), ("SQ4", ""), ("BFlat", "")])
def test_a_funnel_that_drops_nothing_is_exact(
    rows: np.ndarray, queries: np.ndarray, metric: str, text: str, parameters: str
) -> None:
    """Whatever the index thinks of the order."""
    corpus = Corpus(coded(rows), metric=metric)
    indexed = FaissCorpus(corpus, text, dim=8, parameters=parameters)
    for dims in ((8, 24), (8, 8, 24), (8, 9, 23, 24)):
        if dims[1] == 8 and indexed.codes == ("float",):
            continue
        plan = Funnel(dims, [400] * (len(dims) - 1), code=indexed.codes[0])
        agree(indexed.search(queries, 400, funnel=plan), corpus.search(queries, 400))


@pytest.mark.parametrize("metric", METRICS)
def test_an_index_that_is_full_is_taken_as_it_is(rows: np.ndarray, queries: np.ndarray, metric: str) -> None:
    prefixes = np.ascontiguousarray(rows[:, :6])
    if metric == "cosine":
        faiss.normalize_L2(prefixes)
    index = faiss.IndexFlatIP(6) if metric == "ip" else faiss.IndexFlatL2(6)
    index.add(prefixes)
    indexed = FaissCorpus(Corpus(rows, metric=metric), index)
    assert indexed.index is index
    assert index.ntotal == 400
    agree(indexed.search(queries, 9, funnel=PLAN), Corpus(rows, metric=metric).search(queries, 9, funnel=PLAN))


def test_a_plain_cut_is_exact_whatever_the_index_misses(rows: np.ndarray, queries: np.ndarray) -> None:
    corpus = Corpus(rows)
    indexed = FaissCorpus(corpus, "IVF50,Flat", dim=6)  # one list of 50: about eight rows
    for dim in (6, 9, 24):
        same(indexed.search(queries, 20, dim=dim), Corpus(rows).search(queries, 20, funnel=Funnel((dim,))))
    assert (indexed.search(queries, 20, funnel=Funnel((6,)))[1] == -1).any()
    with pytest.raises(TypeError, match="at most one of `dim` and `funnel` may be given, got both"):
        indexed.search(queries, 3, dim=6, funnel=PLAN)
    with pytest.raises(ValueError, match=r"`dim` must be an integer in \[1, 24\], got 25"):
        indexed.search(queries, 3, dim=25)


def test_an_empty_index_is_trained_and_filled(rows: np.ndarray, queries: np.ndarray) -> None:
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(6), 6, 4, faiss.METRIC_INNER_PRODUCT)
    indexed = FaissCorpus(Corpus(rows), index)
    assert index.is_trained
    assert index.ntotal == 400
    index.nprobe = 4
    agree(indexed.search(queries, 9, funnel=PLAN), Corpus(rows).search(queries, 9, funnel=PLAN))


def test_missing_candidates_are_padding(rows: np.ndarray, queries: np.ndarray) -> None:
    indexed = FaissCorpus(Corpus(rows[:100]), "IVF50,Flat", dim=6)  # one list of 50: about two rows
    scores, ids = indexed.search(queries, 20, funnel=PLAN)
    assert ids.shape == (7, 20)
    missing = ids == -1
    assert missing.any(axis=1).all()
    np.testing.assert_array_equal(missing, scores == -np.inf)
    np.testing.assert_array_equal(np.sort(missing, axis=1), missing)  # behind what was found


def test_more_results_than_rows(rows: np.ndarray, queries: np.ndarray) -> None:
    corpus = Corpus(rows[:5])
    for plan in (PLAN, Funnel((6,), ())):
        found = FaissCorpus(corpus, "Flat", dim=6).search(queries, 8, funnel=plan)
        agree(found, corpus.search(queries, 8, funnel=plan))
        assert (found[1][:, 5:] == -1).all()


def test_a_certificate_on_an_index(rng: np.random.Generator) -> None:
    rows, queries = ((rng.normal(size=(n, 24)) * 0.8 ** np.arange(24)).astype(np.float32) for n in (900, 400))
    corpus = Corpus(rows)
    exact = FaissCorpus(corpus, "Flat", dim=6)
    plan = Funnel.calibrate(exact, queries, 5, recall=0.9, dims=(6, 12, 24), cost="multiply_adds")
    alone = Funnel.calibrate(corpus, queries, 5, recall=0.9, dims=(6, 12, 24), cost="multiply_adds")
    assert plan.keep
    assert plan.dims[0] == 6
    assert (plan, plan.certificate) == (alone, alone.certificate)
    found, expected = exact.search(queries, 5, funnel=plan)[1], corpus.search(queries, 5)[1]
    assert metrics.overlap_at_k(found, expected, 5) > 0.9
    blind = FaissCorpus(corpus, "IVF300,Flat", dim=6)  # which looks into one list of 300
    refused = Funnel.calibrate(blind, queries, 5, recall=0.9, cost="multiply_adds")
    assert refused == Funnel((24,), ())
    assert refused.certificate is not None
    assert refused.certificate.chosen is None
    same(blind.search(queries, 5, funnel=refused), corpus.search(queries, 5))
    points = Funnel.pareto(exact, queries, 5, cost="multiply_adds")
    assert {point.funnel.dims[0] for point in points} == {6, 24}


def test_an_index_of_the_full_width_has_no_funnel_to_certify(rows: np.ndarray, queries: np.ndarray) -> None:
    for dims in (None, (24,), (12, 24)):
        with pytest.raises(
            ValueError, match=r"`corpus` must start funnels below its full width of 24 only, got \(24,\)"
        ):
            Funnel.calibrate(FaissCorpus(Corpus(rows), "Flat"), queries, 5, dims=dims)


@pytest.mark.parametrize("size", [1e100, 1e-60])
def test_numbers_beyond_float32_are_refused(rows: np.ndarray, queries: np.ndarray, size: float) -> None:
    with pytest.raises(ValueError, match="`embeddings` must hold numbers within .* since faiss computes in float32"):
        FaissCorpus(Corpus(rows.astype(np.float64) * size, metric="ip"), "Flat", dim=6)
    indexed = FaissCorpus(Corpus(rows.astype(np.float64), metric="ip"), "Flat", dim=6)
    with pytest.raises(ValueError, match="`queries` must hold numbers within"):
        indexed.search(queries.astype(np.float64) * size, 3, funnel=PLAN)


def test_reranking_is_that_of_the_corpus(rows: np.ndarray, queries: np.ndarray) -> None:
    corpus, ids = Corpus(rows), np.arange(70).reshape(7, 10)
    indexed = FaissCorpus(corpus, "HNSW8", dim=6)
    assert isinstance(indexed, Searchable)
    same(indexed.rerank(queries, ids, 4, dim=12), corpus.rerank(queries, ids, 4, dim=12))
    plan = Funnel((6, 12, 24), (10, 5))
    same(indexed.rerank(queries, ids, 4, funnel=plan), corpus.rerank(queries, ids, 4, funnel=plan))


def test_an_empty_index_is_checked_without_rows() -> None:
    index = FaissCorpus.empty_index("IVF8,Flat", 12, metric="l2", parameters="nprobe=3")
    assert (index.d, index.ntotal, index.nprobe, index.metric_type) == (12, 0, 3, faiss.METRIC_L2)
    with pytest.raises(ValueError, match="`index` must be a factory string of faiss for 12 columns, .* got 'PQ5'"):
        FaissCorpus.empty_index("PQ5", 12)
    with pytest.raises(ValueError, match="`parameters` must be settings of this index, got 'probes=3'"):
        FaissCorpus.empty_index("Flat", 12, parameters="probes=3")


def coded(rows: np.ndarray) -> np.ndarray:
    """Rows of nearly one length, which bits serve under every metric."""
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dim", [8, 16, 24])
def test_a_binary_index_gives_what_bits_give(rows: np.ndarray, queries: np.ndarray, metric: str, dim: int) -> None:
    corpus = Corpus(coded(rows), metric=metric)
    indexed = FaissCorpus(corpus, "BFlat", dim=dim)
    assert (indexed.codes, indexed.search_dims) == (("bits",), (dim,))
    for plan in (Funnel((dim, dim), (400,), code="bits"), Funnel((dim, dim, 24)[-2:], (400,), code="bits")):
        same(indexed.search(queries, 9, funnel=plan), corpus.search(queries, 9, funnel=plan))
    found, wanted = (of.search(queries, 30, funnel=Funnel((dim,), code="bits"))[1] for of in (indexed, corpus))
    assert metrics.overlap_at_k(found, wanted, 30) > 0.8  # faiss leaves open which of equal distances come
    same(indexed.search(queries, 9), corpus.search(queries, 9))
    same(indexed.search(queries, 9, funnel=Funnel((24,))), corpus.search(queries, 9))


@pytest.mark.parametrize("text", ["BHNSW16", "BIVF8", "BHash4"])
def test_any_binary_index_finds_candidates(rows: np.ndarray, text: str) -> None:
    corpus = Corpus(coded(rows))
    indexed = FaissCorpus(corpus, text, dim=24)
    if text == "BIVF8":
        indexed.index.nprobe = 8
    ids = indexed.search(coded(rows)[:9], 1, funnel=Funnel((24, 24), (20,), code="bits"))[1]
    np.testing.assert_array_equal(ids[:, 0], np.arange(9))


def test_a_binary_index_that_is_full_is_taken_as_it_is(rows: np.ndarray, queries: np.ndarray) -> None:
    corpus, plan = Corpus(rows), Funnel((16, 24), (400,), code="bits")
    index = faiss.IndexBinaryFlat(16)
    for _, codes in corpus.prefixes(16, code="bits"):
        index.add(np.ascontiguousarray(codes))
    same(FaissCorpus(corpus, index).search(queries, 5, funnel=plan), corpus.search(queries, 5, funnel=plan))
    named = faiss.IndexBinaryIDMap(faiss.IndexBinaryFlat(16))
    same(FaissCorpus(corpus, named).search(queries, 5, funnel=plan), corpus.search(queries, 5, funnel=plan))


def test_funnels_start_in_the_code_of_the_index(rows: np.ndarray, queries: np.ndarray) -> None:
    corpus = Corpus(rows)
    plain, binary = FaissCorpus(corpus, "Flat", dim=8), FaissCorpus(corpus, "BFlat", dim=8)
    assert (plain.codes, FaissCorpus(corpus, "SQ8", dim=8).codes) == (("float",), ("float",))
    with pytest.raises(ValueError, match=r"`funnel.code` must be that of the index, 'float', got 'bits'; change one"):
        plain.search(queries, 5, funnel=Funnel((8, 24), (20,), code="bits"))
    with pytest.raises(ValueError, match=r"`funnel.code` must be that of the index, 'bits', got 'float'; change one"):
        binary.search(queries, 5, funnel=Funnel((8, 24), (20,)))
    with pytest.raises(ValueError, match="`funnel` must start at the width of the index, 8"):
        binary.search(queries, 5, funnel=Funnel((24,), code="bits"))
    whole = FaissCorpus(corpus, "BFlat")
    same(whole.search(queries, 5, funnel=Funnel((24,))), corpus.search(queries, 5))


def test_what_bits_do_not_serve_takes_no_binary_index(rows: np.ndarray) -> None:
    message = "`index` must hold numbers for this corpus, got IndexBinaryFlat: bits serve rows in main memory"
    for metric in ("ip", "l2"):
        with pytest.raises(ValueError, match=message):
            FaissCorpus(Corpus(rows, metric=metric), "BFlat", dim=8)
    strict = load("array_api_strict")
    with pytest.raises(ValueError, match=message):
        FaissCorpus(Corpus(strict.asarray(rows)), faiss.IndexBinaryFlat(8))
    rule = "`dim` must be a multiple of 8 for a binary index such as 'BFlat', got"
    for dim, remedy in ((20, "choose 16"), (7, "choose 8 or more, or an index of numbers")):
        with pytest.raises(ValueError, match=f"{rule} {dim}; {remedy}"):
            FaissCorpus(Corpus(rows), "BFlat", dim=dim)
    with pytest.raises(ValueError, match="of faiss for 16 columns, such as 'BFlat', got 'BFoo'"):
        FaissCorpus(Corpus(rows), "BFoo", dim=16)
    with pytest.raises(ValueError, match="`parameters` must be empty for a binary index, got 'nprobe=3'; set it in"):
        FaissCorpus(Corpus(rows), "BIVF8", dim=8, parameters="nprobe=3")
    with pytest.raises(ValueError, match="`index` must be empty or hold the 400 rows of the corpus, got 1 rows"):
        index = faiss.IndexBinaryFlat(8)
        index.add(np.zeros((1, 1), np.uint8))
        FaissCorpus(Corpus(rows), index)


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("text", ["BFlat", "BHNSW8", "BIVF8"])
def test_save_and_load_a_binary_index(
    tmp_path: Path, rows: np.ndarray, queries: np.ndarray, text: str, mmap: bool
) -> None:
    original, plan = FaissCorpus(Corpus(rows), text, dim=16), Funnel((16, 24), (30,), code="bits")
    original.save(tmp_path / "saved")
    loaded = FaissCorpus.load(tmp_path / "saved", mmap=mmap)
    assert repr(loaded) == repr(original)
    same(loaded.search(queries, 9, funnel=plan), original.search(queries, 9, funnel=plan))
    record = json.loads((tmp_path / "saved" / "faiss.json").read_text())
    assert record["code"] == "bits"
    del record["code"]
    (tmp_path / "saved" / "faiss.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"`.*index.faiss` must be the index|`.*faiss.json` must be as it was saved"):
        FaissCorpus.load(tmp_path / "saved")


@pytest.mark.parametrize("module", ["torch", "jax.numpy"])
def test_a_binary_index_beside_other_libraries(rows: np.ndarray, queries: np.ndarray, module: str) -> None:
    library, plan = load(module), Funnel((16, 24), (400,), code="bits")
    found = FaissCorpus(Corpus(library.asarray(rows)), "BFlat", dim=16).search(library.asarray(queries), 5, funnel=plan)
    agree(found, Corpus(rows).search(queries, 5, funnel=plan))
    assert type(found[0]) is type(found[1]) is type(library.asarray(rows))


def test_no_queries(rows: np.ndarray) -> None:
    scores, ids = FaissCorpus(Corpus(rows), "Flat", dim=6).search(rows[:0], 3, funnel=PLAN)
    assert scores.shape == ids.shape == (0, 3)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_dtypes(rows: np.ndarray, queries: np.ndarray, dtype: str) -> None:
    corpus = Corpus(rows.astype(dtype))
    found = FaissCorpus(corpus, "Flat", dim=6).search(queries.astype(dtype), 5, funnel=PLAN)
    expected = corpus.search(queries.astype(dtype), 5, funnel=PLAN)
    agree(found, expected)
    assert found[0].dtype == expected[0].dtype


@pytest.mark.parametrize("module", ["torch", "jax.numpy", "array_api_strict"])
def test_other_libraries(rows: np.ndarray, queries: np.ndarray, module: str) -> None:
    library = load(module)
    corpus = Corpus(library.asarray(rows))
    found = FaissCorpus(corpus, "Flat", dim=6).search(library.asarray(queries), 5, funnel=PLAN)
    expected = corpus.search(library.asarray(queries), 5, funnel=PLAN)
    agree(found, expected)
    assert [(type(a), a.dtype) for a in found] == [(type(a), a.dtype) for a in expected]


def test_arguments_are_never_written_to(rows: np.ndarray, queries: np.ndarray) -> None:
    rows.flags.writeable = queries.flags.writeable = False
    FaissCorpus(Corpus(rows), "HNSW8", dim=6).search(queries, 5, funnel=PLAN)


def test_the_same_seed_trains_the_same_index(rows: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matryoshka.faiss._TRAINING_ROWS", 50)
    monkeypatch.setattr("matryoshka.faiss._ROWS_PER_LIST", 10)
    trained = [
        faiss.serialize_index(FaissCorpus(Corpus(rows), "IVF8,Flat", dim=6, seed=seed).index) for seed in (3, 3, 4)
    ]
    assert (trained[0] == trained[1]).all()
    assert (trained[0] != trained[2]).any()


def test_faiss_keeps_its_number_of_threads(
    rows: np.ndarray, queries: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, asked = faiss.omp_get_max_threads(), []
    monkeypatch.setattr(faiss, "omp_set_num_threads", asked.append)
    FaissCorpus(Corpus(rows), "Flat", dim=6).search(queries, 5, funnel=PLAN)
    assert asked == [n_threads(), before, n_threads(), before]


def test_tells_what_it_is(rows: np.ndarray) -> None:
    corpus = Corpus(rows, metric="l2")
    indexed = FaissCorpus(corpus, "HNSW8", dim=6)
    assert (len(indexed), indexed.dim, indexed.metric, indexed.search_dims) == (400, 24, "l2", (6,))
    assert indexed.corpus is corpus
    assert repr(indexed) == f"FaissCorpus({corpus!r}, IndexHNSWFlat, dim=6)"
    assert FaissCorpus(corpus, "Flat").search_dims == (24,)


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("metric", METRICS)
def test_save_and_load(tmp_path: Path, rows: np.ndarray, queries: np.ndarray, metric: str, mmap: bool) -> None:
    original = FaissCorpus(Corpus(rows, metric=metric), "IVF8,Flat", dim=6, parameters="nprobe=3")
    original.save(tmp_path / "saved")
    loaded = FaissCorpus.load(tmp_path / "saved", mmap=mmap)
    assert repr(loaded) == repr(original)
    assert loaded.index.nprobe == 3
    same(loaded.search(queries, 9, funnel=PLAN), original.search(queries, 9, funnel=PLAN))
    loaded.save(tmp_path / "saved")  # over the files that it is mapped from
    same(FaissCorpus.load(tmp_path / "saved").search(queries, 9), original.search(queries, 9))
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_load_into_another_library(tmp_path: Path, rows: np.ndarray, queries: np.ndarray) -> None:
    torch = load("torch")
    original = FaissCorpus(Corpus(rows), "Flat", dim=6)
    original.save(tmp_path / "saved")
    loaded = FaissCorpus.load(tmp_path / "saved", like=torch.empty(0))
    scores, _ = found = loaded.search(torch.tensor(queries), 9, funnel=PLAN)
    assert isinstance(scores, torch.Tensor)
    same(found, original.search(queries, 9, funnel=PLAN))


def test_an_index_that_cannot_be_written_leaves_the_old_folder(
    tmp_path: Path, rows: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    indexed = FaissCorpus(Corpus(rows), "Flat", dim=6)
    indexed.save(tmp_path / "saved")
    before = {path: path.read_bytes() for path in (tmp_path / "saved").rglob("*.*")}

    def fail(*_: Any) -> None:
        msg = "Error in faiss::write at /project/io.cpp:9: Error: 'ret == n' failed: No space left"
        raise RuntimeError(msg)

    monkeypatch.setattr(faiss, "write_index", fail)
    with pytest.raises(OSError, match=r"^`path` must be a folder .*saved'; faiss says: Error: 'ret == n' failed: No"):
        indexed.save(tmp_path / "saved")
    assert {path: path.read_bytes() for path in (tmp_path / "saved").rglob("*.*")} == before
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def write_another_index(n_rows: int, *, record: bool = True) -> Any:
    """Return what exchanges the index, and lets the record be one from before there were checksums."""

    def damage(folder: Path) -> None:
        index = faiss.IndexFlatIP(6)
        index.add(np.ones((n_rows, 6), np.float32))
        faiss.write_index(index, str(folder / "index.faiss"))
        if not record:
            (folder / "faiss.json").write_text(json.dumps({"kind": "faiss corpus", "version": 1}))

    return damage


def exchange_corpus(folder: Path) -> None:
    rows = np.random.default_rng(1).normal(size=(400, 24)).astype(np.float32)
    Corpus(rows).save(folder / "corpus")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "faiss.json").unlink(), "`path` must be a folder that FaissCorpus.save wrote"),
        (
            lambda folder: (folder / "faiss.json").write_text("{"),
            r"`.*faiss.json` must be JSON, .* save the faiss corpus",
        ),
        (lambda folder: (folder / "faiss.json").write_text(json.dumps({"kind": "funnel"})), "a faiss corpus, got"),
        (lambda folder: (folder / "index.faiss").unlink(), r"`.*index.faiss` must be the index .* could not open"),
        (lambda folder: (folder / "index.faiss").write_bytes(b"?"), r"`.*index.faiss` must be .* save the corpus anew"),
        (write_another_index(0, record=False), r"`.*index.faiss` must hold 400 rows, got none"),
        (write_another_index(3, record=False), "`index` must be empty or hold the 400 rows of the corpus, got 3 rows"),
        (write_another_index(400), r"`.*index.faiss` must be as it was saved, got other bytes than its checksum says"),
        (exchange_corpus, r"`.*corpus.json` must be as it was saved, got other bytes than its checksum says"),
        (lambda folder: (folder / "corpus" / "squares.npy").unlink(), r"`.*squares.npy` must exist"),
    ],
)
def test_damaged_folders_are_refused(tmp_path: Path, rows: np.ndarray, damage: Any, message: str) -> None:
    FaissCorpus(Corpus(rows), "Flat", dim=6).save(tmp_path / "saved")
    damage(tmp_path / "saved")
    with pytest.raises(ValueError, match=message):
        FaissCorpus.load(tmp_path / "saved")


def test_a_folder_of_other_things_is_not_replaced(tmp_path: Path, rows: np.ndarray) -> None:
    (tmp_path / "mine.txt").write_text("stays", encoding="utf-8")
    with pytest.raises(FileExistsError, match=r"which holds other things and no faiss\.json"):
        FaissCorpus(Corpus(rows), "Flat", dim=6).save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("place", ["notes.txt", "corpus/notes.txt"])
def test_notes_in_a_saved_folder_are_not_lost(tmp_path: Path, rows: np.ndarray, place: str) -> None:
    indexed = FaissCorpus(Corpus(rows), "Flat", dim=6)
    indexed.save(tmp_path / "saved")
    (tmp_path / "saved" / place).write_text("mine")
    with pytest.raises(FileExistsError, match=rf"saved', which also holds {place}; move that elsewhere"):
        indexed.save(tmp_path / "saved")
    assert (tmp_path / "saved" / place).read_text() == "mine"


def test_changed_rows_are_noticed_where_they_are_verified(tmp_path: Path, rows: np.ndarray) -> None:
    FaissCorpus(Corpus(rows), "Flat", dim=6).save(tmp_path / "saved")
    file = tmp_path / "saved" / "corpus" / "embeddings.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert len(FaissCorpus.load(tmp_path / "saved", mmap=True)) == 400
    for options in ({}, {"mmap": True, "verify": True}):
        with pytest.raises(ValueError, match="`.*embeddings.npy` must be as it was saved"):
            FaissCorpus.load(tmp_path / "saved", **options)


def test_few_rows_for_each_list_are_no_warning(rows: np.ndarray, capfd: pytest.CaptureFixture[str]) -> None:
    FaissCorpus(Corpus(rows), "PCA5,IVF64,Flat", dim=6)
    assert capfd.readouterr() == ("", "")


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"`path` must be a folder that FaissCorpus.save wrote, got '.*absent'"):
        FaissCorpus.load(tmp_path / "absent")


@pytest.mark.parametrize(
    ("index", "options", "error", "message"),
    [
        ("Tree9", {}, ValueError, "`index` must be a factory string of faiss for 24 columns, .* got 'Tree9'; faiss sa"),
        ("PQ5", {"dim": 12}, ValueError, r"for 12 columns, .* got 'PQ5'; faiss says: Error: .* should be a multiple"),
        (
            "IVF500,Flat",
            {"dim": 6},
            ValueError,
            r"can be trained on 400 rows: choose fewer lists .* says: .* \(400\) should",
        ),
        ("Flat", {"dim": 25}, ValueError, r"`dim` must be an integer in \[1, 24\], got 25"),
        ("Flat", {"dim": 6.0}, TypeError, "`dim` must be an integer, got float"),
        ("Flat", {"parameters": "probes=3"}, ValueError, "`parameters` must be settings of this index, got 'probes=3'"),
        ("IVF4,Flat", {"seed": -1}, ValueError, "`seed` must be an integer >= 0"),
        (7, {}, TypeError, "`index` must be a faiss.Index or a factory string, got int"),
        (faiss.IndexFlatIP(6), {"dim": 8}, ValueError, "`dim` must be the width of the index, 6, got 8"),
        (faiss.IndexFlatIP(30), {}, ValueError, "`index` must hold at most the 24 columns of the corpus, got 30"),
        (faiss.IndexFlat(6, faiss.METRIC_L1), {}, ValueError, "must compute inner products or Euclidean distances"),
    ],
)
def test_what_does_not_fit_is_refused(
    rows: np.ndarray, index: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as raised:
        FaissCorpus(Corpus(rows), index, **options)
    assert "/project/" not in str(raised.value)


@pytest.mark.parametrize(
    ("metric", "index", "kinds"),
    [
        ("ip", faiss.IndexFlatL2(6), ("inner products", "Euclidean distances")),
        ("l2", faiss.IndexFlatIP(6), ("Euclidean distances", "inner products")),
    ],
)
def test_an_index_of_another_metric_is_refused(
    rows: np.ndarray, metric: str, index: Any, kinds: tuple[str, str]
) -> None:
    with pytest.raises(ValueError, match=f"`index` must compute {kinds[0]} for metric '{metric}', got {kinds[1]};"):
        FaissCorpus(Corpus(rows, metric=metric), index)


def test_rows_without_a_corpus_are_refused(rows: np.ndarray) -> None:
    with pytest.raises(TypeError, match=r"`corpus` must be a Corpus, got ndarray; pass Corpus\(embeddings\)"):
        FaissCorpus(rows, "Flat")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"k": 21}, ValueError, "`k` must be at most the last list of the funnel, 20, got 21"),
        ({"k": 0}, ValueError, "`k` must be an integer >= 1"),
        ({"funnel": Funnel((8, 24), (9,))}, ValueError, r"`funnel` must start at the width of the index, 6, got \(8,"),
        ({"funnel": (6, 24)}, TypeError, "`funnel` must be a Funnel, got tuple"),
        ({"queries": np.ones((2, 23), np.float32)}, ValueError, r"`queries` must have shape \(n_queries, dim\)"),
        ({"queries": np.full((2, 24), np.nan, np.float32)}, ValueError, "`queries` must be finite"),
        ({"queries": np.ones((2, 24), int)}, TypeError, "`queries` must hold floating-point numbers"),
    ],
)
def test_bad_searches_are_refused(
    rows: np.ndarray, queries: np.ndarray, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    indexed = FaissCorpus(Corpus(rows), "Flat", dim=6)
    with pytest.raises(error, match=message):
        indexed.search(**{"queries": queries, "k": 5, "funnel": PLAN} | arguments)


def test_without_faiss_the_command_to_install_it_is_named() -> None:
    program = "import sys; sys.modules['faiss'] = None; import matryoshka.faiss"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=os.environ)
    assert 'pip install "matryoshka-mrl[faiss]"' in done.stderr
