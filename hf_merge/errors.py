"""Every exception that hf-merge raises on purpose.

    HfMergeError                        exit 1
    ├── InputError                      exit 2   something the caller gave; the message says what to change
    │   ├── RecipeError                 a setting: unknown, out of range, or clashing with another
    │   ├── ModelMismatch               checkpoints that are not fine-tunes of one base
    │   ├── CheckpointDamaged           a checkpoint folder that lacks files, or whose files disagree
    │   ├── PickleRefused               a checkpoint that holds pickles only
    │   ├── NonFiniteWeights            NaN or infinity in a checkpoint
    │   ├── UnsupportedArchitecture     a model type or task class that we cannot assemble
    │   ├── DatasetError                data without the split, column, rows or labels that a task needs
    │   ├── BudgetError                 a budget that is no storage size
    │   │   └── BudgetTooSmall          a budget below the cheapest configuration
    │   ├── RunFolderError              a folder that is not ours, is busy, or holds another run
    │   └── UntrustedContentError       content from outside that breaks a rule of the format
    │       ├── MalformedChainMap
    │       ├── DigestMismatch
    │       ├── UnsafeName
    │       ├── LimitExceeded
    │       └── UnknownFormatVersion
    ├── HubError                        exit 4   the Hub: not found, no right, not reachable
    ├── ResourceError                   exit 5   disk or memory
    └── WorkerError                     exit 7   a rank died or hung

Everything the caller can mend exits with 2 (docs/adr/0002-exit-codes.md). Exit 1 without one of these is our bug.
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from math import ceil


_SHOWN_NAMES = 5


class HfMergeError(Exception):
    """The base of every exception raised on purpose; `exit_code` is what the command line returns."""

    exit_code = 1


class InputError(HfMergeError):
    """Something the caller gave cannot be used; the message says what to change."""

    exit_code = 2


class RecipeError(InputError):
    """A setting is unknown, out of range, or clashes with another."""


class ModelMismatch(InputError):
    """The checkpoints are not fine-tunes of one base; the message lists every clash."""


class CheckpointDamaged(InputError):
    """A checkpoint folder lacks files, or its files disagree with each other."""


class PickleRefused(InputError):
    """A checkpoint holds pickled weights only, which are never opened."""


class NonFiniteWeights(InputError):
    """A checkpoint holds NaN or infinite weights."""


class UnsupportedArchitecture(InputError):
    """The model type or its task class cannot be assembled by this version."""


class DatasetError(InputError):
    """A task's data lack the split, column, rows or labels that the task needs."""


class BudgetError(InputError):
    """The budget is no storage size."""


class BudgetTooSmall(BudgetError):
    """The budget lies below the cheapest configuration.

    Attributes:
        asked: The budget asked for, in the unit of C (1.0 = one full-precision base model).
        least: The cost of the cheapest configuration, same unit.
        configuration: The identifier of that configuration.
    """

    def __init__(self, asked: float, least: float, configuration: str) -> None:
        self.asked, self.least, self.configuration = asked, least, configuration
        enough = ceil(least * 10_000) / 10_000  # rounded up, so that the budget advised is accepted
        super().__init__(
            f"No configuration fits the budget {asked:g}: the cheapest, {configuration}, costs {least:.4f}. "
            f"Ask for budget={enough:.4f} or more."
        )


class RunFolderError(InputError):
    """The folder is not a run of ours, is busy, or holds another run."""


class UntrustedContentError(InputError):
    """Content from outside breaks a rule of the format and was not used."""


class MalformedChainMap(UntrustedContentError):
    """A `chains.json` or `front.json` does not follow docs/format.md."""


class DigestMismatch(UntrustedContentError):
    """A file's bytes are not those that its digest promises."""


class UnsafeName(UntrustedContentError):
    """A name from outside is not one that we would ever write."""


class LimitExceeded(UntrustedContentError):
    """Something from outside is larger than its stated limit."""


class UnknownFormatVersion(UntrustedContentError):
    """The folder was written in a format that this version does not read."""


class HubError(HfMergeError):
    """The Hub refused, does not have it, or cannot be reached."""

    exit_code = 4


class ResourceError(HfMergeError):
    """Disk or memory does not suffice."""

    exit_code = 5


class WorkerError(HfMergeError):
    """A rank of a distributed run died or hung."""

    exit_code = 7


def nearest(word: str, choices: Iterable[str]) -> str:
    """Returns the end of an error message: those of `choices` that begin with `word` or the nearest, then all."""
    known = sorted(choices)
    longer = [choice for choice in known if word and choice.startswith(word)]
    close = longer if 0 < len(longer) <= _SHOWN_NAMES else get_close_matches(word, known, n=1, cutoff=0.5)
    meant = " or ".join(f"'{choice}'" for choice in close)
    hint = f" Did you mean {meant}?" if close else ""
    return f"{hint} Known: {', '.join(known)}."


def some(names: Sequence[str]) -> str:
    """Returns the first few of many names, and how many more there are."""
    shown = ", ".join(names[:_SHOWN_NAMES])
    return shown if len(names) <= _SHOWN_NAMES else f"{shown}, ... ({len(names) - _SHOWN_NAMES} more)"
