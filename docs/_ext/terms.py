"""Link the first mention of each word of the glossary on a page to its entry, unless the page does so by itself."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from mentions import ancestors
from sphinx import addnodes

FORMS = {  # of words that mean nothing else
    "cascade": "[Cc]ascades?",
    "certificate": "certificates?",
    "confidence": "confidences?",
    "cumulative dimension": "cumulative dimension",
    "disagreement": "disagreement",
    "expected dimension": "expected dimension",
    "FF": "FF",
    "funnel": "[Ff]unnels?",
    "gap": "gap",
    "HNSW": "HNSW",
    "importance": "importances?",
    "IVF": "IVF",
    "ladder": "[Ll]adders?",
    "MRL": "MRL",
    "MRL-E": "MRL-E",
    "multiply-adds": "[Mm]ultiply-adds?",
    "prefix": "[Pp]refix(?:es)?",
    "recall@k": r"recall@\w+",
    "rerank": "rerank(?:s|ed|ings?)?",
    "rotation": "[Rr]otations?",
    "shortlist": "shortlists?",
    "tied": "tied",
}
APART = nodes.reference | nodes.title | nodes.literal | nodes.literal_block | nodes.raw | addnodes.pending_xref


def link(app: Any, doctree: nodes.document) -> None:
    """Wrap first mentions in references to the glossary."""
    page = app.env.current_document.docname if hasattr(app.env, "current_document") else app.env.docname
    if "/" in page or page == "glossary":
        return
    named = {node["reftarget"] for node in doctree.findall(addnodes.pending_xref) if node.get("reftype") == "term"}
    for term in FORMS.keys() - named:
        mention = re.compile(rf"(?<![\w-]){FORMS[term]}(?![\w-])")
        for text in doctree.findall(nodes.Text):
            found = mention.search(text)
            if found and not any(isinstance(above, APART) for above in ancestors(text)):
                wrap(text, found, term, page)
                break


def wrap(text: nodes.Text, found: re.Match[str], term: str, page: str) -> None:
    """Replace a text by what stands before the mention, the mention with its reference, and what follows."""
    target = {"refdomain": "std", "reftype": "term", "reftarget": term, "refdoc": page, "refwarn": True}
    reference = addnodes.pending_xref("", nodes.inline("", found[0]), refexplicit=True, **target)
    parts = [nodes.Text(text[: found.start()]), reference, nodes.Text(text[found.end() :])]
    text.parent.replace(text, [part for part in parts if part.astext()])


def setup(app: Any) -> dict[str, bool]:
    """Link when a page has been read, after its public names were."""
    app.connect("doctree-read", link, priority=600)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
