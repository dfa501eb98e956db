"""Change the package in one place at a time and see whether a test notices: `nox -s mutants`.

A mutant is a copy of the package with one operator, constant, bound, branch or statement changed. Each runs the tests
of its room with NumPy and array-api-strict alone, and, if it lives, with every library installed; one that runs far
longer than the unchanged package counts as killed. Not changed: annotations, decorators, the text of messages, and
keywords that only check, copy, or style a picture. `mutants.toml` lists the survivors that no test can kill, each with
its reason.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "matryoshka"
ROOMS = {  # what is changed, first come first served, and the names of the tests that shall notice, the quickest first
    "losses": ("losses/*.py", "nested contrastive cross_entropy"),
    "loop": ("_hooks/loop.py", "contrastive cross_entropy"),
    "algebra": ("_algebra.py", "cross_entropy contrastive cascade"),
    "displays": ("_pictures.py */_figure.py", "displays"),
    "monitor": ("cascade/_monitor.py", "cascade_monitor"),
    "certify": (
        "cascade/_certify.py cascade/_paths.py _promises/certificates.py",
        "cascade_monitor cascade_precomputed cascade_certify",
    ),
    "cascade": ("cascade/*.py", "cascade_precomputed cascade_oracle cascade cascade_classify cascade_certify"),
    "codes": ("retrieval/_codes.py retrieval/_sampling.py", "retrieval_codes retrieval_bounds"),
    "bounds": ("retrieval/_bounds.py retrieval/_prefix.py", "retrieval_bounds retrieval_first_stage retrieval"),
    "calibration": (
        "retrieval/_calibration.py retrieval/_candidates.py retrieval/_clock.py",
        "retrieval_calibration",
    ),
    "engines": (
        "retrieval/engine.py retrieval/shards.py retrieval/_bytes.py",
        "retrieval_engine retrieval_bytes retrieval_shards retrieval_pickle",
    ),
    "retrieval": ("retrieval/*.py", "funnel retrieval_storage retrieval retrieval_first_stage"),
    "promises": ("_promises/*.py", "promises cascade_monitor retrieval_calibration"),
    "metrics": ("metrics/*.py", "metrics"),
    "evaluation": ("evaluation.py", "evaluation"),
    "audit": ("audit/*.py", "audit"),
    "nesting": ("nesting.py", "nesting nested"),
    "embeddings": ("embeddings.py", "embeddings"),
    "rotation": ("rotation.py", "rotation"),
    "costs": ("costs.py", "costs"),
    "files": ("_files.py _folders.py _values.py", "files folders nesting funnel promises rotation"),
    "inputs": ("_commands/_inputs.py _commands/_options.py cli.py", "commands cli_inputs cli cli_apply cli_audit"),
    "apply": ("_commands/apply.py _commands/calibrate.py _commands/_rows.py", "commands cli_apply cli_calibrate"),
    "commands": ("_commands/*.py", "commands cli cli_audit cli_benchmark"),
    "dask": ("dask.py", "backends/dask"),
    "faiss": ("faiss.py", "backends/faiss"),
    "postgres": ("postgres.py _pgvector.py", "backends/postgres"),
    "qdrant": ("qdrant.py _qdrant.py", "backends/qdrant"),
}
OTHERS = ("torch", "jax", "tensorflow", "keras", "faiss", "sentence_transformers")

COMPARE = {
    ast.Lt: (ast.LtE, ast.Gt), ast.LtE: (ast.Lt, ast.GtE), ast.Gt: (ast.GtE, ast.Lt), ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
}  # fmt: skip
ARITHMETIC = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
PAIRS = ("min max", "any all", "minimum maximum", "argmin argmax", "floor ceil", "left right", "ones zeros")
NAMES = {one: other for pair in map(str.split, PAIRS) for one, other in (pair, pair[::-1])}
UNSEEN = {"strict", "copy", "stacklevel"}
STYLE = {
    "alpha",
    "capsize",
    "dpi",
    "figsize",
    "fontsize",
    "framealpha",
    "labelrotation",
    "lw",
    "ms",
    "ncols",
    "rotation",
}
"""How a picture looks, of which no test of results tells."""


@dataclass(frozen=True)
class Mutant:
    """One change: bytes `start` to `end` of a file become `text`; `change` says so in words."""

    room: str
    file: str
    line: int
    function: str
    change: str
    start: int
    end: int
    text: str


def changes(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    """Yield pairs of a node and what it may become."""

    def altered(**fields: object) -> tuple[ast.AST, ast.AST]:
        new = copy.copy(node)
        for name, value in fields.items():
            setattr(new, name, value)
        return node, new

    match node:
        case ast.Compare(ops=[op]):
            yield from (altered(ops=[new()]) for new in COMPARE[type(op)])
        case ast.BoolOp(op=op):
            yield altered(op=ast.Or() if isinstance(op, ast.And) else ast.And())
        case ast.BinOp(op=op) | ast.AugAssign(op=op) if type(op) in ARITHMETIC:
            yield altered(op=ARITHMETIC[type(op)]())
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield node, node.operand
        case ast.Constant(value=bool(value)):
            yield altered(value=not value)
        case ast.Constant(value=int(value)):
            yield from (altered(value=new) for new in (value + 1, value - 1) if new >= 0)
        case ast.Constant(value=float(value)):
            yield altered(value=value + 1)
        case ast.Constant(value=("left" | "right") as value):
            yield altered(value=NAMES[value])
        case ast.Call(func=ast.Name(id=name)) if name in NAMES:
            yield node.func, ast.Name(NAMES[name])
        case ast.Call(func=ast.Attribute(value=value, attr=name)) if name in NAMES:
            yield node.func, ast.Attribute(value, NAMES[name])
        case ast.Slice(lower=lower, upper=upper):
            yield altered(lower=upper, upper=lower)
        case ast.IfExp():
            yield altered(body=node.orelse, orelse=node.body)
        case ast.If(test=test):
            yield test, ast.UnaryOp(ast.Not(), test)
    if isinstance(node, ast.AugAssign | ast.Raise) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        yield node, ast.Pass()


def walk(node: ast.AST, function: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Yield the nodes that may change, each with the name of the function around it, or of the module's constant."""
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    yield function, node
    if isinstance(node, ast.Raise | ast.JoinedStr):
        return
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        function = f"{function}.{node.name}".lstrip(".")
    if isinstance(node, ast.Assign) and not function:
        function = ast.unparse(node.targets[0])
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not (isinstance(child, ast.keyword) and child.arg in UNSEEN | STYLE):
                yield from walk(child, function)


