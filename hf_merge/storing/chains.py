"""`chains.json` read and written: bytes to `ChainMap` and back, strictly (docs/format.md).

`parse` takes only what `dump` could have written: no unknown key, no other type, no name outside the grammar, nothing
that contradicts itself. Nothing here needs torch, so a map can be judged before anything heavy is loaded.
"""

import re
from collections.abc import Mapping
from typing import Any

from hf_merge.errors import MalformedChainMap
from hf_merge.recipe.wording import MOST_ANSWERS, MOST_CHARACTERS, MOST_NEW_TOKENS, Wording, find_fault
from hf_merge.storing import chain_rules
from hf_merge.storing.chain_entries import (
    FORMAT_VERSION,
    LANGUAGE_TYPES,
    MODEL_TYPES,
    ORIGIN,
    BaseRef,
    ChainMap,
    ComponentEntry,
    ExpertEntry,
    FileEntry,
    HeadEntry,
    ModelEntry,
    Settings,
)
from hf_merge.storing.json_fields import Field
from hf_merge.storing.limits import LIMITS
from hf_merge.storing.ordering import in_order, named_first
from hf_merge.storing.strict_json import dumps, loads


__all__ = [
    "BaseRef",
    "ChainMap",
    "ComponentEntry",
    "ExpertEntry",
    "FileEntry",
    "HeadEntry",
    "ModelEntry",
    "Settings",
    "dump",
    "parse",
]

DTYPES = ("float32", "bfloat16", "float16")
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")

_MOST_SETTINGS = 64
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_REPO = re.compile(rf"{_PART}(?:/{_PART})?")
_VERSION = re.compile(r"[0-9][0-9A-Za-z.+!-]{0,63}")
_KEYS = (
    "format_version", "id", "library_version", "base", "cost", "performance", "metrics", "granularity", "dtype",
    "model", "components", "experts", "chains", "heads", "files",
)  # fmt: skip


def parse(data: bytes) -> ChainMap:
    """Returns the chain map in the bytes of a `chains.json`.

    Raises:
        UnknownFormatVersion: It was written in another version of the format.
        MalformedChainMap: It breaks a rule of the format; the message names the place.
        UnsafeName: A name is not one that we would ever write.
        LimitExceeded: Something in it is larger than its limit.
    """
    top = Field(loads(data, ORIGIN, limit_bytes=LIMITS.chain_map_bytes), ORIGIN)
    version = top.check_version(FORMAT_VERSION)
    if version is not None and type(version) is not int:
        raise top.refusal("format_version is no integer")
    fields = top.record(_KEYS)
    model = _model(fields["model"])
    heads = fields["heads"].mapping(LIMITS.chains)
    speaks = model.type in LANGUAGE_TYPES
    chain_map = ChainMap(
        id=fields["id"].name(),
        library_version=fields["library_version"].match(_VERSION, "is no version"),
        base=_base(fields["base"]),
        cost=fields["cost"].cost(),
        performance={task: field.number() for task, field in fields["performance"].mapping(LIMITS.chains).items()},
        metrics={task: field.text() for task, field in fields["metrics"].mapping(LIMITS.chains).items()},
        granularity=fields["granularity"].name(),
        dtype=fields["dtype"].choice(DTYPES),
        model=model,
        components=tuple(_component(field) for field in fields["components"].items(LIMITS.components)),
        experts=tuple(_expert(field) for field in fields["experts"].items(LIMITS.experts)),
        chains={task: _chain(field) for task, field in fields["chains"].mapping(LIMITS.chains).items()},
        heads={} if speaks else {task: _head(field) for task, field in heads.items()},
        files={name: _file(field) for name, field in fields["files"].mapping(LIMITS.files).items()},
        wordings={task: _wording(field) for task, field in heads.items()} if speaks else {},
    )
    if not chain_map.chains:
        raise fields["chains"].refusal("is empty")
    chain_rules.check(chain_map)
    return chain_map


def dump(chain_map: ChainMap) -> bytes:
    """Returns the bytes of the `chains.json` of a chain map: the same for equal maps, and always what `parse` reads.

    Raises:
        UntrustedContentError: The map breaks a rule of the format, as `parse` says.
    """
    if chain_map.heads and chain_map.wordings:
        raise MalformedChainMap(f"{ORIGIN}: heads: a task has either a head or words, and this map holds both.")
    tasks = list(chain_map.chains)
    heads: Mapping[str, object] = chain_map.wordings or chain_map.heads
    document = {
        "format_version": chain_map.format_version,
        "id": chain_map.id,
        "library_version": chain_map.library_version,
        "base": vars(chain_map.base),
        "cost": float(chain_map.cost),
        "performance": {task: float(score) + 0.0 for task, score in in_order(chain_map.performance, tasks).items()},
        "metrics": in_order(chain_map.metrics, tasks),
        "granularity": chain_map.granularity,
        "dtype": chain_map.dtype,
        "model": vars(chain_map.model),
        "components": [vars(component) for component in chain_map.components],
        "experts": [_expert_document(expert) for expert in chain_map.experts],
        "chains": dict(chain_map.chains),
        "heads": {task: vars(head) for task, head in in_order(heads, tasks).items()},
        "files": {name: vars(chain_map.files[name]) for name in sorted(chain_map.files)},
    }
    try:
        data = dumps(document, indent=1)
    except ValueError as error:
        raise MalformedChainMap(f"{ORIGIN}: cannot be written: {error}.") from error
    parse(data)  # what we publish must be what everyone else can read
    return data


