"""peft adapters on disk, (IA)3 and LoRA: their settings judged, their tensors found and read.

An adapter holds vectors (`ia3_l`), pairs of factors (`lora_A`, `lora_B`) and whole tensors: heads, and biases or other
modules that were trained beside. What another program would have to be trusted for is refused: pickled adapters,
and kinds whose meaning is not in the tensors alone.

Source: (IA)3, arXiv 2205.05638; LoRA, arXiv 2106.09685; rsLoRA, arXiv 2312.03732.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from hf_merge.errors import CheckpointDamaged, ModelMismatch, PickleRefused
from hf_merge.merging.factors import A_SUFFIX, B_SUFFIX
from hf_merge.storing.digests import KeptDigests
from hf_merge.storing.headers import TensorSpec
from hf_merge.storing.limits import LIMITS
from hf_merge.storing.repo_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from hf_merge.storing.strict_json import quote, read_json
from hf_merge.storing.tensors import SafetensorsFile


VECTOR_SUFFIX = ".ia3_l"
_PREFIX = "base_model.model."
_KINDS = {"IA3": "(IA)3", "LORA": "LoRA"}
# Of LoRA's many variants, those whose update is not the product of two factors and a scale.
_VARIANTS = {
    "use_dora": "DoRA also rescales every column by a trained magnitude",
    "lora_bias": "biases inside the update are not supported",
    "layer_replication": "it runs layers of the base several times",
    "trainable_token_indices": "single rows of an embedding are not supported",
    "alora_invocation_tokens": "activated LoRA depends on the tokens of the prompt",
    "target_parameters": "updates of bare parameters are not supported",
    "use_bdlora": "block-diagonal LoRA is not supported",
    "use_qalora": "quantisation-aware LoRA pools its inputs",
    "monteclora_config": "it draws its weights at random",
    "velora_config": "it projects its inputs",
    "arrow_config": "it routes between other adapters",
}
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
_PLAIN_PATTERN = re.compile(r"\^?[\w.\\-]+\$?")


@dataclass(frozen=True)
class Scale:
    """What LoRA multiplies its products by, module by module.

    Attributes:
        alpha: `lora_alpha`.
        patterns: Other values of alpha, by the end of a module's path.
        rank_stabilised: Whether alpha is divided by the root of the rank instead of the rank.
    """

    alpha: float
    patterns: Mapping[str, float]
    rank_stabilised: bool

    def of(self, module: str, rank: int) -> float:
        """Returns the scale of a module's update of the given rank."""
        alpha = next((value for end, value in self.patterns.items() if _ends(module, end)), self.alpha)
        return alpha / (sqrt(rank) if self.rank_stabilised else rank)


