"""Unseen tasks: each answer is that of the seen task's own chain under the unseen head, as transformers gives it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from hf_merge import MergeModel
from hf_merge.errors import InputError, ModelMismatch, RecipeError
from hf_merge.recipe import Recipe
from hf_merge.storing import results
from hf_merge.workflow.analyses import analyse
from hf_merge.workflow.build import build
from hf_merge.workflow.findings import Unseen, UnseenRow
from hf_merge.workflow.report import report
from hf_merge.workflow.run_folder import REPORT_FILE
from hf_merge.workflow.search import search
from hf_merge.workflow.unseen import BASE, BEST_SEEN, BEST_UNSEEN, CHEAPEST, OWN
from tests import tiny_models
from tests.tiny_models import LABELS, ROWS, TinyFamily, TinyTask, load_task_model
from tests.tiny_runs import ROUTER, SEARCH, TinyRun


Families = Callable[[str], TinyFamily]
UNSEEN = "weather"


def run_of(family: TinyFamily, folder: Path, seen: int) -> Path:
    """Returns a measured run of a family's first tasks."""
    document = family.recipe(search=SEARCH | {"evaluations": 4}, router=ROUTER)
    document["tasks"] = document["tasks"][:seen]
    search(Recipe.parse(document, "test"), folder, progress=False)
    build(folder, progress=False)
    report(folder, progress=False)
    return folder


def rest_of(family: TinyFamily, seen: int) -> Recipe:
    """Returns a recipe of a family's other tasks."""
    document = family.recipe(router={"rows_per_task": 12})
    document["tasks"] = document["tasks"][seen:]
    return Recipe.parse(document, "test")


@pytest.fixture(scope="module")
def run(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(tiny_run.folder, tmp_path_factory.mktemp("measured") / "run"))
    report(folder, progress=False)
    return folder


