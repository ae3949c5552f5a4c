"""Coefficients fitted for groups: kept, written into merges, and asked for group by group in a search."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hf_merge.errors import InputError, RecipeError
from hf_merge.merging.methods import MethodSpec
from hf_merge.modeling.mixture import Mixture
from hf_merge.recipe import Recipe
from hf_merge.workflow import fitting
from hf_merge.workflow.build import build
from hf_merge.workflow.fitting import _pupils, groups_within, merged_groups
from hf_merge.workflow.gathering import GatheredOnce
from hf_merge.workflow.merge import merge
from hf_merge.workflow.project import open_project
from hf_merge.workflow.run_folder import GATHERED_FOLDER, read_run
from hf_merge.workflow.search import search
from tests.tiny_models import TinyFamily
from tests.tiny_speakers import SpeakingFamily
from tests.workflow.test_build import require_the_logits_of_the_search


Families = Callable[[str], TinyFamily]
FEW = {
    "adamerging": {"rows": 6.0, "steps": 4.0, "rate": 0.05, "batch": 3.0},
    "expert_merging": {"rows": 3.0},
    "expert_merging_plus": {"rows": 3.0, "budget": 2.0},
}
WEIGHT = "encoder.layer.1.intermediate.dense.weight"


@pytest.mark.parametrize("method", FEW)
def test_a_merge_is_the_base_plus_the_task_vectors_times_what_was_kept(
    tiny_family: Families, tmp_path: Path, method: str
) -> None:
    family = tiny_family("bert")
    recipe, kept = Recipe.parse(family.recipe(), "test"), tmp_path / "kept"
    merge(recipe, tmp_path / "out", method=method, settings=FEW[method], gathered=kept, progress=False)
    base = load_file(family.base / "model.safetensors")[WEIGHT].double().reshape(-1)
    expected = base.clone()
    moved = []
    for name, task in family.tasks.items():
        coefficients = load_file(next(kept.glob(f"{name}-*.safetensors")))[f"1/{WEIGHT}"].double()
        vector = load_file(task.folder / "model.safetensors")[f"bert.{WEIGHT}"].double().reshape(-1) - base
        size = -(-len(vector) // len(coefficients))
        expected += coefficients.repeat_interleave(size)[: len(vector)] * vector
        moved += coefficients.tolist()
    found = load_file(tmp_path / "out" / "model.safetensors")[WEIGHT].double().reshape(-1)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    start = MethodSpec.resolve(method).mapping["scale"]
    assert max(abs(value - float(start)) for value in moved) > 1e-3


@pytest.mark.parametrize("method", FEW)
def test_of_one_task_nothing_is_fitted(tiny_family: Families, tmp_path: Path, method: str) -> None:
    family = tiny_family("bert")
    document = family.recipe()
    document["tasks"] = document["tasks"][:1]
    merge(Recipe.parse(document, "test"), tmp_path / "out", method=method, settings=FEW[method], progress=False)
    own = load_file(next(iter(family.tasks.values())).folder / "model.safetensors")[f"bert.{WEIGHT}"]
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")[WEIGHT], own)


@pytest.mark.parametrize("shallow", [1.0, 0.25])
@pytest.mark.parametrize("method", FEW)
def test_what_is_fitted_is_the_model_that_is_built(
    tiny_family: Families, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, shallow: float
) -> None:
    mixtures: list[Mixture] = []

    def mixed(*given: Any) -> Mixture:
        mixtures.append(Mixture(*given))
        return mixtures[-1]

    monkeypatch.setattr(fitting, "Mixture", mixed)
    family = tiny_family("bert")
    recipe, settings = Recipe.parse(family.recipe(), "test"), {**FEW[method], "shallow": shallow}
    merge(recipe, tmp_path / "out", method=method, settings=settings, progress=False)
    seen, built = mixtures[-1].weights(next(iter(family.tasks))), load_file(tmp_path / "out" / "model.safetensors")
    assert WEIGHT in seen and set(seen) <= set(built)
    for name, weight in seen.items():
        torch.testing.assert_close(weight, built[name])


def test_what_was_fitted_is_not_fitted_again(tiny_family: Families, tmp_path: Path) -> None:
    recipe, kept = Recipe.parse(tiny_family("distilbert").recipe(), "test"), tmp_path / "kept"
    for name in "ab":
        settings = FEW["expert_merging"]
        merge(recipe, tmp_path / name, method="expert_merging", settings=settings, gathered=kept, progress=False)
        times = {path: path.stat().st_mtime_ns for path in kept.iterdir()}
    assert times == {path: path.stat().st_mtime_ns for path in kept.iterdir()} and len(times) == 3
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    merge(recipe, tmp_path / "c", method="expert_merging", settings={"rows": 4.0}, gathered=kept, progress=False)
    assert len(list(kept.iterdir())) == 6


@pytest.mark.slow
@pytest.mark.parametrize("method", FEW)
def test_the_recipes_batches_change_nothing_that_is_fitted(tiny_family: Families, tmp_path: Path, method: str) -> None:
    found = []
    for size in (2, 32):
        recipe, kept = (
            Recipe.parse(tiny_family("bert").recipe(search={"batch_size": size}), "test"),
            tmp_path / str(size),
        )
        merge(recipe, kept / "out", method=method, settings=FEW[method], gathered=kept / "kept", progress=False)
        weights = (kept / "out" / "model.safetensors").read_bytes()
        found.append((weights, {path.name: path.read_bytes() for path in (kept / "kept").iterdir()}))
    assert found[0] == found[1]


def test_a_change_looks_at_as_many_rows_as_the_method_says(tiny_family: Families) -> None:
    """Also where the recipe's batches are smaller."""
    recipe = Recipe.parse(tiny_family("vit").recipe(search={"batch_size": 2}), "test")
    with open_project(recipe) as project:
        for batch, sizes in ((1, [1] * 7), (3, [3, 3, 1]), (7, [7]), (64, [7])):
            spec = MethodSpec.resolve("adamerging", {"rows": 7, "batch": batch})
            for pupil in _pupils(project, tuple(project.family.tasks), spec):
                assert [len(one.rows) for one in pupil.batches] == sizes


