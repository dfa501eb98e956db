"""Matryoshka representation learning: train, decide, retrieve and measure with nested embeddings.

One embedding is trained so that every prefix of it is a good embedding (Kusupati et al., NeurIPS 2022).
"""

import sys
from importlib import import_module
from types import ModuleType

TYPE_CHECKING = False  # as type checkers read it, without importing typing
if TYPE_CHECKING:
    from matryoshka import costs as costs
    from matryoshka import metrics as metrics
    from matryoshka.audit import Audit as Audit
    from matryoshka.audit import audit as audit
    from matryoshka.cascade import Cascade as Cascade
    from matryoshka.cascade import CascadeEvaluation as CascadeEvaluation
    from matryoshka.cascade import CascadeMonitor as CascadeMonitor
    from matryoshka.embeddings import truncate as truncate
    from matryoshka.evaluation import Evaluation as Evaluation
    from matryoshka.evaluation import evaluate as evaluate
    from matryoshka.losses import info_nce as info_nce
    from matryoshka.losses import info_nce_with_grad as info_nce_with_grad
    from matryoshka.losses import mrl_cross_entropy as mrl_cross_entropy
    from matryoshka.losses import mrl_cross_entropy_with_grad as mrl_cross_entropy_with_grad
    from matryoshka.losses import mrl_e_cross_entropy as mrl_e_cross_entropy
    from matryoshka.losses import mrl_e_cross_entropy_with_grad as mrl_e_cross_entropy_with_grad
    from matryoshka.losses import mrl_logits_cross_entropy as mrl_logits_cross_entropy
    from matryoshka.losses import nested_loss as nested_loss
    from matryoshka.nesting import Nesting as Nesting
    from matryoshka.retrieval import Corpus as Corpus
    from matryoshka.retrieval import Funnel as Funnel
    from matryoshka.retrieval import Searchable as Searchable
    from matryoshka.rotation import Rotation as Rotation

__version__ = "0.2.0"

_HOMES = {
    "Audit": "audit",
    "Cascade": "cascade",
    "CascadeEvaluation": "cascade",
    "CascadeMonitor": "cascade",
    "Corpus": "retrieval",
    "Evaluation": "evaluation",
    "Funnel": "retrieval",
    "Nesting": "nesting",
    "Rotation": "rotation",
    "Searchable": "retrieval",
    "audit": "audit",
    "evaluate": "evaluation",
    "info_nce": "losses",
    "info_nce_with_grad": "losses",
    "mrl_cross_entropy": "losses",
    "mrl_cross_entropy_with_grad": "losses",
    "mrl_e_cross_entropy": "losses",
    "mrl_e_cross_entropy_with_grad": "losses",
    "mrl_logits_cross_entropy": "losses",
    "nested_loss": "losses",
    "truncate": "embeddings",
}
"""The module of each public name, which is imported when the name is first used (PEP 562)."""

_MODULES = ("cascade", "costs", "embeddings", "evaluation", "losses", "metrics", "nesting", "retrieval", "rotation")

__all__ = sorted([*_HOMES, "costs", "metrics"])


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return import_module(f"matryoshka.{name}")
    if name not in _HOMES:
        msg = f"module 'matryoshka' has no attribute {name!r}"
        raise AttributeError(msg, name=name, obj=sys.modules[__name__])
    value = globals()[name] = getattr(import_module(f"matryoshka.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *_MODULES, "__version__"})


class _Package(ModuleType):
    """The type of this package: `audit` remains the function when Python imports the folder of that name."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name == "audit" and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