@pytest.fixture(scope="module")
def stranger(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> TinyFamily:
    """Returns one more fine-tune of the base, of a task that the run did not merge."""
    family, folder = tiny_run.family, tmp_path_factory.mktemp("stranger")
    with torch.random.fork_rng():
        torch.manual_seed(7)
        data = tiny_models.write_data("text", UNSEEN, folder / "data", ROWS, 7)
        tiny_models.fine_tune("bert", family.base, folder / UNSEEN, LABELS[UNSEEN], data["train"])
    task = TinyTask(UNSEEN, folder / UNSEEN, LABELS[UNSEEN], "accuracy", data)
    return TinyFamily("bert", "text", family.base, {UNSEEN: task})


@pytest.fixture(scope="module")
def served(run: Path, stranger: TinyFamily) -> Unseen:
    found = analyse(run, unseen=rest_of(stranger, 0), progress=False).unseen
    assert found is not None
    return found


@pytest.fixture(scope="module")
def rows(stranger: TinyFamily) -> tuple[dict[str, torch.Tensor], np.ndarray[Any, Any]]:
    """Returns the stranger's test rows as model inputs, and their labels."""
    table = pyarrow.parquet.read_table(stranger.tasks[UNSEEN].files["test"]).to_pydict()
    encoded = AutoTokenizer.from_pretrained(stranger.base)(table["text"], padding=True, return_tensors="pt")
    return dict(encoded), np.array(table["label"])


def named(served: Unseen) -> dict[str, UnseenRow]:
    return {row.name: row for row in served.rows}


@pytest.mark.parametrize("choice", [CHEAPEST, BEST_SEEN, BEST_UNSEEN])
def test_a_score_is_that_of_plain_models_put_together_by_hand(
    run: Path, stranger: TinyFamily, served: Unseen, rows: Any, choice: str
) -> None:
    inputs, labels = rows
    row = named(served)[choice]
    model = MergeModel.from_pretrained(run / "members" / str(row.id))
    routed = model.route(**inputs).numpy()
    answers = np.full(len(labels), -1)
    for index, seen in enumerate(model.tasks):
        hybrid: Any = AutoModelForSequenceClassification.from_pretrained(stranger.tasks[UNSEEN].folder).eval()
        backbone: Any = model.materialize(seen)
        hybrid.bert = backbone.bert
        with torch.inference_mode():
            answers[routed == index] = hybrid(**inputs).logits.argmax(dim=1).numpy()[routed == index]
        assert served.routed[UNSEEN][seen] == pytest.approx((routed == index).mean())
    assert row.scores == {UNSEEN: pytest.approx((answers == labels).mean())}
    assert row.unseen == pytest.approx(row.scores[UNSEEN])


def test_the_references_are_the_base_and_the_fine_tune_as_transformers_runs_them(
    stranger: TinyFamily, served: Unseen, rows: Any
) -> None:
    inputs, labels = rows
    own: Any = load_task_model("text", stranger.tasks[UNSEEN].folder)
    with torch.inference_mode():
        expected = float((own(**inputs).logits.argmax(dim=1).numpy() == labels).mean())
        own.bert = AutoModel.from_pretrained(stranger.base).eval()
        base = float((own(**inputs).logits.argmax(dim=1).numpy() == labels).mean())
    found = named(served)
    assert found[OWN].scores == {UNSEEN: pytest.approx(expected)} and found[OWN].normalised == 1.0
    assert found[BASE].scores == {UNSEEN: pytest.approx(base)}
    assert found[BASE].normalised == pytest.approx(base / expected)
    assert (found[BASE].id, found[OWN].cost) == (None, None)


def test_the_choices_are_what_they_are_called(tiny_run: TinyRun, run: Path, served: Unseen) -> None:
    found, points = named(served), tiny_run.front.points
    assert list(found) == [CHEAPEST, BEST_SEEN, BEST_UNSEEN, BASE, OWN]
    assert found[CHEAPEST].cost == min(point.cost for point in points)
    assert found[BEST_SEEN].seen_validation == max(point.performance for point in points)
    assert found[BEST_UNSEEN].unseen >= max(found[CHEAPEST].unseen, found[BEST_SEEN].unseen)
    table = results.read(run / REPORT_FILE)
    for row in served.rows[:3]:
        known = table.scores(str(row.id))
        assert known is not None and row.seen_test == known.oracle


def test_unseen_pictures_are_served(tiny_family: Families, tmp_path: Path) -> None:
    family = tiny_family("vit")
    found = analyse(run_of(family, tmp_path / "run", 2), unseen=rest_of(family, 2), progress=False).unseen
    assert found is not None
    task = family.tasks["weather"]
    table = pyarrow.parquet.read_table(task.files["test"]).to_pydict()
    with torch.inference_mode():
        logits = load_task_model("image", task.folder)(**tiny_models.inputs_of("image", task.folder, table)).logits
    own = float((logits.argmax(dim=1) == torch.tensor(table["label"])).float().mean())
    assert named(found)[OWN].scores == {"weather": pytest.approx(own)}
    assert sum(found.routed["weather"].values()) == pytest.approx(1.0)


def test_an_unseen_adapter_is_served_by_adapters(
    tiny_adapters: Callable[[str, str], TinyFamily], tmp_path: Path
) -> None:
    family = tiny_adapters("bert", "lora")
    found = analyse(run_of(family, tmp_path / "run", 2), unseen=rest_of(family, 2), progress=False).unseen
    assert found is not None
    assert named(found)[OWN].unseen > named(found)[CHEAPEST].unseen > 0


# What is refused


def test_tasks_of_another_base_are_refused_and_both_bases_named(run: Path, tiny_family: Families) -> None:
    other = tiny_family("distilbert")
    with pytest.raises(ModelMismatch, match="fine-tunes of another base") as refused:
        analyse(run, unseen=rest_of(other, 2), progress=False)
    assert str(other.base) in str(refused.value) and str(tiny_family("bert").base) in str(refused.value)


def test_a_task_that_the_run_merged_is_no_unseen_task(run: Path, tiny_run: TinyRun) -> None:
    with pytest.raises(RecipeError, match=r"Task 'sizes' .* is no unseen task"):
        analyse(run, unseen=rest_of(tiny_run.family, 2), progress=False)


def test_a_merged_checkpoint_under_another_name_is_no_unseen_task(run: Path, tiny_run: TinyRun) -> None:
    document = tiny_run.family.recipe(router={"rows_per_task": 12})
    document["tasks"] = [document["tasks"][0] | {"name": "disguised"}]
    with pytest.raises(RecipeError, match=r"Task 'disguised' .* is no unseen task"):
        analyse(run, unseen=Recipe.parse(document, "test"), progress=False)


@pytest.mark.slow
def test_language_models_have_no_heads_to_bring(
    speaking_run: Callable[[str], TinyRun], stranger: TinyFamily, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(speaking_run("gpt2").folder, tmp_path / "run"))
    report(folder, progress=False)
    with pytest.raises(InputError, match="language models, which answer with the merged weights themselves"):
        analyse(folder, unseen=rest_of(stranger, 0), progress=False)
