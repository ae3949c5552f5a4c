"""hf-merge merges fine-tunes of one base component by component and serves the result under a storage budget.

Rooms, from the ground up: `errors`; `recipe` and `merging` (pure tensor algebra); `storing` (disk and Hub, where all
distrust lives); `modeling` (a running transformers model); `searching` (the Pareto front) and `serving` (routing and
recombination); `workflow` (what command line and Python both call). Public names are resolved on first use, so that
importing hf_merge loads nothing heavy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hf_merge.version import VERSION


if TYPE_CHECKING:
    from hf_merge.errors import HfMergeError
    from hf_merge.recipe import Recipe
    from hf_merge.serving.model import MergeModel, MergeOutput, Prediction
    from hf_merge.workflow.build import build
    from hf_merge.workflow.evaluate import evaluate
    from hf_merge.workflow.plan import plan
    from hf_merge.workflow.publish import push
    from hf_merge.workflow.report import report
    from hf_merge.workflow.search import search

__version__ = VERSION
__all__ = [
    "HfMergeError",
    "MergeModel",
    "MergeOutput",
    "Prediction",
    "Recipe",
    "__version__",
    "build",
    "evaluate",
    "plan",
    "push",
    "report",
    "search",
]
_HOMES = {
    "HfMergeError": "hf_merge.errors",
    "Recipe": "hf_merge.recipe",
    "MergeModel": "hf_merge.serving.model",
    "MergeOutput": "hf_merge.serving.model",
    "Prediction": "hf_merge.serving.model",
    "build": "hf_merge.workflow.build",
    "plan": "hf_merge.workflow.plan",
    "evaluate": "hf_merge.workflow.evaluate",
    "push": "hf_merge.workflow.publish",
    "report": "hf_merge.workflow.report",
    "search": "hf_merge.workflow.search",
}


def __getattr__(name: str) -> Any:
    """Returns a public name, importing the module it lives in on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'hf_merge' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Returns the public names."""
    return list(__all__)
