"""`hf-merge eval`: one member measured on test rows through `MergeModel` itself, beside what its card says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from hf_merge.errors import DatasetError, HubError, InputError
from hf_merge.recipe import Recipe
from hf_merge.recipe.kinds import reads
from hf_merge.searching.evaluation import mean_score, predictions
from hf_merge.searching.judging import judged
from hf_merge.searching.metrics import score
from hf_merge.searching.rows import Rows
from hf_merge.serving.model import MergeModel
from hf_merge.serving.selection import MEMBERS_FOLDER, open_member
from hf_merge.storing import hub
from hf_merge.storing.card_head import read_card, recorded_scores
from hf_merge.storing.chains import ChainMap
from hf_merge.storing.library import Member
from hf_merge.storing.results import Scores
from hf_merge.storing.sources import FULL_HUB_ID, local_folder
from hf_merge.storing.strict_json import quote
from hf_merge.workflow.routing import as_routed
from hf_merge.workflow.rows import load_test_rows
from hf_merge.workflow.run_folder import RECIPE_FILE


# Other thread counts and processors sum in another order, which moves single rows across a decision.
TOLERANCE = 0.005


@dataclass(frozen=True)
class MemberEvaluation:
    """What one member scores, and what its card says.

    Attributes:
        scores: The scores measured.
        router_accuracy: The share of each task's test rows that the router sends to it.
        recorded: The card's scores by task, under `oracle` and `routed`; empty where it has none.
        differences: One line per score that differs from the card's by more than `TOLERANCE`.
    """

    scores: Scores
    router_accuracy: Mapping[str, float]
    recorded: Mapping[str, Mapping[str, float]]
    differences: tuple[str, ...]


def evaluate(
    source: str | Path,
    budget: float | str | None = None,
    *,
    revision: str | None = None,
    recipe: Path | None = None,
    progress: bool = True,
    access: hub.Access = hub.AS_USUAL,
) -> MemberEvaluation:
    """Returns what one member scores on test rows, with the task known and routed, beside what its card says.

    Args:
        source: A member folder or repo, or a family, whose best member within the budget is taken.
        budget: As in `MergeModel.from_pretrained`.
        revision: Of a repo on the Hub: branch, tag or commit.
        recipe: The recipe that describes the test rows; by default that of the family.
        progress: Show progress on stderr.
        access: How to reach the Hub.

    Raises:
        InputError: No recipe is given and the family has none, or it describes other tasks, or rows that a recipe from
            the Hub may not choose.
    """
    member = open_member(source, budget, revision=revision, access=access)
    described = _family_recipe(source, revision, member, access) if recipe is None else Recipe.load(recipe)
    _require_described(member.chain_map, described)
    model = MergeModel(member)
    metrics = {task.name: task.metric for task in described.tasks}
    try:
        rows = load_test_rows(described, model.heads)
    except DatasetError as error:
        if recipe is not None:
            raise
        raise DatasetError(f"{error} That is the family's own recipe: name one of yours with --recipe.") from error
    oracle, routed, accuracy = {}, {}, {}
    for index, task in enumerate(tqdm(model.tasks, desc="eval", unit="task", disable=not progress)):
        known, free, own = _answers(model, index, rows[task], described.search.batch_size)
        oracle[task] = score(metrics[task], known, rows[task].labels)
        routed[task] = score(metrics[task], as_routed(free, own), rows[task].labels)
        accuracy[task] = float(own.mean())
    recorded = _recorded(member)
    differences = _differences({"oracle": oracle, "routed": routed}, recorded)
    return MemberEvaluation(_scores(member.chain_map, oracle, routed), accuracy, recorded, differences)


def _scores(chain_map: ChainMap, oracle: Mapping[str, float], routed: Mapping[str, float]) -> Scores:
    return Scores(
        id=chain_map.id,
        role="member",
        cost=chain_map.cost,
        validation=mean_score(chain_map.performance),
        oracle=mean_score(oracle),
        routed=mean_score(routed),
        oracle_normalised=None,
        routed_normalised=None,
        oracle_scores=oracle,
        routed_scores=routed,
    )


def _differences(
    measured: Mapping[str, Mapping[str, float]], recorded: Mapping[str, Mapping[str, float]]
) -> tuple[str, ...]:
    """Returns one line per score of the card that was not found again."""
    words = {"oracle": "with the task known", "routed": "routed"}
    return tuple(
        f"{task}, {words[kind]}: measured {measured[kind][task]:.4f}, the card says {value:.4f}"
        for kind in words
        for task, value in recorded.get(kind, {}).items()
        if task in measured[kind] and abs(measured[kind][task] - value) > TOLERANCE
    )


def _recorded(member: Member) -> Mapping[str, Mapping[str, float]]:
    """Returns the scores that the member's card records, by kind and task."""
    card = read_card(member.folder)
    return {} if card is None else recorded_scores(card)