def files(room: str) -> list[Path]:
    """Return the files of a room: those that it names and no earlier one does."""
    owner: dict[Path, str] = {}
    for name, (patterns, _) in ROOMS.items():
        for path in sorted(path for pattern in patterns.split() for path in PACKAGE.glob(pattern)):
            owner.setdefault(path, name)
    return [path for path, name in owner.items() if name == room]


def mutants(room: str) -> list[Mutant]:
    """Return every mutant of a room that compiles."""
    found = []
    for path in files(room):
        source = path.read_bytes()
        starts = [0]
        for line in source.splitlines(keepends=True):
            starts.append(starts[-1] + len(line))
        for function, node in walk(ast.parse(source)):
            for old, new in changes(node):
                text = ast.unparse(ast.fix_missing_locations(new))
                if text == ast.unparse(old):
                    continue
                bare = f"({text})" if isinstance(new, ast.expr) and not isinstance(new, ast.Slice) else text
                start, end = starts[old.lineno - 1] + old.col_offset, starts[old.end_lineno - 1] + old.end_col_offset
                try:
                    compile(source[:start] + bare.encode() + source[end:], path, "exec")
                except SyntaxError:
                    continue
                name, change = path.relative_to(PACKAGE).as_posix(), f"{ast.unparse(old)} -> {text}"
                found.append(Mutant(room, name, old.lineno, function, change, start, end, bare))
    return found


def tests_of(room: str) -> list[tuple[str, str]]:
    """Return the folder and the name of each test of a room."""
    return [("".join(name.rpartition("/")[:2]), name.rpartition("/")[2]) for name in ROOMS[room][1].split()]


