"""What the user asked for: the recipe, read from YAML and validated before anything is loaded.

A recipe names the base, the tasks (fine-tuned checkpoint, data, metric), how to merge, how to search and how to train
the router. Unknown keys and impossible values are refused, all of them at once, each with its place and the nearest
known name.
"""

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from hf_merge.errors import RecipeError, nearest
from hf_merge.recipe.data import NAME, DataSpec, Section
from hf_merge.recipe.faults import faults
from hf_merge.recipe.merging import MergeSpec, settings_of
from hf_merge.recipe.presets import DEFAULT_PRESET, MERGE_PRESETS, PRESETS


__all__ = [
    "METRICS", "PRESETS", "BaseSpec", "DataSpec", "MergeSpec", "Recipe", "RouterSpec", "SearchSpec", "TaskSpec",
    "differences", "settings_of",
]  # fmt: skip

METRICS = ("accuracy", "matthews", "f1", "pearson_spearman", "exact_match")
MAX_RECIPE_BYTES = 1 << 20
_OPTIONAL = ("merge", "search", "router")


class BaseSpec(Section):
    """The pre-trained checkpoint: a Hub id or a local folder, and the revision to pin."""

    model: str = Field(min_length=1)
    revision: str | None = None


class TaskSpec(Section):
    """One task: a name, the checkpoint or the peft adapter trained for it, its data and its metric.

    `labels` names the classes in the order of the head's outputs, where the checkpoint does not: adapters never do.
    `weight` is how much the task counts where a merge method fits coefficients.
    """

    name: str = Field(pattern=NAME)
    model: str | None = Field(default=None, min_length=1)
    adapter: str | None = Field(default=None, min_length=1)
    revision: str | None = None
    data: DataSpec
    metric: str = "accuracy"
    labels: tuple[str, ...] | None = None
    weight: float = Field(default=1.0, gt=0, le=1000)

    @property
    def source(self) -> str:
        """The Hub id or folder of what was trained for the task."""
        return self.model or self.adapter or ""

    @property
    def source_key(self) -> str:
        """Under which key the source stands: `model` or `adapter`."""
        return "model" if self.model is not None else "adapter"

    @model_validator(mode="after")
    def _one_source(self) -> "TaskSpec":
        if (self.model is None) == (self.adapter is None):
            raise ValueError("name either a 'model' (a fine-tuned checkpoint) or an 'adapter' (of peft), and not both")
        return self

    @model_validator(mode="before")
    @classmethod
    def _metric_of_texts(cls, given: object) -> object:
        if isinstance(given, dict) and isinstance(given.get("data"), dict) and given["data"].get("target") is not None:
            return {"metric": "exact_match"} | given
        return given

    @model_validator(mode="after")
    def _metric_that_fits(self) -> "TaskSpec":
        if (self.metric == "exact_match") != (self.data.target is not None):
            raise ValueError(f"the metric '{self.metric}' does not fit: 'exact_match' goes with data.target, no other")
        return self

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, metric: str) -> str:
        if metric not in METRICS:
            raise ValueError(f"unknown metric '{metric}'.{nearest(metric, METRICS)}")
        return metric


class SearchSpec(Section):
    """How the Pareto front is searched: the preset's settings, where the recipe does not say otherwise.

    The values below are those of preset `paper`; `PRESETS` has what others change in them.

    `surrogate: none` really evaluates every offspring; `initial: random` replaces the k-means population. Both exist
    as baselines. `grouping: merged` keeps all tasks in one group everywhere, so that the methods alone are searched.
    `deviation` has tasks count more in P whose score is far from the mean, at most `1 + deviation` times (AutoMerge).
    """

    preset: Literal["paper", "fast", "automerge", "frontier"] = DEFAULT_PRESET
    grouping: Literal["free", "merged"] = "free"
    population: int = Field(default=20, ge=4, le=1000)
    evaluations: int = Field(default=300, ge=1)
    offspring: int = Field(default=100, ge=4, le=10_000)
    validation_rows: int = Field(default=512, ge=1)
    batch_size: int = Field(default=32, ge=1, le=4096)
    max_length: int | None = Field(default=None, ge=4)
    dtype: Literal["float32", "bfloat16"] = "float32"
    surrogate: Literal["random_forest", "random_forest_per_task", "none"] = "random_forest"
    screening: Literal["front", "hypervolume"] = "front"
    imagined_generations: int = Field(default=0, ge=0, le=1000)
    initial: Literal["kmeans", "ladder", "random"] = "kmeans"
    deviation: float = Field(default=0.0, ge=0, le=100)
    seed: int = Field(default=0, ge=0, le=2**32 - 1)

    @model_validator(mode="before")
    @classmethod
    def _settings_of_the_preset(cls, given: object) -> object:
        if not isinstance(given, dict):
            return given
        preset = given.get("preset", DEFAULT_PRESET)
        return PRESETS.get(preset, {}) | given if isinstance(preset, str) else given

    @model_validator(mode="after")
    def _enough_evaluations(self) -> "SearchSpec":
        if self.evaluations < self.population:
            raise ValueError(
                f"evaluations ({self.evaluations}) below the population ({self.population}): the first generation "
                f"alone needs {self.population}; raise evaluations or lower population"
            )
        return self


class RouterSpec(Section):
    """How the router is trained; `layers` is the number of pre-trained blocks its features pass, or `all`.

    `layers: auto` takes 0 (the embedding layer) for text and `all` for images and sounds.
    """

    rows_per_task: int = Field(default=1000, ge=2)
    epochs: int = Field(default=30, ge=1)
    learning_rate: float = Field(default=5e-4, gt=0, lt=1)
    layers: int | Literal["auto", "all"] = "auto"

    @field_validator("layers", mode="before")
    @classmethod
    def _known_layers(cls, layers: object) -> object:
        if layers in ("auto", "all") or (isinstance(layers, int) and not isinstance(layers, bool) and layers >= 0):
            return layers
        raise ValueError("should be a number of blocks, 0 or more, or 'auto' or 'all'")


