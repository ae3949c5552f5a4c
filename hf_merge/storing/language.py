"""Checkpoints of language models: the head that turns states into words is part of what is merged, no task's own.

What lies outside the trunk (an untied `lm_head`, a bias on the logits) belongs to the backbone here. Whether a head is
tied to the embedding is not taken from the configuration alone: T5 v1.1 has an untied head and says otherwise, so a
stored copy is compared with what it would be a copy of.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from hf_merge.errors import ModelMismatch, some
from hf_merge.storing.checkpoints import Checkpoint
from hf_merge.storing.headers import TensorSpec
from hf_merge.storing.tensor_names import tied_copies


# Biases that a model class adds to the logits, and that start at zero: a base saved without its head has none.
_BIAS = re.compile(r"(^|\.)final_logits_bias$")
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|final_logits_bias)(\.|$)")
_CLASSIFIER = re.compile(r"For(Sequence|Token|Image|Audio)Classification$|ForQuestionAnswering$|ForMultipleChoice$")
_SPEAKER = re.compile(r"ForCausalLM$|ForConditionalGeneration$|LMHeadModel$|ForSeq2SeqLM$")
_LOADER = "AutoModelForCausalLM or AutoModelForSeq2SeqLM"


class LanguageCheckpoint(Checkpoint):
    """A checkpoint whose backbone is the whole language model."""

    def __init__(self, source: str, folder: Path, revision: str | None = None, *, headers_only: bool = False) -> None:
        """Opens a checkpoint folder; with `headers_only` a head that is stored beside a tied embedding is no copy.

        That is a guess, as `save_pretrained` writes no copies; `complete_base` drops it where another checkpoint has
        no such tensor.
        """
        super().__init__(source, folder, revision, headers_only=headers_only)
        self._zeros: set[str] = set()
        self._guessed: set[str] = set()
        self._sort_out_copies()

    def read(self, name: str, out: Tensor | None = None) -> Tensor:
        """Returns the tensor `name` as float32, in `out` where it is given."""
        if name not in self._zeros:
            return super().read(name, out)
        return torch.zeros(self.specs[name].shape) if out is None else out.zero_()

    def backbone(self) -> dict[str, str]:
        """Returns all tensors: by their name inside the trunk those of the trunk, by their own name the others."""
        return super().backbone() | {name: name for name in super().outside()}

    def outside(self) -> tuple[str, ...]:
        """Returns nothing: no tensor is a task's own."""
        return ()

    def lend_zeros(self, specs: Mapping[str, TensorSpec]) -> None:
        """Takes on tensors of zeros, as the model's class would make them."""
        self._zeros |= specs.keys()
        self.specs |= {name: replace(spec, dtype="F32") for name, spec in specs.items()}

    def drop_guessed(self, others: Iterable["LanguageCheckpoint"]) -> None:
        """Takes tensors for copies after all that were only guessed to be none, where others lack them."""
        for name in self._guessed:
            if any(name not in other.specs for other in others):
                self.specs.pop(name, None)

    def _sort_out_copies(self) -> None:
        """Keeps of a tied tensor's copies those that are none, and drops those that are."""
        everything = {name: spec for name, (_, spec) in self._home.items()}
        ties = self.config.get("tie_word_embeddings", True)
        for name, source in tied_copies(everything).items():
            is_table = name.endswith("embed_tokens.weight")
            if not ties and not is_table:
                continue
            if is_table if self._headers_only else self._same(name, source):
                self.specs.pop(name, None)
                continue
            self.specs[name] = everything[name]
            if self._headers_only:
                self._guessed.add(name)

    def _same(self, name: str, source: str) -> bool:
        first, second = (self._home[key][0].read(self._home[key][1].name) for key in (name, source))
        return first.dtype == second.dtype and torch.equal(first, second)


def complete_base(base: LanguageCheckpoint, tuned: Mapping[str, LanguageCheckpoint]) -> None:
    """Lends the base what a base saved without its head lacks, where that is zero by definition.

    Raises:
        ModelMismatch: The base lacks a head that the fine-tunes have, or a fine-tune is no language model.
    """
    faults = [fault for task, checkpoint in tuned.items() if (fault := _fault(task, checkpoint)) is not None]
    if faults:
        raise ModelMismatch("These checkpoints are no language models:\n  " + "\n  ".join(faults))
    for checkpoint in (base, *tuned.values()):
        checkpoint.drop_guessed((base, *tuned.values()))
    held = base.backbone()
    for task, checkpoint in tuned.items():
        own = checkpoint.backbone()
        lacking = [name for key, name in own.items() if key not in held and _HEAD.search(name)]
        heads = [name for name in lacking if not _BIAS.search(name)]
        if heads:
            raise ModelMismatch(
                f"The base ({base.source}) has no {some(heads)}, which task '{task}' ({checkpoint.source}) has: it "
                f"was saved without its language-model head. Load it with {_LOADER} and save it again."
            )
        base.lend_zeros({name: checkpoint.specs[name] for name in lacking if name not in base.specs})


def find_speaker(tuned: Mapping[str, Checkpoint]) -> str | None:
    """Returns the first task whose checkpoint was saved as a language model and has no head of another kind."""
    for task, checkpoint in tuned.items():
        if _saved_as(checkpoint, _SPEAKER) is not None and all(_HEAD.search(name) for name in checkpoint.outside()):
            return task
    return None


def _fault(task: str, checkpoint: Checkpoint) -> str | None:
    saved = _saved_as(checkpoint, _CLASSIFIER)
    if saved is None:
        return None
    return (
        f"task '{task}' ({checkpoint.source}): saved as {saved}, where data.answers or data.target asks for a "
        "language model; take both away to classify with its head, or name a fine-tune that generates"
    )


def _saved_as(checkpoint: Checkpoint, pattern: re.Pattern[str]) -> str | None:
    """Returns the class that a checkpoint names as its own, if it is of a kind."""
    names = checkpoint.config.get("architectures")
    named = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    return next((name for name in named if pattern.search(name)), None)
