"""Settings of Sphinx; `nox -s docs` builds the documentation into docs/_build."""

import logging
import os
import re
import sys
from pathlib import Path

from sphinx_gallery.sorting import ExplicitOrder

import matryoshka

sys.path.insert(0, str(Path(__file__).parent / "_ext"))
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}
logging.getLogger("sentence_transformers").setLevel("WARNING")  # the gallery fetches nothing and shows no progress bar

project = "matryoshka"
author = "the matryoshka authors"
copyright = f"2026, {author}"
version = release = matryoshka.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_argparse_cli",
    "sphinx_gallery.gen_gallery",
    "charts",
    "mathml",
    "mentions",
    "terms",
]
exclude_patterns = ["_build", "gallery", "results"]  # what other pages are made of
templates_path = ["_templates"]
html_theme = "furo"
html_title = project
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_math_renderer = "mathml"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "generated/gallery",
    "abort_on_example_error": True,
    "matplotlib_animations": False,
    "min_reported_time": 15,
    "show_memory": False,
    "show_signature": False,
    "within_subsection_order": ExplicitOrder(
        f"plot_{name}.py"
        for name in ["minilm", "audit", "rotation_and_bits", "fine_tune", "nested_head", "keras", "cascade", "funnel"]
    ),
    "write_computation_times": False,
}

default_role = "py:obj"  # a name in single backticks becomes a link where there is something to link to
autodoc_member_order = "bysource"
autodoc_typehints = "none"
API = "".join(page.read_text(encoding="utf-8") for page in Path(__file__).parent.glob("api/*.md"))
listed = set(re.findall(r"^   (\w[\w.]*)$", API, flags=re.MULTILINE))
autosummary_filename_map = {  # Audit.html and audit.html are one file where case does not count
    f"matryoshka.{name}": f"matryoshka.{name}-class" for name in listed if name.lower() in listed - {name}
}
numpydoc_show_class_members = False
