"""Families of adapters from recipe to served model: every task as peft itself runs it, on one base in memory."""

import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from peft import PeftModel
from torch import Tensor

from hf_merge import MergeModel
from hf_merge.errors import RecipeError
from hf_merge.recipe import Recipe
from hf_merge.storing.front import Front
from hf_merge.workflow.build import build
from hf_merge.workflow.plan import plan
from hf_merge.workflow.project import open_project
from hf_merge.workflow.report import report
from hf_merge.workflow.run_folder import FRONT_FILE, JOURNAL_FILE, TIMINGS_FILE
from hf_merge.workflow.search import search
from tests import tiny_models
from tests.serving.test_unclaimed import plain_features
from tests.tiny_adapters import load_adapter, mixed, speaking_adapters
from tests.tiny_models import TinyFamily
from tests.tiny_runs import ROUTER, SEARCH
from tests.tiny_speakers import WRITING, SpeakingFamily, load_speaker


Build = Callable[[str, str], TinyFamily]
FULL: dict[str, Any] = {"merge": {"codecs": ["full"]}, "search": SEARCH, "router": ROUTER}
KINDS = [
    ("bert", "ia3"),
    ("gpt2", "lora"),
    pytest.param("bert", "lora", marks=pytest.mark.slow),
    pytest.param("vit", "ia3", marks=pytest.mark.slow),
]


def run(family: TinyFamily, folder: Path, **sections: Any) -> tuple[Front, Path]:
    """Returns the front of a family and its run folder, all members built."""
    front = search(Recipe.parse(family.recipe(**(FULL | sections)), "test"), folder / "run", progress=False)
    build(folder / "run", progress=False)
    return front, folder / "run"


@pytest.fixture(scope="module")
def of_lora(tiny_adapters: Build, tmp_path_factory: pytest.TempPathFactory) -> tuple[Front, Path]:
    """Returns the front of BERT's LoRA adapters and its run folder, not to be changed."""
    return run(tiny_adapters("bert", "lora"), tmp_path_factory.mktemp("lora"))


def served(folder: Path, front: Front, control: str) -> MergeModel:
    return MergeModel.from_pretrained(folder / "members" / front.controls[control].id)


