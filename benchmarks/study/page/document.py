"""The whole document: what the study is, its sections, and how it was run."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.study.grid import FOLDER
from benchmarks.study.page import ablations, cascades, claims, instead, modes, retrieval, robust, widths
from benchmarks.study.page.records import Study, read
from benchmarks.study.page.section import Section, listed, ordered, title, wrapped
from matryoshka._files import write_all

SECTIONS: Sequence[Callable[[Sequence[Study]], Section]] = (
    widths.section,
    cascades.section,
    retrieval.section,
    robust.section,
    modes.section,
    ablations.section,
    instead.section,
    claims.section,
)

DATA = {
    "digits": "1,797 grey images of 8 × 8 pixels, ten digits; they come with scikit-learn. Every seed cuts its own "
    "test rows.",
    "fashion-mnist": "70,000 grey images of 28 × 28 pixels, ten kinds of clothes (Xiao et al., 2017).",
    "clinc150": "22,500 short questions to an assistant, 150 intents in ten domains (Larson et al., 2019), as vectors "
    "of the pretrained sentence encoder all-MiniLM-L6-v2 and as text.",
}

OWN = "rows of one's own."

SYSTEMS = """- **MRL**: one network; classifiers on its first 2, 4, 8, … numbers, their losses added up.
- **MRL-E**: the same with one classifier for all, of which each prefix uses the leading columns.
- **FF** (fixed feature): a network of its own for each width, whose classifier reads so many columns. What MRL has to
  match.
- **SVD**, **PCA**, **Rand**: the widest FF, shortened after training by projecting on its strongest directions, or by
  keeping random columns.
- **rotation**: the widest FF, rotated so that its directions are sorted by energy, with `matryoshka.Rotation`.
- **Slim**: one network trained at several widths of all its layers (Yu et al., 2018).
- **fine-tune 0, 1, 2, all**: the widest FF, given heads on all prefixes and trained on with so many of its last blocks.
- **raw**: the features themselves."""


def write(results: Path, docs: Path) -> list[Path]:
    """Make DOCS/study.md and its figures from the records below `results`, and return their paths.

    Figures that the page no longer shows are removed.

    Raises
    ------
    FileNotFoundError
        There are no records.
    ValueError
        A file is not a record, or lacks what the page shows; the message names it, and nothing is written.
    """
    studies = ordered(read(results))
    if not studies:
        msg = f"`--results` must hold records, NAME/TASK/SYSTEM.SEED.json, got {results} with none; store a run first."
        raise FileNotFoundError(msg)
    sections = [make(studies) for make in SECTIONS]
    figures = docs / "study"
    contents = {figures / name: image for made in sections for name, image in made.figures.items()}
    contents[docs / "study.md"] = document(studies, sections).encode()
    figures.mkdir(parents=True, exist_ok=True)
    write_all(contents)
    for path in set(figures.glob("*.png")) - set(contents):
        path.unlink()
    return list(contents)


def document(studies: Sequence[Study], sections: Sequence[Section]) -> str:
    """Return the page in Markdown."""
    parts = [_opening(studies), *(made.markdown() for made in sections), _closing(studies)]
    return "\n\n".join(map(wrapped, "\n\n".join(parts).split("\n\n"))) + "\n"


def _opening(studies: Sequence[Study]) -> str:
    seeds = sorted({seed for study in studies for cell in study.records.values() for seed in cell})
    data = "\n".join(f"- **{title(study)}**: {DATA.get(study.name, OWN)} {_training(study)}" for study in studies)
    return f"""# The study

<!-- made by `nox -s study -- page --store` from benchmarks/results/study; what is changed here is lost -->

A network turns an item into a fixed number of numbers, its *embedding*. Matryoshka representation learning (MRL;
Kusupati et al., 2022, [arXiv 2205.13147](https://arxiv.org/abs/2205.13147)) trains it so that its first 8, 16, 32, …
numbers are good embeddings by themselves; one network then serves every budget. The paper shows this on ImageNet with
large networks. Here each of its experiments is repeated in small, on data that fit a laptop, to see whether the curves
have the same shape and where they do not.

**In short.** {claims.summary(studies)}

{instead.summary(studies)}

**Data.**

{data}

**Systems.** All networks for one data set are the same small one and differ in what is trained:

{SYSTEMS}

**Numbers.** Whatever is shown is measured on test rows, as mean ± standard deviation over the seeds
{listed(list(map(str, seeds)))}; a seed gives all systems the same split, the same start and the same order of rows,
so that differences are taken seed by seed. Differences are in points: 91 % minus 90 % is one point. Shaded bands in
figures are one standard deviation to either side. Axes of shares are stretched towards 100 %: halving the errors is
a step of the same length everywhere. At most 2,000 test rows ask for neighbours in Fashion-MNIST and classify with
few shots or new classes, and 1,000 are corrupted; all others are used. The test rows of Fashion-MNIST and CLINC150
are the same for every seed, so that deviations hold what training varies and not what other rows would. Nothing was
tuned to agree with the paper."""


def _training(study: Study) -> str:
    """Return the widths of a data set and how its networks are trained, as far as its grid is one of the project's."""
    dims = ", ".join(f"{dim:g}" for dim in study.curve("accuracy", "MRL", "nearest_neighbor"))
    path = FOLDER / f"{study.name}.toml"
    if not (dims and path.is_file()):
        return ""
    training = tomllib.loads(path.read_text(encoding="utf-8"))["training"]
    kind = "convolutional" if training.get("backbone") == "convolutional" else "dense"
    return (
        f"Widths {dims}; a small {kind} network, trained for {training['steps']} batches of 128 or "
        f"{training['epochs']} passes over the rows, whichever is more."
    )


def _closing(studies: Sequence[Study]) -> str:
    hours = ", ".join(f"{title(study)} {study.seconds / 60:.0f} minutes" for study in studies)
    cells = sum(len(cell) for study in studies for cell in study.records.values())
    return f"""## How it was run

`nox -s study -- --data digits`, or `fashion-mnist`, `PATH/clinc150`, or data of your own, runs the grid of a data set
(benchmarks/study/grids) and writes a record for each cell: a task on a system with a seed. Finished cells are not run
again. `nox -s study -- page --store` copies the records to benchmarks/results/study and makes this page from them:
every number in it, and every verdict, is computed from these {cells:,} records. The cells took, added up over two
cores: {hours}.

What this cannot show: networks and data are small, and ladders short; three seeds tell differences apart that are two
to three times their spread between seeds, and no finer. Embeddings of 2,048 numbers leave more to save than these."""
