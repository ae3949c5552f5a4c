"""Settings of merge methods and codecs: their ranges, their validation, and how the files that declare them are found.

A method or a codec declares its hyperparameters once. From the declaration follow the defaults, the messages for wrong
values and the canonical form that an expert's identity is made of: every setting present, in declared order, numbers
as floats.
"""

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from reprlib import repr as shorten
from typing import Protocol, TypeVar

from hf_merge.errors import RecipeError, nearest


Setting = float | str
Settings = Mapping[str, Setting]
_EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")


def spelled(setting: Setting) -> str:
    """Returns a setting as people write it: a whole number without a point."""
    return f"{setting:.0f}" if isinstance(setting, float) and setting.is_integer() else str(setting)


def described(entry: Mapping[str, Setting]) -> str:
    """Returns a method or codec with its settings, as `chains.json` has them, in words: `delta (bits 2)`."""
    values = ", ".join(f"{key} {spelled(value)}" for key, value in entry.items() if key != "name")
    return f"{entry['name']} ({values})" if values else str(entry["name"])


@dataclass(frozen=True)
class Hyperparameter:
    """One setting of a merge method or codec: a number in a range, one of several words or numbers, or a name.

    Attributes:
        name: What the recipe calls it; never `name`, which names the method itself.
        default: The value that it has when the recipe leaves it out.
        low: The smallest number allowed; None for no bound, and where there are choices.
        high: The largest number allowed; None for no bound, and where there are choices.
        choices: The words or the numbers allowed; empty for a number in a range.
        help: One sentence that says what it does.
        pattern: The regular expression that a name must match in full, where it is a name; the default need not.
        optional: Whether it is left out of the canonical form at its default: so is what came to a method later, so
            that experts made before keep their names.
        exclusive: Whether `low` and `high` themselves are refused.
        whole: Whether the number must be a whole one.
    """

    name: str
    default: Setting
    low: float | None = None
    high: float | None = None
    choices: tuple[Setting, ...] = ()
    help: str = ""
    pattern: str = ""
    optional: bool = False
    exclusive: bool = False
    whole: bool = False

    def check(self, value: object, owner: str) -> Setting:
        """Returns `value` in canonical form: a word as it is, a number (integers too, booleans not) as a float.

        Args:
            value: What the recipe gives.
            owner: Whose setting it is, for the message: `Merge method 'ties'`.

        Raises:
            RecipeError: The value is none of `choices`, no such name, no finite number, or outside the range.
        """
        if self.pattern:
            if isinstance(value, str) and (value == self.default or re.fullmatch(self.pattern, value)):
                return value
            raise RecipeError(f"{owner}: {self.name} is {shorten(value)}, which is no such name. Leave it out.")
        if self.choices:
            return self._chosen(value, owner)
        if isinstance(value, str) and _EXPONENT.fullmatch(value):
            value = float(value)  # YAML takes 1e-6 for a text, as it has no point
        low = -sys.float_info.max if self.low is None else self.low
        high = sys.float_info.max if self.high is None else self.high
        if isinstance(value, bool) or not isinstance(value, int | float) or not self._allows(value, low, high):
            ends = f"({low:g}, {high:g}), the ends left out" if self.exclusive else f"[{low:g}, {high:g}]"
            raise RecipeError(
                f"{owner}: {self.name} is {shorten(value)}; it must be a {'whole ' if self.whole else ''}number in "
                f"{ends}. Change it, or leave it out for {spelled(self.default)}."
            )
        return float(value) + 0.0  # adding zero turns -0.0 into 0.0: equal settings must be written alike

    def _allows(self, value: float, low: float, high: float) -> bool:
        # Python compares integers of any size with floats exactly, and NaN with nothing: nothing unfit reaches
        # float().
        inside = low < value < high if self.exclusive else low <= value <= high
        return inside and not (self.whole and value % 1)

    def _chosen(self, value: object, owner: str) -> Setting:
        """Returns the one of `choices` that `value` is: a word as it is, a number as a float."""
        if isinstance(value, str | int | float) and not isinstance(value, bool) and value in self.choices:
            return value if isinstance(value, str) else float(value)
        hint, default = nearest(str(value), map(spelled, self.choices)), spelled(self.default)
        raise RecipeError(f"{owner}: {self.name} is {shorten(value)}.{hint} Leave it out for '{default}'.")


@dataclass(frozen=True)
class Spec:
    """A method or codec with every setting: hashable, and equal exactly when it means the same.

    Attributes:
        name: The method's or codec's name.
        settings: Every hyperparameter's name and value, in declared order.
    """

    name: str
    settings: tuple[tuple[str, Setting], ...]

    @property
    def mapping(self) -> dict[str, Setting]:
        """The settings by name."""
        return dict(self.settings)

    def as_json(self) -> dict[str, Setting]:
        """Returns the form written to `chains.json`: the name, then every setting."""
        return {"name": self.name, **self.mapping}


def resolve(
    owner: str, hyperparameters: Sequence[Hyperparameter], given: Mapping[str, object]
) -> tuple[tuple[str, Setting], ...]:
    """Returns every setting in declared order: `given` where it says something, the default elsewhere.

    Optional settings at their default are left out.

    Args:
        owner: Whose settings these are, for the messages: `Merge method 'ties'`.
        hyperparameters: The settings that the owner knows.
        given: The settings that the recipe gives.

    Raises:
        RecipeError: A setting is unknown or has an impossible value; the message names value, range and default.
    """
    known = [parameter.name for parameter in hyperparameters]
    unknown = next((key for key in given if key not in known), None)
    if unknown is not None:
        hint = nearest(str(unknown), known) if known else " It has no settings: remove this one."
        raise RecipeError(f"{owner}: unknown setting '{unknown}'.{hint}")
    checked = (
        (parameter, parameter.check(given.get(parameter.name, parameter.default), owner))
        for parameter in hyperparameters
    )
    return tuple(
        (parameter.name, value)
        for parameter, value in checked
        if not (parameter.optional and value == parameter.default)
    )


class _Named(Protocol):
    """Anything that a registry can hold."""

    @property
    def name(self) -> str:
        """The name that recipes use."""


_Entry = TypeVar("_Entry", bound=_Named)


def discover(package: str, folders: Iterable[str], attribute: str, kind: type[_Entry]) -> dict[str, _Entry]:
    """Returns what the modules of a package declare, by name: one file is one entry, and no list names them.

    Args:
        package: The package's dotted name.
        folders: Where its modules lie (its `__path__`); modules whose name starts with an underscore are helpers and
            skipped.
        attribute: The module variable that holds the entry: `METHOD`.
        kind: The entry's class.

    Raises:
        TypeError: A module declares no such entry, or one under another name than its own.
    """
    found: dict[str, _Entry] = {}
    for name in sorted(info.name for info in iter_modules(folders) if not info.name.startswith("_")):
        entry = getattr(import_module(f"{package}.{name}"), attribute, None)
        if not isinstance(entry, kind) or entry.name != name:
            raise TypeError(
                f"{package}.{name} must define {attribute} = {kind.__name__}(name='{name}', ...); it has {entry!r}."
            )
        found[name] = entry
    return found