def _answers(
    model: MergeModel, index: int, rows: Rows, batch_size: int
) -> tuple[NDArray[np.generic], NDArray[np.generic], NDArray[np.bool_]]:
    """Returns predictions [rows] of one task, it known and routed, and which rows were routed to it, [rows] bool."""
    task = model.tasks[index]
    wording = model.heads[task].wording
    if rows.targets is not None and wording is not None:
        return _written(model, index, rows, batch_size)
    labels = slice(model.heads[task].num_labels)
    known = model.outputs(inputs_of(rows), task=task, batch_size=batch_size)
    free = model.outputs(inputs_of(rows), batch_size=batch_size)
    own = (free.task_ids == index).numpy()
    return predictions(known.logits[:, labels]), predictions(free.logits[:, labels]), own


def _written(
    model: MergeModel, index: int, rows: Rows, batch_size: int
) -> tuple[NDArray[np.generic], NDArray[np.generic], NDArray[np.bool_]]:
    """Returns what `_answers` does for a task that writes: predicted 1 where the target was met."""
    own = (model.routes(inputs_of(rows), batch_size=batch_size) == index).numpy()
    texts = [answer.text for answer in model.generate(inputs_of(rows), task=model.tasks[index], batch_size=batch_size)]
    met = predictions(judged(texts, rows.targets or ()))
    return met, met, own  # a row that goes astray is wrong whatever is written there


def inputs_of(rows: Rows) -> Sequence[Any]:
    """Returns rows as `MergeModel.outputs` takes them: texts, pairs of texts, images or sounds."""
    if rows.images is not None or rows.sounds is not None:
        return rows.images or rows.sounds or ()
    texts = rows.texts or ()
    return texts if rows.pairs is None else list(zip(texts, rows.pairs, strict=True))


def _require_described(chain_map: ChainMap, recipe: Recipe) -> None:
    """Raises InputError unless the recipe says where the rows of every task of a member are, and of its kind."""
    found = {task.name: task.data for task in recipe.tasks}
    wanted = "language" if chain_map.wordings else chain_map.model.type
    for task in chain_map.tasks:
        if task not in found:
            raise InputError(
                f"The recipe describes no data for task '{task}' of {chain_map.id}; give another with --recipe."
            )
        if reads(found[task]) != wanted:
            raise InputError(
                f"The recipe gives task '{task}' {reads(found[task])} rows and {chain_map.id} reads {wanted}; give "
                "another with --recipe."
            )
        if found[task].wording != chain_map.wordings.get(task):
            raise InputError(
                f"The recipe words task '{task}' otherwise than {chain_map.id} does: {found[task].wording} and "
                f"{chain_map.wordings.get(task)}. Give another with --recipe."
            )


def _family_recipe(source: str | Path, revision: str | None, member: Member, access: hub.Access) -> Recipe:
    """Returns the recipe of the family that a member was taken from: beside its folder, or in the family's repo."""
    lacking = InputError(
        f"There is no {RECIPE_FILE} beside {member.chain_map.id}, so there are no test rows. Name a recipe with "
        "--recipe."
    )
    if local_folder(str(source)) is not None:
        folder = member.folder.resolve()
        family = [folder.parent.parent] if folder.parent.name == MEMBERS_FOLDER else []
        beside = [each / RECIPE_FILE for each in (*family, Path(source))]
        path = next((path for path in beside if path.is_file()), None)
        if path is None:
            raise lacking
        return Recipe.load(path)
    try:
        path = hub.pull_files(source, (RECIPE_FILE,), revision, access=access).folder / RECIPE_FILE
    except HubError as error:
        raise lacking from error
    if not path.is_file():
        raise lacking
    recipe = Recipe.load(path)
    _require_rows_of_the_hub(recipe, source)
    return recipe


def _require_rows_of_the_hub(recipe: Recipe, source: str | Path) -> None:
    """Raises InputError where a recipe that somebody pushed would have files of this machine or an address read."""
    for task in recipe.tasks:
        path, files = task.data.path, task.data.data_files
        if files is None and FULL_HUB_ID.fullmatch(path) and not Path(path).exists():
            continue
        named = f"the files {', '.join(map(quote, files.values()))}" if files else quote(path)
        raise InputError(
            f"The {RECIPE_FILE} of '{source}' on the Hub takes the rows of task '{task.name}' from {named:.200}: only "
            "a data set on the Hub (org/name, and no folder here has that name) is read on the word of a recipe from "
            "there. Name a recipe of yours with --recipe."
        )