class Adapter:
    """An adapter folder opened for reading.

    Attributes:
        source: The Hub id or path that the user gave.
        revision: The commit it is pinned to, or None for a local folder.
        folder: Where it lies.
        kind: `(IA)3` or `LoRA`.
        trained_on: What it says its base is, or None: a Hub id, or a path of whoever trained it.
        transposed: Whether its targets keep their weights [in, out], as GPT-2's do.
        scale: LoRA's scale; None for (IA)3.
        specs: Its tensors, by name without peft's prefix.
    """

    def __init__(self, source: str, folder: Path, revision: str | None = None) -> None:
        """Opens an adapter folder and reads its settings and header.

        Raises:
            CheckpointDamaged: A file is missing or no adapter's.
            PickleRefused: The weights are pickled.
            ModelMismatch: It is of a kind that is not merged; the message says why.
        """
        self.source, self.folder, self.revision = source, folder, revision
        settings = _read_settings(folder, source)
        self.kind = _kind(settings, source)
        self.trained_on: str | None = settings.get("base_model_name_or_path") or None
        self.transposed = settings.get("fan_in_fan_out") is True
        self.scale = _scale(settings, source) if self.kind == "LoRA" else None
        self._file, self._digests = SafetensorsFile(folder / ADAPTER_WEIGHTS), KeptDigests()
        self._keys = {name.removeprefix(_PREFIX): name for name in self._file.specs}
        self.specs: dict[str, TensorSpec] = {short: self._file.specs[name] for short, name in self._keys.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; reading afterwards is an error."""
        self._file.close()

    def read(self, name: str, out: Tensor | None = None) -> Tensor:
        """Returns a tensor as float32, unscaled, in `out` where it is given (same number of elements, contiguous)."""
        return self._file.read_float32(self._keys[name], out)

    def digest(self) -> str:
        """Returns the SHA-256 over its weights and its settings, which scale them."""
        parts = (self.folder / ADAPTER_WEIGHTS, self.folder / ADAPTER_CONFIG)
        return hashlib.sha256(b"".join(bytes.fromhex(self._digests.of(path)) for path in parts)).hexdigest()

    def modules(self) -> dict[str, tuple[str, ...]]:
        """Returns the tensors that act on each module, by the module's path as the adapter has it.

        Raises:
            CheckpointDamaged: A factor stands alone, or has rank 0.
        """
        found: dict[str, tuple[str, ...]] = {}
        for name, spec in self.specs.items():
            if name.endswith(VECTOR_SUFFIX):
                found[name.removesuffix(VECTOR_SUFFIX)] = (name,)
            elif name.endswith(A_SUFFIX):
                module = name.removesuffix(A_SUFFIX)
                partner = self.specs.get(module + B_SUFFIX)
                if partner is None or len(spec.shape) != 2 or spec.shape[0] != partner.shape[-1]:
                    other = "missing" if partner is None else list(partner.shape)
                    raise CheckpointDamaged(
                        f"{self.source}: '{name}' {list(spec.shape)} and its partner ({other}) are no two factors. "
                        "Save the adapter anew."
                    )
                if not spec.shape[0]:
                    raise CheckpointDamaged(f"{self.source}: '{name}' has rank 0, so there is no update to merge.")
                found[module] = (name, module + B_SUFFIX)
        return found

    def whole(self) -> tuple[str, ...]:
        """Returns the names of the tensors that stand for themselves: heads, biases, modules trained beside.

        Raises:
            ModelMismatch: A tensor belongs to a kind of update that is not supported.
        """
        strange = next((name for name in self.specs if re.search(r"\.(lora|ia3)_(?!(l|[AB]\.weight)$)", name)), None)
        if strange is not None:
            raise ModelMismatch(
                f"{self.source}: '{strange}' is part of an update that is not supported (of an embedding, or of a "
                "variant of LoRA). Merge the adapter into its base with peft and give the result as `model`."
            )
        parts = {part for names in self.modules().values() for part in names}
        alone = next((name for name in self.specs if name.endswith(B_SUFFIX) and name not in parts), None)
        if alone is not None:
            raise CheckpointDamaged(
                f"{self.source}: '{alone}' has no partner '{A_SUFFIX[1:]}'. Save the adapter anew."
            )
        return tuple(name for name in self.specs if name not in parts)


def _read_settings(folder: Path, source: str) -> dict[str, Any]:
    path = folder / ADAPTER_CONFIG
    if not path.is_file():
        what = "a whole model: give it as `model`" if (folder / "config.json").is_file() else "no adapter"
        raise CheckpointDamaged(f"{source}: there is no {ADAPTER_CONFIG} in {folder}; it holds {what}.")
    settings = read_json(path, LIMITS.config_bytes)
    if not isinstance(settings, dict):
        raise CheckpointDamaged(f"{source}: {ADAPTER_CONFIG} holds {type(settings).__name__} where a mapping must be.")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        pickled = next((name for name in ("adapter_model.bin", "adapter_model.pt") if (folder / name).exists()), None)
        if pickled is not None:
            raise PickleRefused(
                f"{source}: {pickled} is pickled, and loading it could run any code. Save the adapter with "
                "safetensors (peft does by default), or ask its author to."
            )
        raise CheckpointDamaged(
            f"{source}: there is no {ADAPTER_WEIGHTS} in {folder}. Fetch or copy the folder again."
        )
    return settings


def _kind(settings: Mapping[str, Any], source: str) -> str:
    """Returns the kind of an adapter, and refuses those that are not merged."""
    kind = settings.get("peft_type")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ModelMismatch(
            f"{source}: an adapter of kind {quote(str(kind))}; (IA)3 and LoRA can be merged. Merge it into its base "
            "with peft and give the result as `model`."
        )
    variant = next((name for name in _VARIANTS if kind == "LORA" and settings.get(name)), None)
    if variant is not None:
        raise ModelMismatch(
            f"{source}: {variant} is set in {ADAPTER_CONFIG}: {_VARIANTS[variant]}. Merge the adapter into its base "
            "with peft and give the result as `model`."
        )
    start = settings.get("init_lora_weights")
    if kind == "LORA" and start not in _PLAIN_STARTS:
        raise ModelMismatch(
            f"{source}: init_lora_weights is {quote(str(start))}, which changed the base's weights before training. "
            "Convert the adapter to an ordinary one when saving it (path_initial_model_for_weight_conversion in peft)."
        )
    return _KINDS[kind]


def _scale(settings: Mapping[str, Any], source: str) -> Scale:
    """Returns LoRA's scale.

    Raises:
        CheckpointDamaged: The rank or alpha is no positive number, or a pattern is none that we read.
    """
    rank, alpha, patterns = settings.get("r"), settings.get("lora_alpha"), settings.get("alpha_pattern") or {}
    for name, value in (("r", rank), ("lora_alpha", alpha)):
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            raise CheckpointDamaged(f"{source}: {name} is {value!r:.40} in {ADAPTER_CONFIG}; it must be above 0.")
    if not isinstance(patterns, dict):
        raise CheckpointDamaged(
            f"{source}: alpha_pattern is {patterns!r:.40} in {ADAPTER_CONFIG}; it must map ends of modules' paths to "
            "numbers. Save the adapter anew."
        )
    odd = next((key for key, value in patterns.items() if not _is_plain(key, value)), None)
    if odd is not None:
        raise CheckpointDamaged(
            f"{source}: alpha_pattern has {quote(str(odd))}: {patterns[odd]!r:.40}, where the end of a module's path "
            "and a number are read."
        )
    ends = {key.replace("\\.", ".").removesuffix("$"): float(value) for key, value in patterns.items()}
    return Scale(float(alpha or 0), ends, settings.get("use_rslora") is True)


def _is_plain(key: object, value: object) -> bool:
    return isinstance(key, str) and _PLAIN_PATTERN.fullmatch(key) is not None and isinstance(value, int | float)


def _ends(module: str, end: str) -> bool:
    """Returns whether a module's path is, or ends in, what a pattern says; `^` stands for the beginning."""
    if end.startswith("^"):
        return module == end[1:]
    return module == end or module.endswith(f".{end}")
