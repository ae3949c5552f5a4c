"""`hf-merge merge`: the model that transformers loads is the one that the method's definition gives."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from hf_merge.errors import InputError, RecipeError, RunFolderError
from hf_merge.recipe import Recipe
from hf_merge.workflow.merge import merge
from tests.tiny_models import TinyFamily
from tests.tiny_speakers import SpeakingFamily, load_speaker


Families = Callable[[str], TinyFamily]


def _recipe(family: TinyFamily | SpeakingFamily, **section: Any) -> Recipe:
    return Recipe.parse(family.recipe(merge={"methods": ["average"], **section}), "test")


def _states(family: TinyFamily, load: Callable[[Path], Any]) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Returns the backbones of the base and of the fine-tunes, as transformers loads them."""
    return load(family.base).state_dict(), [load(task.folder).state_dict() for task in family.tasks.values()]


def _close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layout", ["bert", "gpt2", "vit"])
def test_transformers_loads_the_mean_of_the_backbones(tiny_family: Families, tmp_path: Path, layout: str) -> None:
    family = tiny_family(layout)
    merged = merge(_recipe(family), tmp_path / "out", progress=False)
    _, states = _states(family, AutoModel.from_pretrained)
    means = {name: torch.stack([state[name] for state in states]).mean(dim=0) for name in states[0]}
    unused = {name for name in means if "pooler" in name}
    found = AutoModel.from_pretrained(tmp_path / "out").state_dict()
    _close({k: v for k, v in found.items() if k not in unused}, {k: v for k, v in means.items() if k not in unused})
    assert merged.tasks == tuple(family.tasks) and merged.head is None
    assert merged.parameters > 0


def test_settings_given_by_hand_reach_the_method(tiny_family: Families, tmp_path: Path) -> None:
    family = tiny_family("distilbert")
    merge(_recipe(family), tmp_path / "out", method="task_arithmetic", settings={"scale": 0.25}, progress=False)
    base, states = _states(family, AutoModel.from_pretrained)
    expected = {name: base[name] + 0.25 * sum(state[name] - base[name] for state in states) for name in base}
    _close(AutoModel.from_pretrained(tmp_path / "out").state_dict(), expected)


def test_the_recipes_settings_hold_for_the_recipes_method_alone(tiny_family: Families, tmp_path: Path) -> None:
    recipe = _recipe(tiny_family("distilbert"), methods=[{"name": "task_arithmetic", "scale": 0.7}])
    assert merge(recipe, tmp_path / "a", progress=False).method == {"name": "task_arithmetic", "scale": 0.7}
    other = merge(recipe, tmp_path / "b", method="ties", progress=False).method
    assert other["name"] == "ties" and other["scale"] == 1.0


def test_with_a_head_it_is_a_classifier_of_that_task(tiny_family: Families, tmp_path: Path) -> None:
    family = tiny_family("bert")
    merged = merge(_recipe(family), tmp_path / "out", head="colours", progress=False)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    own = AutoModelForSequenceClassification.from_pretrained(family.tasks["colours"].folder)
    assert model.config.num_labels == 3 and merged.head == "colours"
    assert torch.equal(model.classifier.weight, own.classifier.weight)
    texts = AutoTokenizer.from_pretrained(tmp_path / "out")(["paint bright red"], return_tensors="pt")
    assert model(**texts).logits.shape == (1, 3)


@pytest.mark.parametrize("layout", ["gpt2", "t5"])
def test_a_language_model_comes_out_with_its_merged_head(
    tiny_speakers: Callable[[str], SpeakingFamily], tmp_path: Path, layout: str
) -> None:
    family = tiny_speakers(layout)
    merge(_recipe(family), tmp_path / "out", progress=False)
    states = [load_speaker(family.kind, task.folder).state_dict() for task in family.tasks.values()]
    means = {name: torch.stack([state[name] for state in states]).mean(dim=0) for name in states[0]}
    _close(load_speaker(family.kind, tmp_path / "out").state_dict(), means)


def test_one_task_comes_back_as_it_was(tiny_family: Families, tmp_path: Path) -> None:
    family = tiny_family("bert")
    document = family.recipe()
    document["tasks"] = document["tasks"][:1]
    merge(Recipe.parse(document, "test"), tmp_path / "out", head="animals", progress=False)
    found = load_file(tmp_path / "out" / "model.safetensors")
    own = load_file(family.tasks["animals"].folder / "model.safetensors")
    assert all(torch.equal(found[name], own[name]) for name in found)


def test_the_same_recipe_gives_the_same_bytes(tiny_family: Families, tmp_path: Path) -> None:
    recipe = _recipe(tiny_family("bert"), methods=["dare"])
    for name in ("a", "b"):
        merge(recipe, tmp_path / name, progress=False)
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b"))
    assert first == second


def test_the_card_names_the_sources_and_every_setting(tiny_family: Families, tmp_path: Path) -> None:
    merge(_recipe(tiny_family("bert"), methods=["ties"]), tmp_path / "out", progress=False)
    card = (tmp_path / "out" / "README.md").read_text()
    for said in ("animals", "colours", "density", "0.2", "arxiv.org/abs/2306.01708", "base"):
        assert said in card
    assert str(tmp_path) not in card


def test_adapters_are_refused_with_the_way_out(
    tiny_adapters: Callable[[str, str], TinyFamily], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"is an adapter .*merge_and_unload"):
        merge(_recipe(tiny_adapters("bert", "lora")), tmp_path / "out", progress=False)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "tise"}, "Unknown merge method 'tise'.*ties"),
        ({"settings": {"density": 0.5}}, "unknown setting 'density'"),
        ({"method": "ties", "settings": {"density": 7.0}}, r"must be a number in \[0.001, 1\]"),
        ({"head": "animal"}, "No task is called 'animal'.*animals"),
    ],
)
def test_wrong_options_write_nothing(
    tiny_family: Families, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        merge(_recipe(tiny_family("bert")), tmp_path / "out", progress=False, **options)
    assert not any(tmp_path.iterdir())


def test_a_folder_that_holds_something_is_left_alone(tiny_family: Families, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(RunFolderError, match="not empty"):
        merge(_recipe(tiny_family("bert")), tmp_path / "out", progress=False)
    assert (tmp_path / "out" / "mine").read_text() == "x"
