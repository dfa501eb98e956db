"""The cases of the suite: which rows, which ways to search them, and what the project wants of the clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from benchmarks.retrieval import ours, peers
from benchmarks.retrieval.data import Source
from benchmarks.retrieval.peers import CANDIDATES, Build
from matryoshka import Funnel, costs

K = 10
SHORT = 16


class Cost(NamedTuple):
    """What one query takes in theory: bytes of corpus that a batch shares, those that it does not, multiply-adds."""

    shared: int
    own: int
    multiply_adds: int


@dataclass(frozen=True)
class Way:
    """A way to search, and what it takes on n rows of width dim, where that is known beforehand."""

    build: Build
    cost: Callable[[int, int], Cost] | None = None


@dataclass(frozen=True)
class Wanted:
    """How often the time of `than` one way may take, at most; with `faster`, how many times as fast it should be.

    Without a bar, nothing is asked and the ratio is shown.
    """

    way: str
    than: str
    bar: float | None = None
    goal: float | None = None
    batch: int = 1
    faster: bool = False


@dataclass(frozen=True)
class Case:
    """Ways to find the same, of which the first is the reference.

    `exact` is how many of the nearest rows recall is about; `at_recall` asks for the queries a second (bar, goal) that
    the best of our ways answers at a recall of .98, in batches of the last size.
    """

    group: str
    name: str
    source: Source
    ways: dict[str, Way]
    k: int = K
    batches: tuple[int, ...] = (1, 64)
    wanted: tuple[Wanted, ...] = ()
    exact: int = K
    rotated: bool = False
    at_recall: tuple[int, int] | None = field(default=None)

    def title(self, batch: int) -> str:
        """Return what is searched, and for how many queries at once."""
        return f"{self.name}, batch {batch}"


def flat(width: int | None = None, itemsize: float = 4) -> Callable[[int, int], Cost]:
    """Every row at so many columns, of so many bytes each; less than one: no numbers to multiply."""

    def cost(n: int, dim: int) -> Cost:
        columns = width or dim
        return Cost(int(n * columns * itemsize), 0, costs.search(n, columns) if itemsize >= 1 else 0)

    return cost


def stages(funnel: Funnel) -> Callable[[int, int], Cost]:
    """The stages of a funnel, as they are executed."""

    def cost(n: int, _: int) -> Cost:
        shared = costs.search_bytes(n, funnel.dims[0], code=funnel.code)
        return Cost(shared, funnel.bytes(n) - shared, funnel.multiply_adds(n, executed=True))

    return cost


def reranking(count: int, after: Callable[[int, int], Cost]) -> Callable[[int, int], Cost]:
    """Another search, and its candidates at full width."""

    def cost(n: int, dim: int) -> Cost:
        found = after(n, dim)
        return Cost(found.shared, costs.rerank_bytes(count, dim), found.multiply_adds + costs.rerank(count, dim))

    return cost


def staged(funnel: Funnel) -> Way:
    """A funnel of ours."""
    return Way(ours.staged(funnel), stages(funnel))


def turned(funnel: Funnel) -> Way:
    """A funnel of ours on rotated rows; the rotation of the query counts as multiply-adds."""

    def cost(n: int, dim: int) -> Cost:
        shared, own, multiply_adds = stages(funnel)(n, dim)
        return Cost(shared + 4 * dim**2, own, multiply_adds + dim**2)

    return Way(ours.rotated(ours.staged(funnel)), cost)


def bits(*dims: int, keep: tuple[int, ...] = ()) -> Funnel:
    """A funnel that starts in bits."""
    return Funnel(dims, keep, code="bits")


OURS, FAISS = Way(ours.full_pass, flat()), Way(peers.faiss_flat, flat())
PRODUCTS, TORCH = Way(peers.bare_product, flat()), Way(peers.torch_top_k, flat())
NUMPY, USEARCH = Way(peers.numpy_partition, flat()), Way(peers.usearch_exact, flat())
PANORAMA = Way(peers.faiss_panorama)
CUT = Funnel((SHORT,))


def first_stage(n: int, batches: tuple[int, ...], *wanted: Wanted) -> Case:
    """An exact search of 16 columns for the best 200."""
    ways = {
        "faiss IndexFlatIP": FAISS,
        "matryoshka": OURS,
        "usearch, exact": USEARCH,
        "torch, product and topk": TORCH,
        "NumPy, product and argpartition": NUMPY,
        "only the products": PRODUCTS,
    }
    source = Source("decaying", n, SHORT)
    name = f"First stage: {source}, best {CANDIDATES}"
    return Case("first", name, source, ways, CANDIDATES, batches, wanted, exact=CANDIDATES)


def than_faiss(bar: float, goal: float, batch: int = 1) -> Wanted:
    """Our first stage beside faiss'."""
    return Wanted("matryoshka", "faiss IndexFlatIP", bar, goal, batch)


