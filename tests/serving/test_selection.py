import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_merge.errors import BudgetError, BudgetTooSmall, CheckpointDamaged, MalformedChainMap, RunFolderError
from hf_merge.serving.model import MergeModel
from hf_merge.serving.selection import open_member
from hf_merge.storing.front import FrontPoint
from tests.serving.members import MERGED, MIXED, SEPARATE, write_family
from tests.tiny_models import TinyFamily


@pytest.fixture(scope="module")
def family(
    tiny_family: Callable[[str], TinyFamily], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[FrontPoint]]:
    """A family of three members; the dearer, the better. Not to be changed."""
    folder = tmp_path_factory.mktemp("family")
    return folder, write_family(tiny_family("bert"), folder, [SEPARATE, MERGED, MIXED])


def test_without_a_budget_the_best_is_taken(family: tuple[Path, list[FrontPoint]]) -> None:
    folder, points = family
    assert open_member(folder, None).chain_map.id == points[-1].id


def test_the_best_within_the_budget_is_taken(family: tuple[Path, list[FrontPoint]]) -> None:
    folder, (cheap, middle, dear) = family
    for budget, expected in (
        (dear.cost, dear),
        (dear.cost - 1e-9, middle),
        (middle.cost, middle),
        (middle.cost - 1e-9, cheap),
        (cheap.cost, cheap),
        (999, dear),
        (str(middle.cost), middle),
    ):
        assert open_member(folder, budget).chain_map.id == expected.id


def test_a_budget_in_bytes_is_the_same_budget(family: tuple[Path, list[FrontPoint]]) -> None:
    folder, (cheap, middle, _) = family
    parameters = open_member(folder, None).chain_map.base.parameters
    assert open_member(folder, f"{middle.cost * parameters * 4 / 1000 + 0.001:.3f}KB").chain_map.id == middle.id
    assert open_member(folder, f"{int(middle.cost * parameters * 4) - 1}B").chain_map.id == cheap.id
    assert open_member(folder, "25MB").chain_map.id == family[1][-1].id


def test_a_budget_below_the_cheapest_is_refused(family: tuple[Path, list[FrontPoint]]) -> None:
    folder, points = family
    for place in (folder, folder / "members" / points[0].id):
        with pytest.raises(BudgetTooSmall) as caught:
            open_member(place, 0.01)
        assert (caught.value.asked, caught.value.configuration) == (0.01, points[0].id)
        assert caught.value.least == points[0].cost
        with pytest.raises(BudgetTooSmall):
            open_member(place, "100B")


@pytest.mark.parametrize("budget", ["lots", "", "1 TB", "-1", 0, -0.5, float("nan"), True, "10 parrots"])
def test_budgets_that_are_no_sizes_are_refused(family: tuple[Path, list[FrontPoint]], budget: Any) -> None:
    folder, points = family
    for place in (folder, folder / "members" / points[0].id):
        with pytest.raises(BudgetError, match="budget"):
            open_member(place, budget)


def test_only_what_is_built_is_chosen(family: tuple[Path, list[FrontPoint]], tmp_path: Path) -> None:
    folder, (cheap, middle, dear) = family
    shutil.copytree(folder, tmp_path / "partly")
    shutil.rmtree(tmp_path / "partly" / "members" / dear.id)
    assert open_member(tmp_path / "partly", None).chain_map.id == middle.id
    (tmp_path / "partly" / "members" / middle.id / "chains.json").unlink()
    assert open_member(tmp_path / "partly", None).chain_map.id == cheap.id
    shutil.rmtree(tmp_path / "partly" / "members")
    with pytest.raises(RunFolderError, match=r"is built yet\. Run: hf-merge build"):
        open_member(tmp_path / "partly", None)


def test_a_member_that_the_front_does_not_speak_of_is_refused(
    family: tuple[Path, list[FrontPoint]], tmp_path: Path
) -> None:
    folder, (cheap, _, dear) = family
    shutil.copytree(folder, tmp_path / "mixed")
    shutil.rmtree(tmp_path / "mixed" / "members" / cheap.id)
    (tmp_path / "mixed" / "members" / dear.id).rename(tmp_path / "mixed" / "members" / cheap.id)
    with pytest.raises(MalformedChainMap, match=f"holds {dear.id} .* speaks of {cheap.id}"):
        open_member(tmp_path / "mixed", cheap.cost)


def test_a_model_is_loaded_under_a_budget(family: tuple[Path, list[FrontPoint]]) -> None:
    folder, (_, middle, dear) = family
    assert MergeModel.from_pretrained(folder).cost == dear.cost
    assert MergeModel.from_pretrained(str(folder), budget=middle.cost).chain_map.id == middle.id


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"did not write it\.$"),
        ({"config.json": {"architectures": ["BertForSequenceClassification"]}}, r"AutoModelForSequenceClassification"),
        ({"config.json": {"architectures": ["ViTForImageClassification"]}}, r"AutoModelForImageClassification"),
        ({"config.json": {"architectures": ["BertModel"]}}, r"load it with transformers\.AutoModel\.from_pretrained"),
        ({"config.json": {"architectures": ["x; rm -rf"]}}, r"transformers\.AutoModel\.from_pretrained"),
        ({"config.json": {}}, r"transformers\.AutoModel\.from_pretrained"),
        ({"config.json": [1]}, r"transformers\.AutoModel\.from_pretrained"),
        ({"adapter_config.json": {}}, r"peft\.AutoPeftModel\.from_pretrained"),
    ],
)
def test_folders_of_others_name_their_loader(files: dict[str, Any], message: str, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(CheckpointDamaged, match=message):
        open_member(tmp_path, None)
    with pytest.raises(CheckpointDamaged, match=message):
        MergeModel.from_pretrained(tmp_path)


def test_a_fine_tune_names_its_loader(tiny_family: Callable[[str], TinyFamily]) -> None:
    folder = tiny_family("vit").tasks["animals"].folder
    with pytest.raises(CheckpointDamaged, match=r"transformers\.AutoModelForImageClassification\.from_pretrained"):
        MergeModel.from_pretrained(folder)