class Recipe(Section):
    """The whole request, immutable; `Recipe.load` reads it from a file."""

    base: BaseSpec
    tasks: tuple[TaskSpec, ...] = Field(min_length=1, max_length=64)
    merge: MergeSpec = MergeSpec()
    search: SearchSpec = SearchSpec()
    router: RouterSpec = RouterSpec()

    @model_validator(mode="before")
    @classmethod
    def _merge_of_the_preset(cls, given: object) -> object:
        if not isinstance(given, dict):
            return given
        # A section whose lines are all comments is there, with nothing in it.
        given = {key: value for key, value in given.items() if value is not None or key not in _OPTIONAL}
        if not isinstance(given.get("search", {}), dict):
            return given
        merge, preset = given.get("merge", {}), given.get("search", {}).get("preset", DEFAULT_PRESET)
        if isinstance(merge, dict) and isinstance(preset, str) and preset in MERGE_PRESETS:
            return {**given, "merge": {**MERGE_PRESETS[preset], **merge}}
        return given

    @field_validator("tasks")
    @classmethod
    def _distinct_names(cls, tasks: tuple[TaskSpec, ...]) -> tuple[TaskSpec, ...]:
        names = [task.name for task in tasks]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(f"two tasks of one name: {', '.join(doubled)}; give each its own")
        return tasks

    @classmethod
    def load(cls, path: Path) -> "Recipe":
        """Returns the recipe in a YAML file.

        Raises:
            RecipeError: The file is missing, no YAML mapping, or breaks a rule; every broken rule is listed.
        """
        text = _read(path)
        try:
            document = yaml.load(text, Loader=_PlainLoader)
        except RecursionError as error:
            raise RecipeError(f"{path} nests its values too deeply; is it a recipe?") from error
        except _Refused as error:
            raise RecipeError(f"The recipe {path} cannot be used: {' '.join(str(error).split())}.") from error
        except (yaml.YAMLError, ValueError) as error:  # the second: numbers, dates and bytes that are none
            hint = ". Quote values that hold brackets or a colon" if isinstance(error, yaml.MarkedYAMLError) else ""
            raise RecipeError(f"{path} is no valid YAML: {' '.join(str(error).split())}{hint}.") from error
        return cls.parse(document, str(path))

    @classmethod
    def parse(cls, document: object, origin: str) -> "Recipe":
        """Returns the recipe in a parsed document; `origin` names it in error messages.

        Raises:
            RecipeError: The document breaks a rule; every broken rule is listed.
        """
        if not isinstance(document, dict):
            what = "nothing" if document is None else f"a {type(document).__name__}"
            raise RecipeError(f"{origin} holds {what} where a mapping with 'base' and 'tasks' is needed.")
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            lines = "\n  ".join(faults(error, cls))
            raise RecipeError(f"The recipe {origin} cannot be used:\n  {lines}") from error

    def dump(self) -> str:
        """Returns the recipe as YAML text, every setting written out, the same bytes for equal recipes."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def differences(first: Recipe, second: Recipe) -> list[str]:
    """Returns one line per setting in which two recipes differ: `search.seed: 0 and 1`."""
    left, right = _flatten(first.model_dump(mode="json")), _flatten(second.model_dump(mode="json"))
    missing = object()
    return [
        f"{key}: {left.get(key, '(absent)')} and {right.get(key, '(absent)')}"
        for key in sorted(left | right)
        if left.get(key, missing) != right.get(key, missing)
    ]


def _read(path: Path) -> bytes:
    """Returns the bytes of a recipe; of a larger file no more are read than it takes to refuse it."""
    if path.exists() and not path.is_file():
        raise RecipeError(f"The recipe {path} is no regular file. Give the path of a YAML file.")
    try:
        with path.open("rb") as file:
            text = file.read(MAX_RECIPE_BYTES + 1)
    except OSError as error:
        raise RecipeError(f"Cannot read the recipe {path}: {error.strerror}. Give the path of a YAML file.") from error
    if len(text) > MAX_RECIPE_BYTES:
        raise RecipeError(f"The recipe {path} is larger than {MAX_RECIPE_BYTES} bytes; is it a recipe?")
    return text


class _Refused(yaml.MarkedYAMLError):
    """Valid YAML that a recipe does not take."""


class _PlainLoader(yaml.SafeLoader):
    """Reads YAML like SafeLoader, but refuses a key given twice instead of keeping the last, and anchors.

    Aliases of aliases let a few lines stand for more text than fits in memory, as soon as a message shows them.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        name = getattr(event, "anchor", None)
        if name is not None:
            sign = "*" if isinstance(event, yaml.AliasEvent) else "&"
            problem = f"a recipe takes no anchors and aliases ('{sign}{name:.40}'): write the value out in each place"
            raise _Refused(problem=problem, problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise _Refused(problem=f"the key '{key}' is given twice", problem_mark=key_node.start_mark)
            seen.add(key if isinstance(key, str) else None)
        return super().construct_mapping(node, deep)


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Returns nested mappings and lists as one mapping from dotted path to leaf."""
    if isinstance(value, dict):
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list):
        items = [(str(index), item) for index, item in enumerate(value)]
    else:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in items:
        flat |= _flatten(item, f"{prefix}.{key}" if prefix else key)
    return flat
