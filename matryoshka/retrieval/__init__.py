"""Search with a short prefix, rerank with longer ones, and know what that costs and loses.

`Corpus` holds the rows and searches them; `Funnel` is the plan of a search in stages.
"""

from matryoshka.retrieval._calibration import FunnelPoint, RecallCertificate
from matryoshka.retrieval.corpus import Corpus
from matryoshka.retrieval.funnel import Funnel

__all__ = ["Corpus", "Funnel", "FunnelPoint", "RecallCertificate"]
