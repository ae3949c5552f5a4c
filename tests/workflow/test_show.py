"""What a folder holds, and what words on the command line stand for."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from hf_merge.errors import InputError, RunFolderError
from hf_merge.recipe import Recipe
from hf_merge.serving.model import MergeModel
from hf_merge.workflow.build import build
from hf_merge.workflow.search import search
from hf_merge.workflow.show import read_inputs, show
from tests.tiny_models import TinyFamily
from tests.tiny_runs import ROUTER, SEARCH, TinyRun


def test_a_run_shows_its_front(tiny_run: TinyRun) -> None:
    document, table = show(tiny_run.folder)
    assert document["hypervolume"] == tiny_run.front.hypervolume
    assert all(point.id in table for point in (*tiny_run.front.points, *tiny_run.front.controls.values()))


def test_a_member_shows_its_experts_and_chains(tiny_run: TinyRun) -> None:
    document, table = show(tiny_run.members[0])
    assert document["id"] == tiny_run.members[0].name
    assert set(document["chains"]) == {"animals", "colours", "sizes"}
    assert all(expert["id"] in table for expert in document["experts"])
    chain_map = MergeModel.from_pretrained(tiny_run.members[0]).chain_map
    counted = round(4 * chain_map.cost * chain_map.base.parameters)
    assert f"on disk: {counted:,} bytes of experts and heads, which C counts" in table


def test_other_folders_show_nothing(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="holds neither"):
        show(tmp_path)
    (tmp_path / "recipe.yaml").touch()
    with pytest.raises(RunFolderError, match="has not ended"):
        show(tmp_path)


def test_words_are_texts_or_pairs_of_texts(tiny_run: TinyRun) -> None:
    model = MergeModel.from_pretrained(tiny_run.members[0])
    assert read_inputs(model, ["a cat", "a cat ||| a dog", "a|||b"]) == ["a cat", ("a cat", "a dog"), "a|||b"]


def test_words_are_image_files_where_the_model_reads_images(
    tiny_family: Callable[[str], TinyFamily], tmp_path: Path
) -> None:
    document = tiny_family("vit").recipe(search={**SEARCH, "evaluations": 4, "validation_rows": 8}, router=ROUTER)
    search(Recipe.parse(document, "test"), tmp_path / "run", progress=False)
    (member,) = build(tmp_path / "run", progress=False, max_configs=1)
    model = MergeModel.from_pretrained(member)
    Image.new("RGB", (20, 10), (200, 10, 10)).save(tmp_path / "red.png")
    (image,) = read_inputs(model, [str(tmp_path / "red.png")])
    assert image.size == (20, 10)
    assert len(model.predict([image])) == 1
    (tmp_path / "text.png").write_text("no image")
    for wrong in ("text.png", "absent.png"):
        with pytest.raises(InputError, match="cannot be read as an image"):
            read_inputs(model, [str(tmp_path / wrong)])
