"""Language models as tasks' models: one head for all tasks, what a model says when it writes, and untied heads.

A model's own `generation_config.json` is not used: what is written depends on the weights, the prompt and the options
that the caller gives, and by default is the likeliest token, one after the other.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from transformers import GenerationConfig

from hf_merge.errors import CheckpointDamaged, UnsupportedArchitecture
from hf_merge.merging.components import Shape
from hf_merge.modeling.assembly import CLASSIFIERS, Head, Kind, TaskModel
from hf_merge.modeling.skeletons import Slot


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TOKENS = (
    "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id",
    "forced_eos_token_id",
)  # fmt: skip


@dataclass(frozen=True)
class SpecialTokens:
    """What a tokenizer pads and ends with, for models whose configuration does not say.

    Attributes:
        pad: The token that texts are padded with; None where no texts are padded, as for images.
        eos: The token that ends a text; None where there is none.
    """

    pad: int | None = None
    eos: int | None = None

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase | None") -> "SpecialTokens":
        """Returns those of a tokenizer, which may be none."""
        return cls(getattr(tokenizer, "pad_token_id", None), getattr(tokenizer, "eos_token_id", None))


def task_model(
    config: Mapping[str, Any],
    kind: Kind,
    head: Head,
    tokens: SpecialTokens,
    names: Iterable[str],
    trunk: str,
    adapter: Mapping[str, Shape] = MappingProxyType({}),
) -> TaskModel:
    """Returns a task's model without weights, whatever its kind.

    Args:
        config: The base's `config.json`.
        kind: What the task reads, and how it answers.
        head: What it answers.
        tokens: What its tokenizer pads and ends with.
        names: The names of the backbone tensors that it will be given, as on the base's disk.
        trunk: The base's trunk.
        adapter: The shapes of the adapters' own tensors among them.

    Raises:
        UnsupportedArchitecture: transformers has no class of this kind for the model type.
        CheckpointDamaged: The configuration describes no model, or an encoder-decoder that cannot begin to write.
    """
    if kind in CLASSIFIERS:
        return TaskModel(config, kind, head, pad_token_id=tokens.pad, adapter=adapter, trunk=trunk)
    model = TaskModel(config, kind, head, adapter=adapter, trunk=trunk)
    _untie(model, [model.own_name(name, trunk) for name in names])
    _settle(model, kind, tokens)
    return model


def language_kind(config: Mapping[str, Any]) -> Kind:
    """Returns how a language model of a configuration is asked: by an encoder, or all in one."""
    return "seq2seq" if config.get("is_encoder_decoder") else "causal"


def _settle(model: TaskModel, kind: Kind, tokens: SpecialTokens) -> None:
    """Has a model write by its token numbers alone, the tokenizer's where its configuration names none."""
    config = model.module.config
    if kind == "seq2seq" and getattr(config, "decoder_start_token_id", None) is None:
        raise CheckpointDamaged(
            f"The config.json of this '{config.model_type}' model names no decoder_start_token_id, so its decoder "
            "cannot begin. Add it to the base's config.json: T5 begins with its pad_token_id."
        )
    known = {name: getattr(config, name, None) for name in _TOKENS}
    known["pad_token_id"] = tokens.pad if known["pad_token_id"] is None else known["pad_token_id"]
    known["eos_token_id"] = tokens.eos if known["eos_token_id"] is None else known["eos_token_id"]
    model.module.generation_config = GenerationConfig(**known)


def _untie(model: TaskModel, names: list[str]) -> None:
    """Gives tensors that a checkpoint holds by themselves a place of their own where the skeleton ties them.

    The first name of a slot keeps it; T5 v1.1 is tied by its class and has a head of its own nevertheless.
    """
    first: dict[int, str] = {}
    for name in sorted(names, key=lambda name: (name.rpartition(".")[0].endswith(("lm_head", "embed_out")), name)):
        slot = model.slots.get(name)
        if slot is None or first.setdefault(id(slot), name) == name:
            continue
        parent, _, attribute = name.rpartition(".")
        try:
            module = model.module.get_submodule(parent)
        except AttributeError as error:
            raise UnsupportedArchitecture(
                f"'{name}' is tied to '{first[id(slot)]}' in {type(model.module).__name__}, and cannot be set apart."
            ) from error
        slot.places = [place for place in slot.places if place != (module, attribute)]
        model.slots[name] = Slot(slot.shape, [(module, attribute)])
        model.slots[name].clear()
