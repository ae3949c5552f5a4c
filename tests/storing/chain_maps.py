"""A small chain map that keeps every rule, and its JSON to break rules in."""

import json
from collections.abc import Callable
from functools import cache
from typing import Any

from hf_merge.storing import chains
from hf_merge.storing.chains import (
    BaseRef,
    ChainMap,
    ComponentEntry,
    ExpertEntry,
    FileEntry,
    HeadEntry,
    ModelEntry,
    Settings,
)


Edit = Callable[[dict[str, Any]], object]

SHARDS = ("experts-00001-of-00002.safetensors", "experts-00002-of-00002.safetensors")
TIES: Settings = {"name": "ties", "density": 0.2, "scale": 1.0}
INT8: Settings = {"name": "int8", "policy": "criterion", "unit": "tensor"}


def sample() -> ChainMap:
    """Returns a configuration of two components and three tasks: one shared, one grouped, one alone."""
    digest = "0123456789abcdef" * 4
    return ChainMap(
        id="c0359-2f9a1c",
        library_version="0.1.0",
        base=BaseRef("org/base", "0123456789" * 4, 22_713_216, 32),
        cost=0.359,
        performance={"sst2": 0.91, "trec": -0.25, "qqp": 1.0},
        metrics={"sst2": "accuracy", "trec": "matthews", "qqp": "f1"},
        granularity="type",
        dtype="float32",
        model=ModelEntry("text", 128),
        components=(
            ComponentEntry("attention", ("encoder.layer.0.attention.weight", "encoder.layer.0.attention.bias")),
            ComponentEntry("mlp", ("encoder.layer.0.mlp.weight",)),
        ),
        experts=(
            ExpertEntry("attention-a1", "attention", ("sst2", "trec", "qqp"), TIES, INT8, SHARDS[0], 123),
            ExpertEntry("mlp-b1", "mlp", ("sst2", "qqp"), {"name": "average"}, INT8, SHARDS[0], 77),
            ExpertEntry("mlp-b2", "mlp", ("trec",), None, {"name": "full"}, SHARDS[1], 400),
        ),
        chains={
            "sst2": ("attention-a1", "mlp-b1"),
            "trec": ("attention-a1", "mlp-b2"),
            "qqp": ("attention-a1", "mlp-b1"),
        },
        heads={
            "sst2": HeadEntry(
                2, ("négatif", "positif"), "single_label_classification", ("classifier.weight",), SHARDS[0], 8
            ),
            "trec": HeadEntry(
                6, None, "single_label_classification", ("classifier.weight", "classifier.bias"), SHARDS[0], 24
            ),
            "qqp": HeadEntry(1, None, "regression", ("classifier.weight",), SHARDS[1], 4),
        },
        files={
            "config.json": FileEntry(digest, 600),
            SHARDS[0]: FileEntry(digest, 1000),
            SHARDS[1]: FileEntry(digest, 900),
            "router.safetensors": FileEntry(digest, 60),
            "tokenizer.json": FileEntry(digest, 70),
            "merges.txt": FileEntry(digest, 0),
        },
    )


@cache
def sample_bytes() -> bytes:
    """Returns the `chains.json` of `sample()`."""
    return chains.dump(sample())


def document() -> dict[str, Any]:
    """Returns the JSON document of `sample()`, fresh."""
    read: dict[str, Any] = json.loads(sample_bytes())
    return read


def edited(edit: Edit) -> bytes:
    """Returns `sample()` as JSON after an edit of its document."""
    changed = document()
    edit(changed)
    return json.dumps(changed).encode()


def put(*path: str | int, value: object) -> Edit:
    """Returns an edit that puts `value` at `path`."""

    def edit(changed: Any) -> None:
        for key in path[:-1]:
            changed = changed[key]
        changed[path[-1]] = value

    return edit


def drop(*path: str | int) -> Edit:
    """Returns an edit that removes what is at `path`."""

    def edit(changed: Any) -> None:
        for key in path[:-1]:
            changed = changed[key]
        del changed[path[-1]]

    return edit


def differing(changed: dict[str, Any]) -> None:
    """Has the experts of `mlp` be differences from a shared expert, which is none of any chain."""
    first, second = changed["experts"][1:3]
    shared = first | {"id": "mlp-s", "members": list(changed["chains"])}
    changed["experts"] = [
        changed["experts"][0], shared, *(each | {"reference": "mlp-s"} for each in (first, second))
    ]  # fmt: skip


def both(*edits: Edit) -> Edit:
    """Returns an edit that makes several edits."""

    def edit(changed: dict[str, Any]) -> None:
        for one in edits:
            one(changed)

    return edit