def _base(field: Field) -> BaseRef:
    fields = field.record(("repo", "revision", "parameters", "bits"))
    revision = None
    repo = fields["repo"].text()
    if fields["revision"].value is not None:
        revision = fields["revision"].match(_COMMIT, "is no commit: write its 40 hex digits, or null for a local base")
        repo = fields["repo"].match(_REPO, "is no repository of the Hub, as the revision claims")
    return BaseRef(repo, revision, fields["parameters"].integer(1), fields["bits"].integer(1, 64))


def _model(field: Field) -> ModelEntry:
    fields = field.record(("type", "max_length"))
    length = fields["max_length"]
    max_length = None if length.value is None else length.integer(1, 2**31 - 1)
    return ModelEntry(fields["type"].choice(MODEL_TYPES), max_length)


def _component(field: Field) -> ComponentEntry:
    fields = field.record(("name", "tensors"))
    return ComponentEntry(fields["name"].name(), _tensor_names(fields["tensors"]))


def _expert(field: Field) -> ExpertEntry:
    names = ("id", "component", "members", "method", "codec", "codec_settings", "file", "bytes", "reference")
    fields = field.record(names, optional=("reference",))
    method = fields["method"]
    return ExpertEntry(
        id=fields["id"].name(),
        component=fields["component"].name(),
        members=tuple(member.name() for member in fields["members"].items(LIMITS.chains, or_none=True)),
        method=None if method.value is None else _method(method),
        codec={"name": fields["codec"].name()} | _codec_settings(fields["codec_settings"]),
        file=fields["file"].name(),
        bytes=fields["bytes"].integer(1),
        reference=fields["reference"].name() if "reference" in fields else None,
    )


def _method(field: Field) -> Settings:
    fields = field.mapping(_MOST_SETTINGS)
    if "name" not in fields:
        raise field.refusal("lacks 'name'")
    return {"name": fields.pop("name").name()} | {key: _setting(item) for key, item in fields.items()}


def _codec_settings(field: Field) -> dict[str, float | str]:
    fields = field.mapping(_MOST_SETTINGS)
    if "name" in fields:
        raise field.refusal("has 'name', which stands under codec")
    return {key: _setting(item) for key, item in fields.items()}


def _setting(field: Field) -> float | str:
    """Returns a setting as it stands: an expert's identity hangs on whether it is 1 or 1.0."""
    if isinstance(field.value, int | float):
        field.number()
        return field.value
    return field.text()


def _chain(field: Field) -> tuple[str, ...]:
    return tuple(expert.name() for expert in field.items(LIMITS.components))


def _head(field: Field) -> HeadEntry:
    fields = field.record(("num_labels", "labels", "problem_type", "tensors", "file", "bytes"))
    labels = fields["labels"]
    return HeadEntry(
        num_labels=fields["num_labels"].integer(1, LIMITS.labels),
        labels=None if labels.value is None else tuple(label.text() for label in labels.items(LIMITS.labels)),
        problem_type=fields["problem_type"].choice(PROBLEM_TYPES),
        tensors=_tensor_names(fields["tensors"]),
        file=fields["file"].name(),
        bytes=fields["bytes"].integer(1),
    )


def _wording(field: Field) -> Wording:
    fields = field.record(("template", "answers", "max_new_tokens"))
    answers, tokens = fields["answers"], fields["max_new_tokens"]
    wording = Wording(
        fields["template"].prose(MOST_CHARACTERS),
        None if answers.value is None else tuple(item.prose(MOST_CHARACTERS) for item in answers.items(MOST_ANSWERS)),
        None if tokens.value is None else tokens.integer(1, MOST_NEW_TOKENS),
    )
    fault = find_fault(wording)
    if fault is not None:
        raise field.refusal(fault)
    return wording


def _file(field: Field) -> FileEntry:
    fields = field.record(("sha256", "bytes"))
    digest = fields["sha256"].match(_DIGEST, "is no SHA-256: write its 64 hex digits in lower case")
    return FileEntry(digest, fields["bytes"].integer(0))


def _tensor_names(field: Field) -> tuple[str, ...]:
    return tuple(item.tensor_name() for item in field.items(LIMITS.tensors_per_file))


def _expert_document(expert: ExpertEntry) -> dict[str, Any]:
    method = None if expert.method is None else named_first(expert.method)
    codec = named_first(expert.codec)
    document: dict[str, Any] = {
        "id": expert.id,
        "component": expert.component,
        "members": expert.members,
        "method": method,
    }
    document |= {"codec": codec.pop("name"), "codec_settings": codec, "file": expert.file, "bytes": expert.bytes}
    return document if expert.reference is None else document | {"reference": expert.reference}