def test_a_row_of_a_language_model_is_one_whatever_its_options(tiny_speakers: Callable[[str], SpeakingFamily]) -> None:
    recipe = Recipe.parse(tiny_speakers("llama").recipe(search={"batch_size": 2}), "test")
    with open_project(recipe) as project:
        spec = MethodSpec.resolve("adamerging", {"rows": 7, "batch": 7})
        pupil = next(one for one in _pupils(project, tuple(project.family.tasks), spec) if one.model.num_labels > 1)
        assert [len(batch.rows) for batch in pupil.batches] == [7]


def test_every_group_has_coefficients_of_its_own(tiny_family: Families, tmp_path: Path) -> None:
    recipe, spec = (
        Recipe.parse(tiny_family("bert").recipe(), "test"),
        MethodSpec.resolve("expert_merging", {"rows": 3}),
    )
    with open_project(recipe) as project:
        one, two, three = tasks = tuple(project.family.tasks)
        known = GatheredOnce(project, tmp_path, progress=False)
        pair, all_of_them = known.of(spec, (one, two)), known.of(spec, tasks)
        assert set(pair) == {one, two} and set(all_of_them) == {one, two, three}
        first, second = pair[one].find(WEIGHT), all_of_them[one].find(WEIGHT)
        assert first is not None and second is not None and not torch.equal(first.values, second.values)
        assert known.of(spec, (one,)) == {}
        grouping = project.space().all_separate().grouping
        apart = groups_within(project, ((0, 0, 1), *grouping[1:]))
        assert next(iter(apart.values())) == [(one, two), (three,)]
        assert merged_groups(project, tasks)["mlp"] == (tasks,)


def test_coefficients_within_a_configuration_are_fitted_for_all_its_groups_together(
    tiny_family: Families, tmp_path: Path
) -> None:
    recipe = Recipe.parse(tiny_family("bert").recipe(), "test")
    spec = MethodSpec.resolve("expert_merging", {"rows": 3, "within": "c0300-abcdef"})
    with open_project(recipe) as project:
        one, two, three = project.family.tasks
        grouping = tuple((0, 0, 1) for _ in project.components)
        known = GatheredOnce(project, tmp_path, within={"c0300-abcdef": grouping}, progress=False)
        found = known.of(spec, (one, two))
        assert found is known.of(spec, (one, three)) and len(list(tmp_path.iterdir())) == 3
        assert found[one].find(WEIGHT) is not None and found[three].find(WEIGHT) is None


def test_a_configuration_that_nobody_knows_is_refused(tiny_family: Families, tmp_path: Path) -> None:
    spec = MethodSpec.resolve("expert_merging", {"within": "c0300-abcdef"})
    with open_project(Recipe.parse(tiny_family("bert").recipe(), "test")) as project:
        known = GatheredOnce(project, tmp_path, progress=False)
        with pytest.raises(RecipeError, match="within is 'c0300-abcdef', and no such configuration is known"):
            known.of(spec, tuple(project.family.tasks))


def test_a_search_may_merge_its_groups_so(tiny_family: Families, tmp_path: Path) -> None:
    merging = {"methods": [{"name": "expert_merging", "rows": 2}]}
    few = {"population": 4, "evaluations": 5, "validation_rows": 8}
    recipe = Recipe.parse(tiny_family("distilbert").recipe(merge=merging, search=few), "test")
    search(recipe, tmp_path / "run", progress=False)
    assert list((tmp_path / "run" / GATHERED_FOLDER).iterdir())
    front, _ = read_run(tmp_path / "run")
    build(tmp_path / "run", progress=False)
    require_the_logits_of_the_search(recipe, front.points, tmp_path / "run")


def test_settings_out_of_range_say_so(tiny_family: Families, tmp_path: Path) -> None:
    recipe = Recipe.parse(tiny_family("bert").recipe(), "test")
    with pytest.raises(RecipeError, match=r"'expert_merging': scale is 1.0; it must be a number in \[0.01, 0.99\]"):
        merge(recipe, tmp_path / "out", method="expert_merging", settings={"scale": 1.0}, progress=False)


def test_adapters_are_refused_with_a_reason(tiny_adapters: Callable[[str, str], TinyFamily], tmp_path: Path) -> None:
    recipe = Recipe.parse(tiny_adapters("bert", "lora").recipe(merge={"methods": ["expert_merging"]}), "test")
    with pytest.raises(InputError, match="looks into whole fine-tunes while they run, and these tasks are adapters"):
        search(recipe, tmp_path / "run", progress=False)
