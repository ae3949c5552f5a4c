"""What presets of a recipe set (docs/adr/0011, 0016 and 0017), unless it says otherwise."""

from typing import Any, Final


DEFAULT_PRESET: Final = "frontier"
# What each preset sets other than the fields' own values, which are those of the paper.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "fast": {
        "evaluations": 120,
        "surrogate": "random_forest_per_task",
        "screening": "hypervolume",
        "imagined_generations": 15,
        "initial": "ladder",
    },
    "frontier": {
        "population": 24,
        "evaluations": 150,
        "surrogate": "random_forest_per_task",
        "screening": "hypervolume",
        "imagined_generations": 15,
        "initial": "ladder",
    },
    "automerge": {
        "grouping": "merged",
        "evaluations": 200,
        "surrogate": "random_forest_per_task",
        "screening": "hypervolume",
        "imagined_generations": 15,
    },
}
# What AutoMerge chooses among for each component where a recipe names no methods: the techniques of its study, with a
# ladder of their hyperparameters (arXiv 2601.22748; its search draws them from ranges).
AUTOMERGE_METHODS: tuple[str | dict[str, Any], ...] = (
    "average",
    *({"name": "task_arithmetic", "scale": scale} for scale in (0.2, 0.4, 0.6, 0.8, 1.0)),
    *({"name": "ties", "density": density, "scale": scale} for density in (0.2, 0.5) for scale in (0.6, 1.0, 1.5)),
    *({"name": "dare", "density": density, "scale": scale} for density in (0.3, 0.7) for scale in (0.4, 0.8)),
    *({"name": "dare", "density": density, "combine": "ties", "scale": 1.0} for density in (0.3, 0.7)),
    "breadcrumbs",
    *({"name": "tsv", "scale": scale} for scale in (0.75, 1.0, 1.25, 1.5)),
    "wudi",
)
# What preset `frontier` chooses among where a recipe names no methods or no codecs. The first method is the plain
# mean: of all merged models it is the one that the fine-tunes differ least from. Shared experts have a scale for each
# row: what one scale for a whole matrix rounds off is more than what fine-tuning changed, and would be stored again in
# every difference.
FRONTIER_METHODS: tuple[str | dict[str, Any], ...] = (
    "average",
    {"name": "tsv", "scale": 1.0},
    {"name": "task_arithmetic", "scale": 0.4},
)
FRONTIER_CODECS: tuple[str | dict[str, Any], ...] = (
    {"name": "int8", "unit": "row"},
    {"name": "delta", "bits": 2},
    "ternary",
    "sign",
    {"name": "lowrank", "rank": 16},
    {"name": "lowrank", "rank": 8},
    {"name": "lowrank", "rank": 4},
    {"name": "rows", "density": 0.05},
)
# What `merge` says by preset where the recipe leaves it out.
MERGE_PRESETS: dict[str, dict[str, tuple[str | dict[str, Any], ...]]] = {
    "automerge": {"methods": AUTOMERGE_METHODS},
    "frontier": {"methods": FRONTIER_METHODS, "codecs": FRONTIER_CODECS},
}