def small() -> Case:
    """So few rows that what a call costs besides its products shows."""
    ways = {
        "NumPy, product and argpartition": NUMPY,
        "matryoshka": OURS,
        "faiss IndexFlatIP": FAISS,
        "only the products": PRODUCTS,
    }
    wanted = Wanted("matryoshka", "NumPy, product and argpartition")
    source = Source("decaying", 5000, 64)
    return Case("first", f"Few rows: {source}, best {K}", source, ways, batches=(1,), wanted=(wanted,))


def rerank() -> Case:
    """Two hundred candidates at full width."""

    def cost(_: int, dim: int) -> Cost:
        return Cost(0, costs.rerank_bytes(CANDIDATES, dim), costs.rerank(CANDIDATES, dim))

    ways = {
        "NumPy, gather and product": Way(peers.gather_and_product, cost),
        "matryoshka, cosine": Way(ours.reranked("cosine"), cost),
        "matryoshka, ip": Way(ours.reranked("ip"), cost),
    }
    wanted = tuple(Wanted(way, "NumPy, gather and product", 1.5, 1.2) for way in list(ways)[1:])
    source = Source("decaying", 100_000, 2048)
    name = f"Rerank: {CANDIDATES} candidates at {source.dim:,}, best {K}"
    return Case("rerank", name, source, ways, wanted=wanted, exact=0)


def funnels(n: int, dim: int) -> Case:
    """Funnels, and the plan of one wide step beside faiss' chain of the same plan."""
    halving, adaptive = Funnel.halving(dim, smallest=SHORT), Funnel((SHORT, dim), (CANDIDATES,))
    ways = {
        "matryoshka, exact": OURS,
        "matryoshka, funnel": staged(halving),
        "matryoshka, adaptive": staged(adaptive),
        "matryoshka, exact by bounds of 64": Way(ours.by_bounds(64)),
        "faiss, exact": FAISS,
        "faiss refine": Way(peers.faiss_refine(SHORT), stages(adaptive)),
    }
    if n * dim < 1 << 30:  # else there is no room for a second copy of the rows
        ways["faiss Panorama, exact"] = PANORAMA
    if n == 100_000:  # a larger corpus says the same of it
        ways[f"PCA to {SHORT}, exact"] = Way(peers.pca(SHORT), flat(SHORT))
    wanted = [Wanted("matryoshka, adaptive", "faiss refine", 1.0, 0.5, batch) for batch in (1, 64)]
    if n * dim > 1 << 30:
        kept = {1: (80.0, 120.0), 64: (30.0, 60.0)}
        wanted += [Wanted("matryoshka, funnel", "matryoshka, exact", *kept[b], b, faster=True) for b in kept]
    source = Source("decaying", n, dim)
    return Case("funnel", f"Funnel: {source}, best {K}", source, ways, wanted=tuple(wanted))


def full_width(source: Source) -> Case:
    """An exact search of all columns beside its products."""
    ways = {
        "only the products": PRODUCTS,
        "matryoshka": OURS,
        "faiss IndexFlatIP": FAISS,
        "torch, product and topk": TORCH,
    }
    wanted = Wanted("matryoshka", "only the products", 1.25, 1.1, 64)
    return Case("full", f"Full width: {source}, best {K}", source, ways, wanted=(wanted,))


def ladder(source: Source) -> Case:
    """A funnel beside the full pass, and beside the search as it is without a funnel but with a prefix at hand."""
    ways = {
        "matryoshka, exact": OURS,
        "matryoshka, exact by bounds of 64": Way(ours.by_bounds(64)),
        "matryoshka, funnel": staged(Funnel.halving(source.dim, smallest=SHORT)),
    }
    full, pruned_too, funnel = ways
    wanted = [
        Wanted(funnel, full, 25.0, 40.0, 1, faster=True),
        Wanted(funnel, full, 15.0, 30.0, 64, faster=True),
        *(Wanted(funnel, pruned_too, batch=batch, faster=True) for batch in (1, 64)),
    ]
    return Case("ladder", f"Ladder: {source}, best {K}", source, ways, wanted=tuple(wanted))


def bounds(source: Source, *wanted: Wanted, rotated: bool = False) -> Case:
    """Exact searches that skip what a prefix rules out."""
    ways = {
        "matryoshka, full pass": OURS,
        "matryoshka, bounds of 64": Way(ours.by_bounds(64)),
        "matryoshka, bounds of 128": Way(ours.by_bounds(128)),
        "only the products": PRODUCTS,
        "faiss IndexFlatIP": FAISS,
        "faiss Panorama": PANORAMA,
    }
    name = f"Exact: {source}{' and rotated' if rotated else ''}, best {K}"
    return Case("bounds", name, source, ways, wanted=wanted, rotated=rotated)


def pruned(bar: float, goal: float | None) -> tuple[Wanted, ...]:
    """The better of two prefixes need not be known: each is asked for the same."""
    widths = (64, 128)
    return tuple(Wanted(f"matryoshka, bounds of {w}", "matryoshka, full pass", bar, goal, faster=True) for w in widths)