def rows_of(family: TinyFamily, task: str) -> dict[str, Tensor]:
    table = pyarrow.parquet.read_table(family.tasks[task].files["test"]).to_pydict()
    return tiny_models.inputs_of(family.kind, family.base, table)


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "kind"), KINDS)
def test_tasks_kept_apart_answer_as_peft_has_them(
    tiny_adapters: Build, tmp_path: Path, layout: str, kind: str
) -> None:
    family = tiny_adapters(layout, kind)
    front, folder = run(family, tmp_path)
    model = served(folder, front, "all-separate")
    assert front.components[0] == "base"
    for task in family.tasks:
        inputs = rows_of(family, task)
        with torch.no_grad():
            wanted = load_adapter(family, task)(**inputs).logits
            alone = model.materialize(task)(**inputs).logits
        given = model(task=task, **inputs).logits[:, : wanted.shape[1]]
        torch.testing.assert_close(given, wanted, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(alone, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("control", ["all-separate", "all-merged"])
def test_adapters_have_the_base_in_common_or_their_merged_one(of_lora: tuple[Front, Path], control: str) -> None:
    front, folder = of_lora
    model, texts = served(folder, front, control), ["a short text", "another one, longer"]
    weights = dict(model.materialize(next(iter(front.tasks))).base_model.state_dict())
    if control == "all-separate":
        (entry,) = [entry for entry in model._member.experts if not entry.members]
        stored = model._member.expert(entry)
        weights = {name.removeprefix(model._parts.trunk): tensor for name, tensor in stored.items()}
    wanted = plain_features(model._member.folder, weights, texts)
    torch.testing.assert_close(model.features(texts), wanted, atol=1e-4, rtol=1e-4)


def test_a_family_takes_one_base_in_memory(of_lora: tuple[Front, Path]) -> None:
    front, folder = of_lora
    model = served(folder, front, "all-separate")
    held: list[Mapping[str, Tensor]] = [task.tensors() for task in model._recombiner.models]
    base = {name for name in held[0] if "lora" not in name and "classifier" not in name}
    assert len(base) > 40
    for name in base:
        assert len({tensors[name].data_ptr() for tensors in held}) == 1
    factors = [name for name in held[0] if "lora" in name]
    assert factors and all(len({tensors[name].data_ptr() for tensors in held}) == 3 for name in factors)


def test_the_base_is_one_expert_and_never_searched(tiny_adapters: Build, tmp_path: Path) -> None:
    family = tiny_adapters("bert", "ia3")
    front, folder = run(family, tmp_path, merge={"codecs": ["int8"]})
    place = front.components.index("base")
    assert {point.grouping[place] for point in front.points} == {(0, 0, 0)}
    assert len({point.grouping for point in front.points}) > 1
    entries = served(folder, front, "all-separate").chain_map.experts
    of_base = [entry for entry in entries if entry.component == "base"]
    assert [(entry.members, entry.method) for entry in of_base] == [((), None)]
    assert front.controls["all-merged"].cost < front.controls["all-separate"].cost < 0.5


def test_the_cost_is_the_bytes_on_disk(of_lora: tuple[Front, Path]) -> None:
    front, folder = of_lora
    for point in front.controls.values():
        chain_map = MergeModel.from_pretrained(folder / "members" / point.id).chain_map
        held = sum(expert.bytes for expert in chain_map.experts) + sum(head.bytes for head in chain_map.heads.values())
        assert held == pytest.approx(point.cost * front.parameters * 4)


def test_adapters_as_they_are_take_one_base_and_themselves(of_lora: tuple[Front, Path], tmp_path: Path) -> None:
    front, folder = of_lora
    assert front.whole_models == 1
    shutil.copytree(folder, tmp_path / "run")
    individual = report(tmp_path / "run", progress=False).scores("individual")
    assert individual is not None
    assert individual.cost == pytest.approx(front.controls["all-separate"].cost), "at full precision they are the same"


def test_a_plan_counts_the_base_once(tiny_adapters: Build, of_lora: tuple[Front, Path]) -> None:
    recipe = Recipe.parse(tiny_adapters("bert", "lora").recipe(**FULL), "test")
    front, _ = of_lora
    planned = plan(recipe)
    assert planned.cost_all_merged == pytest.approx(front.controls["all-merged"].cost)
    assert planned.cost_all_separate == pytest.approx(front.controls["all-separate"].cost)
    assert [part.name for part in planned.components] == ["base", "attention", "mlp"]
    with open_project(recipe) as project:
        assert planned.configurations == project.space().size == 5**2


def test_an_adapter_is_merged_with_a_whole_fine_tune(
    tiny_adapters: Build, tiny_family: Callable[[str], TinyFamily], tmp_path: Path
) -> None:
    family = mixed(tiny_adapters("bert", "lora"), tiny_family("bert"), "animals")
    front, folder = run(family, tmp_path)
    model = served(folder, front, "all-separate")
    inputs = rows_of(family, "colours")
    with torch.no_grad():
        wanted = load_adapter(family, "colours")(**inputs).logits
    torch.testing.assert_close(model(task="colours", **inputs).logits[:, :3], wanted, atol=1e-4, rtol=1e-4)


def test_a_task_names_one_source(tiny_adapters: Build) -> None:
    document = tiny_adapters("bert", "ia3").recipe()
    document["tasks"][0]["model"] = "org/other"
    with pytest.raises(RecipeError, match=r"either a 'model' \(a fine-tuned checkpoint\) or an 'adapter'"):
        Recipe.parse(document, "test")
    del document["tasks"][0]["model"], document["tasks"][0]["adapter"]
    with pytest.raises(RecipeError, match="either a 'model'"):
        Recipe.parse(document, "test")


@pytest.mark.parametrize("kind", [pytest.param("ia3", marks=pytest.mark.slow), "lora"])
def test_kept_states_spare_blocks_and_change_nothing(tiny_adapters: Build, tmp_path: Path, kind: str) -> None:
    document = tiny_adapters("bert", kind).recipe(merge={"granularity": "type-layer"}, search=SEARCH)
    recipe = Recipe.parse(document, "test")
    for name, limit in (("with", 10**9), ("without", 0)):
        search(recipe, tmp_path / name, progress=False, state_bytes=limit)
    for file in (FRONT_FILE, JOURNAL_FILE):
        assert (tmp_path / "with" / file).read_bytes() == (tmp_path / "without" / file).read_bytes()
    rows = [
        json.loads(line[line.index("{") :]) for line in (tmp_path / "with" / TIMINGS_FILE).read_text().splitlines()
    ]
    assert sum(row["blocks_run"] for row in rows) < sum(row["blocks_asked"] for row in rows)


def test_a_recipe_names_the_labels_that_an_adapter_does_not(tiny_adapters: Build, tmp_path: Path) -> None:
    family = tiny_adapters("bert", "ia3")
    document = family.recipe(**FULL)
    for entry in document["tasks"]:
        entry["labels"] = list(family.tasks[entry["name"]].labels or ())
    front = search(Recipe.parse(document, "test"), tmp_path / "run", progress=False)
    build(tmp_path / "run", progress=False)
    model = served(tmp_path / "run", front, "all-separate")
    assert model.predict(["the small cat sleeps"], task="animals")[0].label in ("cat", "dog")
    document["tasks"][0]["labels"] = ["cat", "dog", "horse"]
    with pytest.raises(RecipeError, match=r"names the labels cat, dog, horse, and .* has 2 outputs"):
        search(Recipe.parse(document, "test"), tmp_path / "other", progress=False)


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "kind"), [("llama", "lora"), ("t5", "ia3"), ("llama", "ia3")])
def test_adapters_of_language_models_speak_as_peft_has_them(
    tiny_speakers: Callable[[str], SpeakingFamily], tmp_path: Path, layout: str, kind: str
) -> None:
    family = speaking_adapters(tiny_speakers(layout), kind, tmp_path / "adapters")
    front, folder = run(family, tmp_path)
    model = served(folder, front, "all-separate")
    assert front.components[0] == "base"
    assert ("encoder.attention" in front.components) == (layout == "t5")
    prompts = ["the small cat sleeps", "a red wall today"]
    for task in ("animals", WRITING):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft's, of models newer than it
            peft: Any = PeftModel.from_pretrained(load_speaker(family.kind, family.base), family.tasks[task].folder)
            wanted: Any = peft.merge_and_unload()
        made: Any = model.materialize(task)
        state = made.state_dict()
        assert state.keys() == wanted.state_dict().keys()
        for name, tensor in wanted.state_dict().items():
            torch.testing.assert_close(state[name], tensor, atol=1e-5, rtol=1e-4)
    written = model.generate(prompts, task=WRITING, max_new_tokens=4)
    assert [answer.task for answer in written] == [WRITING, WRITING]
    assert len(model.predict(prompts, task="animals")) == 2
    base = load_speaker(family.kind, family.base).state_dict()
    common = model._common.language().module.state_dict()
    assert common.keys() == base.keys(), "what tasks of adapters have in common is the base"
    for name, tensor in base.items():
        torch.testing.assert_close(common[name], tensor, atol=1e-5, rtol=1e-4)
    held = [model._recombiner.models[index].tensors() for index in range(len(family.tasks))]
    assert len({tensors[next(name for name in tensors if "norm" in name)].data_ptr() for tensors in held}) == 1
