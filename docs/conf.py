"""Settings of Sphinx; `nox -s docs` builds the documentation into docs/_build."""

import matryoshka

project = "matryoshka"
author = "the matryoshka authors"
copyright = f"2026, {author}"
version = release = matryoshka.__version__

extensions = ["myst_parser", "numpydoc", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.mathjax"]
exclude_patterns = ["_build", "results"]  # pages include the tables of results
templates_path = ["_templates"]
html_theme = "furo"
html_title = project
html_show_sourcelink = False

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

default_role = "py:obj"  # a name in single backticks becomes a link where there is something to link to
autodoc_member_order = "bysource"
autodoc_typehints = "none"
numpydoc_show_class_members = False