def codes(source: Source) -> Case:
    """First stages in codes, beside 16 floats: recall is about the ten nearest among the best 200."""
    sixteen = "matryoshka, 16 floats"
    ways = {
        sixteen: staged(CUT),
        "matryoshka, 16 floats, rotated": turned(CUT),
        "matryoshka, 256 bits": staged(bits(256)),
        "matryoshka, 512 bits": staged(bits(512)),
        "faiss IndexFlatIP, 16 floats": Way(peers.cut(peers.faiss_flat, SHORT), flat(SHORT)),
        "faiss IndexBinaryFlat, 256 bits": Way(peers.faiss_binary(256), flat(256, 1 / 8)),
        "faiss SQ8, 64 columns": Way(peers.cut(peers.faiss_sq8, 64), flat(64, 1)),
        "usearch b1, 256 bits": Way(peers.usearch_b1(256), flat(256, 1 / 8)),
        "usearch i8, 64 columns": Way(peers.cut(peers.usearch_i8, 64), flat(64, 1)),
    }
    wanted = Wanted("matryoshka, 256 bits", sixteen, 1.5, 0.7)
    return Case("codes", f"Codes: {source}, best {CANDIDATES}", source, ways, CANDIDATES, wanted=(wanted,))


def end_to_end(source: Source) -> Case:
    """From a query to its ten nearest rows, reranking included."""
    dim = source.dim
    plans = [Funnel((96, dim), (400,)), Funnel((96, 256, dim), (400, 40)), Funnel((128, dim), (60,))]
    coded = [bits(512, dim, keep=(800,)), bits(768, dim, keep=(200,)), bits(768, dim, keep=(400,))]
    ways = {
        "faiss refine, rotated 96 > 400 at 768": Way(
            ours.rotated(peers.faiss_refine(96, 400)), reranking(400, flat(96))
        ),
        **{f"matryoshka, rotated {_plan(plan)}": turned(plan) for plan in plans},
        **{f"matryoshka, {_plan(plan)}": staged(plan) for plan in coded},
        "faiss SQ8 and refine": Way(peers.faiss_sq8_refine(40), reranking(40, flat(itemsize=1))),
        "faiss binary, 768 bits, and NumPy": Way(
            peers.then_product(peers.faiss_binary(768), CANDIDATES), reranking(CANDIDATES, flat(768, 1 / 8))
        ),
    }
    return Case("end", f"End to end: {source}, best {K}", source, ways, batches=(64,), at_recall=(300, 1000))


def _plan(funnel: Funnel) -> str:
    first, *later = funnel.dims
    steps = [f"{count} at {width}" for count, width in zip(funnel.keep, later, strict=True)]
    return f"{first}{' bits' if funnel.code == 'bits' else ''} > {' > '.join(steps)}"


def graphs(source: Source) -> Case:
    """Graphs on all columns, and on 16 in front of a funnel."""
    full, short, plan = "faiss HNSW at 2,048", "faiss HNSW at 16, funnel", Funnel.halving(source.dim)
    ways = {
        full: Way(peers.faiss_hnsw),
        short: Way(ours.behind(peers.faiss_hnsw, SHORT, plan)),
        "hnswlib at 2,048": Way(peers.hnswlib_hnsw),
        "hnswlib at 16, funnel": Way(ours.behind(peers.hnswlib_hnsw, SHORT, plan)),
        "matryoshka, funnel": staged(plan),
    }
    wanted = Wanted(short, full, 4.0, 8.0, faster=True)
    name = f"HNSW: {source}, {CANDIDATES} candidates"
    return Case("hnsw", name, source, ways, wanted=(wanted,))


MIDDLE, WIDE = Source("decaying", 200_000, 1024), Source("decaying", 1_000_000, 768)
REAL = Source("real-like", 1_000_000, 768)
CASES = [
    first_stage(10_000, (1,), than_faiss(1.3, 0.8)),
    first_stage(50_000, (1,), than_faiss(1.0, 0.8)),
    first_stage(200_000, (1,), than_faiss(1.0, 0.8)),
    first_stage(1_000_000, (1, 64, 128), than_faiss(1.0, 0.8), than_faiss(0.35, 0.25, 128)),
    small(),
    rerank(),
    full_width(MIDDLE),
    ladder(MIDDLE),
    *(funnels(n, dim) for n in (100_000, 1_000_000) for dim in (768, 2048)),
    graphs(Source("decaying", 100_000, 2048)),
    bounds(WIDE, *pruned(3.0, 10.0)),
    bounds(REAL, *pruned(0.95, None)),
    bounds(REAL, *pruned(3.0, 10.0), rotated=True),
    codes(REAL),
    end_to_end(REAL),
]
GROUPS = tuple(dict.fromkeys(case.group for case in CASES))
