"""A task's data as a recipe describes them: where the rows are, which columns are used, how they are put in words."""

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from hf_merge.recipe.wording import DEFAULT_NEW_TOKENS, Wording, default_template, find_fault


_SPLIT = re.compile(r"[^\[\]+]+(?:\[(?:-?\d+%?)?:(?:-?\d+%?)?\])?")  # or a slice of one, as `datasets` write it
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"  # of tasks and components


class Section(BaseModel):
    """A part of the recipe: immutable, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DataSpec(Section):
    """Where a task's rows are and which columns they use.

    `path` is a data set id on the Hub, or a builder (`parquet`, `csv`, `json`) with `data_files` per split. `splits`
    renames splits, `{validation: validation_matched}`, or takes slices of them, `{test: "train[90%:]"}`. A text task
    names `text` (and `text_pair`), an image task names `image`, a task of sounds names `audio`. A task of a generative
    model adds `answers` (the options in label order) or `target` (the column of what the model is to write, in
    `max_new_tokens`), and perhaps a `template`.
    """

    path: str = Field(min_length=1)
    name: str | None = None
    revision: str | None = None
    data_files: dict[Literal["train", "validation", "test"], str] | None = None
    splits: dict[Literal["train", "validation", "test"], str] = Field(default_factory=dict)
    text: str | None = None
    text_pair: str | None = None
    image: str | None = None
    audio: str | None = None
    label: str = "label"
    template: str | None = None
    answers: tuple[str, ...] | None = None
    target: str | None = None
    max_new_tokens: int | None = None

    @property
    def wording(self) -> Wording | None:
        """How the task is put in words; None where no generative model answers it."""
        if self.answers is None and self.target is None:
            return None
        tokens = None
        if self.target is not None:
            tokens = DEFAULT_NEW_TOKENS if self.max_new_tokens is None else self.max_new_tokens
        template = default_template(self.text_pair is not None) if self.template is None else self.template
        return Wording(template, self.answers, tokens)

    @field_validator("splits")
    @classmethod
    def _one_slice_each(cls, splits: dict[str, str]) -> dict[str, str]:
        for role, name in splits.items():
            if not _SPLIT.fullmatch(name):
                raise ValueError(
                    f"'{name}', for {role}, is neither a split nor one slice of a split, as in \"train[:80%]\", "
                    '"train[80%:]" or "train[100:200]"'
                )
        return splits

    @model_validator(mode="after")
    def _words_that_fit(self) -> "DataSpec":
        wording = self.wording
        if wording is None:
            for name in ("template", "max_new_tokens"):
                if getattr(self, name) is not None:
                    raise ValueError(f"'{name}' is for generative models: give 'answers' or 'target' as well")
            return self
        if self.answers is not None and self.target is not None:
            raise ValueError("give either 'answers' (options to choose from) or 'target' (a column of texts to write)")
        if self.text is None:
            column = "image" if self.audio is None else "audio"
            raise ValueError(f"'answers' and 'target' belong to a 'text' column, not to an '{column}' column")
        if self.answers is not None and self.max_new_tokens is not None:
            raise ValueError("'max_new_tokens' belongs to 'target': options are scored, nothing is written")
        fault = find_fault(wording) or _fault_of_pair(wording, self.text_pair)
        if fault is not None:
            raise ValueError(f"the task {fault}")
        return self

    @model_validator(mode="after")
    def _one_input(self) -> "DataSpec":
        if sum(column is not None for column in (self.text, self.image, self.audio)) != 1:
            raise ValueError(
                "name either a 'text' column (with or without 'text_pair'), an 'image' column or an 'audio' column"
            )
        if self.text is None and self.text_pair is not None:
            column = "image" if self.audio is None else "audio"
            raise ValueError(f"'text_pair' belongs to a 'text' column, not to an '{column}' column")
        return self


def _fault_of_pair(wording: Wording, pair: str | None) -> str | None:
    if wording.paired and pair is None:
        return "has a template with {text_pair}, but there is no column 'text_pair'"
    return "has a template without {text_pair}" if pair is not None and not wording.paired else None
