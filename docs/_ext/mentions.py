"""Link the first mention of a public name on each page to its page in the API reference, in hand-written pages.

A mention is code within a line, `Funnel`, `Funnel.calibrate` or `Funnel(dims, keep)`. Where several modules have the
name, a page about a framework means its own, and every other page the one that comes first.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes

NAME = re.compile(r"(?:matryoshka\.)?([A-Za-z_][\w.]*)(?:\(.*\))?", re.DOTALL)
FRAMEWORKS = {"keras": "keras", "tensorflow": "keras", "sentence_transformers": "sentence_transformers"}
METHODS = {"evaluate": "measure"}
"""Functions whose name is that of a method too, and the page that means the function."""
LISTED = re.compile(r"^   ([A-Za-z][\w.]*)$", re.MULTILINE)


def listed(app: Any) -> None:
    """Read the names that the API reference lists, in the order of its pages."""
    pages = re.findall(r"^api/\w+$", Path(app.srcdir, "api.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    texts = [Path(app.srcdir, f"{page}.md").read_text(encoding="utf-8") for page in pages]
    app.public_names = [name for text in texts for name in LISTED.findall(text)]


def meant(text: str, page: str, public: list[str]) -> str | None:
    """Return the full name that code within a line means, or None if it is no public name."""
    match = NAME.fullmatch(text)
    if match is None:
        return None
    first = match[1].split(".")[0]
    found = [name for name in public if match[1] == name or name.rpartition(".")[2] in {match[1], first}]
    found = [
        name for name in found if match[1] == name or not name.startswith("costs.")
    ]  # search, rerank are methods too
    found = [name for name in found if METHODS.get(name, page) == page]
    exact = [name for name in found if match[1] == name]
    own = [name for name in found if name.startswith(f"{FRAMEWORKS.get(page)}.")]
    for name in [*exact, *own, *found]:
        owner, _, last = name.rpartition(".")
        rest = match[1] if match[1] == name else f"{owner}.{match[1]}" if owner else match[1]
        if last[:1].isupper() or match[1] in {name, last}:
            return f"matryoshka.{rest}"
    return None


def link(app: Any, doctree: nodes.document) -> None:
    """Wrap first mentions in references, which go to the text alone if there is nothing at their end."""
    page = app.env.current_document.docname if hasattr(app.env, "current_document") else app.env.docname
    if "/" in page:  # reference and gallery link by themselves
        return
    seen: set[str] = set()
    for literal in list(doctree.findall(nodes.literal)):
        name = meant(literal.astext(), page, app.public_names)
        inside = any(isinstance(above, nodes.reference | nodes.title) for above in ancestors(literal))
        if name is None or name in seen or inside:
            continue
        seen.add(name)
        target = {"reftype": "obj", "reftarget": name, "refdomain": "py", "refdoc": page, "refwarn": False}
        reference = addnodes.pending_xref("", refexplicit=True, **target)
        literal.replace_self(reference)
        reference += literal


def ancestors(node: nodes.Node) -> list[nodes.Node]:
    """Return what a node stands in, from the inside."""
    found = []
    while (node := node.parent) is not None:
        found.append(node)
    return found


def setup(app: Any) -> dict[str, bool]:
    """Link when a page has been read."""
    app.connect("builder-inited", listed)
    app.connect("doctree-read", link)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
