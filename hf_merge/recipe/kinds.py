"""What the tasks of a recipe ask for: a classifier of texts, pictures or sounds, or a language model."""

from typing import TYPE_CHECKING, TypeAlias

from hf_merge.errors import RecipeError
from hf_merge.recipe.data import DataSpec


if TYPE_CHECKING:
    from hf_merge.recipe import Recipe

Reads: TypeAlias = str  # `text`, `image`, `audio` or `language`
_READS = {"text": "reads text", "image": "reads images", "audio": "reads sounds", "language": "asks a language model"}


def reads(data: DataSpec) -> Reads:
    """Returns what a task's data ask for: `image`, `audio` or `text` a classifier, `language` a language model."""
    if data.wording is not None:
        return "language"
    return next(column for column in ("image", "audio", "text") if getattr(data, column) is not None)


def require_one_kind(recipe: "Recipe") -> Reads:
    """Returns what all tasks of a recipe ask for.

    Raises:
        RecipeError: Two tasks ask for different kinds of models; the message names both.
    """
    first = recipe.tasks[0]
    wanted = reads(first.data)
    for task in recipe.tasks:
        if reads(task.data) != wanted:
            raise RecipeError(
                f"Task '{first.name}' {_READS[wanted]} and task '{task.name}' {_READS[reads(task.data)]}; one base "
                "serves one kind. Write a recipe for each (data.answers or data.target make a task one of a language "
                "model)."
            )
    return wanted
