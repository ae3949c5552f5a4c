"""What `chains.json` says, as data: a configuration, its components, experts, chains and files (docs/format.md)."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from hf_merge.recipe.wording import Wording


FORMAT_VERSION = 1
LANGUAGE_TYPES = ("causal", "seq2seq")
MODEL_TYPES = ("text", "image", "audio", *LANGUAGE_TYPES)
ORIGIN = "chains.json"
ROUTER_FILE, CONFIG_FILE = "router.safetensors", "config.json"
SETTINGS_FILES = frozenset(
    {
        CONFIG_FILE,
        "generation_config.json",
        "image_processor_config.json",
        "preprocessor_config.json",
        "processor_config.json",
        "video_preprocessor_config.json",
    }
)
TOKENIZER_FILES = frozenset(
    {
        "added_tokens.json",
        "bpe.codes",
        "chat_template.jinja",
        "merges.txt",
        "sentencepiece.bpe.model",
        "special_tokens_map.json",
        "spiece.model",
        "spm.model",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
        "vocab.txt",
    }
)
SHARD_NAME = re.compile(r"experts-([0-9]{5})-of-([0-9]{5})\.safetensors")

Settings: TypeAlias = Mapping[str, float | str]


@dataclass(frozen=True)
class BaseRef:
    """The base that every expert comes from.

    Attributes:
        repo: Its Hub id, or a local folder's name where `revision` is None.
        revision: The commit it was pinned to (40 hex digits), or None for a local folder.
        parameters: d, the parameters of the base backbone as saved; the unit of C.
        bits: Bits of one full-precision parameter in C.
    """

    repo: str
    revision: str | None
    parameters: int
    bits: int


@dataclass(frozen=True)
class ModelEntry:
    """What the model reads.

    Attributes:
        type: `text`, `image` or `audio` for classifiers; `causal` or `seq2seq` for language models, which read text.
        max_length: Tokens after which a text is cut, or None for the tokenizer's own limit, for images and for sounds.
    """

    type: str
    max_length: int | None


@dataclass(frozen=True)
class ComponentEntry:
    """A component: its name and the names on disk of its tensors."""

    name: str
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class ExpertEntry:
    """A stored expert.

    Attributes:
        id: Its identifier, the first part of its tensors' names in the shard.
        component: The name of its component.
        members: The tasks it was merged from and serves; none where it is the base's own weights, for every task.
        method: `name` and every hyperparameter of the merge method, or None for a single member and for the base.
        codec: `name` and every setting of the codec; in JSON the name stands under `codec`, the rest under
            `codec_settings`.
        file: The shard that holds it.
        bytes: Bytes of its tensors in that shard, without the header.
        reference: The id of the shared expert whose difference a residual codec stored; None for other codecs, and
            then not written.
    """

    id: str
    component: str
    members: tuple[str, ...]
    method: Settings | None
    codec: Settings
    file: str
    bytes: int
    reference: str | None = None


@dataclass(frozen=True)
class HeadEntry:
    """A task's head, stored at full precision in a shard beside the experts, as `heads/<task>/<tensor name>`.

    Attributes:
        num_labels: Width of its logits.
        labels: The labels' names in the order of the logits, or None where they have none.
        problem_type: As in transformers: `single_label_classification`, `multi_label_classification` or `regression`.
        tensors: The names of its tensors in the task's own checkpoint.
        file: The shard that holds it.
        bytes: Bytes of its tensors in that shard, without the header.
    """

    num_labels: int
    labels: tuple[str, ...] | None
    problem_type: str
    tensors: tuple[str, ...]
    file: str
    bytes: int


@dataclass(frozen=True)
class FileEntry:
    """What a file of the folder must be: its SHA-256 in hex and its length in bytes."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class ChainMap:
    """One configuration as it is published.

    Attributes:
        id: The configuration's identifier.
        library_version: The hf-merge that wrote it.
        base: The base.
        cost: C, in full-precision base models (Eq. 8).
        performance: P per task on the search's validation rows, in the metric's own unit.
        metrics: The metric's name per task.
        granularity: How the components were cut.
        dtype: The type the weights are decoded to: `float32`, `bfloat16` or `float16`.
        model: What the model reads.
        components: The components in forward order; they share no tensor.
        experts: The experts: those in chains, and those whose differences they store.
        chains: For each task the ids of its experts, one per component, in the components' order. The order of this
            mapping is the order of the tasks, hence of the router's outputs.
        heads: The heads by task; empty where the model needs none.
        wordings: How the tasks are put in words, for language models; they stand in the place of heads in JSON.
        files: Every file of the folder but `chains.json` and `README.md`, by name.
        format_version: The version of this format.
    """

    id: str
    library_version: str
    base: BaseRef
    cost: float
    performance: Mapping[str, float]
    metrics: Mapping[str, str]
    granularity: str
    dtype: str
    model: ModelEntry
    components: tuple[ComponentEntry, ...]
    experts: tuple[ExpertEntry, ...]
    chains: Mapping[str, tuple[str, ...]]
    heads: Mapping[str, HeadEntry]
    files: Mapping[str, FileEntry]
    format_version: int = FORMAT_VERSION
    wordings: Mapping[str, Wording] = field(default_factory=dict)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks, in the order of the router's outputs."""
        return tuple(self.chains)

    def file_bytes(self, prefix: str = "") -> int:
        """Returns the bytes of the files whose names begin with `prefix`."""
        return sum(entry.bytes for name, entry in self.files.items() if name.startswith(prefix))

    @property
    def references(self) -> dict[str, str]:
        """The shared expert of every expert that is stored as a difference, by id."""
        return {expert.id: expert.reference for expert in self.experts if expert.reference is not None}

    def experts_of(self, tasks: Iterable[str]) -> frozenset[str]:
        """Returns the ids of the experts that these tasks need: their chains, and what those are differences from."""
        chained = {identifier for task in tasks for identifier in self.chains[task]}
        shared = self.references
        return frozenset(chained | {shared[identifier] for identifier in chained & shared.keys()})