class Tree:
    """A private copy of the package and its tests, in which one mutant runs at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._runs = folder, 0
        for name in ("matryoshka", "tests"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        (folder / "hidden").mkdir()
        for name in OTHERS:
            (folder / "hidden" / f"{name}.py").write_text(f"raise ModuleNotFoundError({name!r}, name={name!r})\n")

    def try_out(self, mutant: Mutant, limits: dict[bool, float]) -> str:
        """Return which test noticed the mutant, or "" if none did."""
        path = self.folder / "matryoshka" / mutant.file
        source = path.read_bytes()
        self._runs += 1
        try:
            path.write_bytes(source[: mutant.start] + mutant.text.encode() + source[mutant.end :])
            os.utime(path, (self._runs, self._runs))  # bytecode of another mutant is out of date
            return next(filter(None, (self.test(mutant.room, every, limits[every]) for every in limits)), "")
        finally:
            path.write_bytes(source)

    def test(self, room: str, every: bool, limit: float) -> str:
        """Run the tests of a room, with every library or NumPy's alone; return the first failure, or ""."""
        shutil.rmtree(self.folder / ".hypothesis", ignore_errors=True)
        tests = [f"tests/{folder}test_{name}.py" for folder, name in tests_of(room)]
        command = [sys.executable, "-m", "pytest", "-xq", "-p", "no:cacheprovider", "--hypothesis-seed=0", *tests]
        paths = str(self.folder) if every else f"{self.folder / 'hidden'}{os.pathsep}{self.folder}"
        env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            command, cwd=self.folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            start_new_session=True,
        )  # fmt: skip
        try:
            output, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return f"no end within {limit:.0f} s"
        failures = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
        return "" if process.returncode == 0 else (failures or ["no import"])[0][:160]


def limits_of(tree: Tree, room: str) -> dict[bool, float]:
    """Return how long a mutant may take in each round: the unchanged package, which must pass, three times over.

    What is tested with its own library only has no round without the others.
    """
    limits = {}
    for every in (False, True) if any(not folder for folder, _ in tests_of(room)) else (True,):
        start = time.monotonic()
        if failure := tree.test(room, every, 900):
            sys.exit(f"{room}: the unchanged package fails: {failure}")
        limits[every] = 30 + 3 * (time.monotonic() - start)
    return limits


def reason(mutant: Mutant, table: list[dict[str, str]]) -> str:
    """Return why no test can kill a mutant, or ""; a row without `change` holds for its whole function."""
    for row in table:
        same = (mutant.file, mutant.function) == (row["file"], row["function"])
        if same and row.get("change", mutant.change) == mutant.change:
            return row["reason"]
    return ""


def summary(room: str, results: list[dict[str, object]], n_every: int) -> str:
    """Return the row of a room in the table."""
    n = len(results)
    killed, equivalent = (sum(bool(result[name]) for result in results) for name in ("killed_by", "equivalent"))
    share = killed / max(1, n - equivalent)
    counts = f"{killed:>4} killed, {equivalent:>3} equivalent, {n - killed - equivalent:>3} survived"
    return f"{room:<11}{n:>4} of {n_every:>4}: {counts}; {share:.1%} of those that can be killed"


def main() -> None:
    """Run a sample of mutants of each room, store what became of them, and print it."""
    parser = argparse.ArgumentParser(prog="mutants", description=__doc__.partition("\n")[0])
    parser.add_argument("rooms", nargs="*", default=[], help=f"of {', '.join(ROOMS)}; all by default")
    parser.add_argument("--sample", type=int, default=40, help="mutants of each room at most (default 40)")
    parser.add_argument("--all", action="store_true", help="every mutant, which takes hours")
    parser.add_argument("--again", type=Path, metavar="JSON", help="only those that lived in this earlier run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--output", type=Path, default=ROOT / "report" / "mutants.json")
    options = parser.parse_args()
    table = tomllib.loads((ROOT / "benchmarks" / "mutants.toml").read_text())["equivalent"]
    options.output.parent.mkdir(exist_ok=True)
    results: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(options.jobs) as pool:
        trees: queue.SimpleQueue[Tree] = queue.SimpleQueue()
        for job in range(options.jobs):
            trees.put(Tree(Path(scratch) / str(job)))

        def run(mutant: Mutant, limits: dict[bool, float]) -> dict[str, object]:
            tree = trees.get()
            try:
                by = tree.try_out(mutant, limits)
            finally:
                trees.put(tree)
            why = "" if by else reason(mutant, table)
            if not by:
                print(f"lives: {mutant.file}:{mutant.line} {mutant.function}: {mutant.change}  {why}", flush=True)
            return {**asdict(mutant), "killed_by": by, "equivalent": why}

        for room in options.rooms or ROOMS:
            every = mutants(room)
            if options.again:
                earlier = json.loads(options.again.read_text())
                alive = {(r["file"], r["line"], r["change"]) for r in earlier if not r["killed_by"]}
                every = [mutant for mutant in every if (mutant.file, mutant.line, mutant.change) in alive]
            size = len(every) if options.all or options.again else min(options.sample, len(every))
            sample = random.Random(options.seed).sample(every, size)
            if not sample:
                continue
            tree = trees.get()
            limits = limits_of(tree, room)
            trees.put(tree)
            done = list(pool.map(run, sample, [limits] * len(sample)))
            results += done
            print(summary(room, done, len(every)), flush=True)
            options.output.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
