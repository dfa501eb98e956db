"""Search with a short prefix, rerank with longer ones, and know what that costs and loses.

`Corpus` holds the rows and searches them, `Funnel` is the plan of a search in stages, and `Searchable` is whatever such
a plan can run on.
"""

from matryoshka._promises.certificates import RecallCertificate
from matryoshka.retrieval._bytes import CorpusBytes
from matryoshka.retrieval._figure import FunnelDisplay
from matryoshka.retrieval.corpus import Corpus
from matryoshka.retrieval.funnel import Funnel, FunnelPoint, Searchable

__all__ = ["Corpus", "CorpusBytes", "Funnel", "FunnelDisplay", "FunnelPoint", "RecallCertificate", "Searchable"]
