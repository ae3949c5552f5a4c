"""Recipes: defaults of preset `paper`, every broken rule at once with its place, and text that reads back."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from hf_merge.errors import RecipeError
from hf_merge.recipe import MAX_RECIPE_BYTES, METRICS, Recipe, differences, settings_of
from hf_merge.searching.metrics import is_regression_metric


TASK: dict[str, Any] = {"name": "sst2", "model": "org/sst2", "data": {"path": "sst2", "text": "sentence"}}
MINIMAL: dict[str, Any] = {"base": {"model": "org/base"}, "tasks": [TASK]}


def parse(**changes: Any) -> Recipe:
    return Recipe.parse(MINIMAL | changes, "test")


def test_without_a_preset_it_is_frontier() -> None:
    named = parse(search={"preset": "frontier"})
    assert parse() == parse(search={}) == named
    assert parse(search={"evaluations": 50}).merge == named.merge


def test_preset_paper() -> None:
    recipe = parse(search={"preset": "paper"})
    assert (recipe.merge.methods, recipe.merge.codecs, recipe.merge.granularity) == (
        ("task_arithmetic",), ("int8",), "type",
    )  # fmt: skip
    search, router = recipe.search, recipe.router
    assert (search.population, search.evaluations, search.offspring, search.seed) == (20, 300, 100, 0)
    assert (search.surrogate, search.initial) == ("random_forest", "kmeans")
    assert (router.rows_per_task, router.epochs, router.learning_rate) == (1000, 30, 5e-4)
    assert recipe.tasks[0].metric == "accuracy" and recipe.tasks[0].data.label == "label"


def test_the_metrics_are_those_that_are_computed() -> None:
    with pytest.raises(RecipeError, match=f"Known: {', '.join(sorted(METRICS))}."):
        is_regression_metric("no metric")


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "no tasks": ({"tasks": []}, "tasks: "),
    "two of one name": ({"tasks": [TASK, TASK]}, "two tasks of one name: sst2"),
    "a name with a slash": ({"tasks": [TASK | {"name": "a/b"}]}, "tasks.0.name"),
    "unknown metric": ({"tasks": [TASK | {"metric": "acc"}]}, "unknown metric 'acc'"),
    "no input": ({"tasks": [TASK | {"data": {"path": "x"}}]}, "name either a 'text' column"),
    "text and image": ({"tasks": [TASK | {"data": {"path": "x", "text": "t", "image": "i"}}]}, "name either"),
    "pair of an image": (
        {"tasks": [TASK | {"data": {"path": "x", "image": "i", "text_pair": "t"}}]}, "'text_pair' belongs to",
    ),
    "unknown split": (
        {"tasks": [TASK | {"data": {"path": "x", "text": "t", "data_files": {"dev": "f"}}}]}, "data_files",
    ),
    "no codec": ({"merge": {"codecs": []}}, "0 entries given"),
    "no method": ({"merge": {"methods": []}}, "0 entries given"),
    "nameless method": ({"merge": {"methods": [{"density": 0.2}]}}, "has no 'name'"),
    "preset": ({"search": {"preset": "papre"}}, "search.preset"),
    "population": ({"search": {"population": 3}}, "search.population"),
    "evaluations": ({"search": {"evaluations": 10}}, "evaluations (10) below the population (24)"),
    "seed": ({"search": {"seed": -1}}, "search.seed"),
    "dtype": ({"search": {"dtype": "float16"}}, "search.dtype"),
    "rate": ({"router": {"learning_rate": 0}}, "router.learning_rate"),
    "layers": ({"router": {"layers": "some"}}, "router.layers"),
    "key at the top": ({"serach": {}}, "serach: unknown setting. Did you mean 'search'?"),
    "key in a task": ({"tasks": [TASK | {"modle": "x"}]}, "tasks.0.modle: unknown setting. Did you mean 'model'?"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_is_told_with_its_place(name: str) -> None:
    changes, said = BROKEN[name]
    with pytest.raises(RecipeError) as caught:
        parse(**changes)
    assert said in str(caught.value)
    assert "pydantic" not in str(caught.value)


def test_every_broken_rule_is_told_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        parse(serach={}, router={"epochs": 0}, search={"seed": "x"})
    assert len(str(caught.value).splitlines()) == 4


def test_a_recipe_reads_back_as_it_was_written(tmp_path: Path) -> None:
    recipe = parse(merge={"methods": [{"name": "ties", "density": 0.3}]}, router={"layers": 2})
    (tmp_path / "recipe.yaml").write_text(recipe.dump(), encoding="utf-8")
    assert Recipe.load(tmp_path / "recipe.yaml") == recipe
    assert Recipe.load(tmp_path / "recipe.yaml").dump() == recipe.dump()


def test_a_recipe_is_not_changed_by_accident() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse().search.seed = 3


def test_the_settings_that_differ_are_listed() -> None:
    other = parse(search={"seed": 7}, tasks=[TASK | {"revision": "v2"}, TASK | {"name": "mnli"}])
    found = differences(parse(), other)
    assert "search.seed: 0 and 7" in found and "tasks.0.revision: None and v2" in found
    assert "tasks.1.name: (absent) and mnli" in found
    assert differences(other, other) == []


def test_a_method_is_a_name_or_a_mapping() -> None:
    assert settings_of("ties") == ("ties", {})
    assert settings_of({"name": "ties", "density": 0.2}) == ("ties", {"density": 0.2})


def test_a_file_that_is_too_large_is_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "big.yaml").write_bytes(b"#" * (MAX_RECIPE_BYTES + 1))
    with pytest.raises(RecipeError, match="is it a recipe"):
        Recipe.load(tmp_path / "big.yaml")


@pytest.mark.parametrize(
    "text", ["!!python/object/apply:os.system ['true']", "a: &a [*a]", "\xff".encode("latin-1"), "? [a]\n: b"]
)
def test_hostile_yaml_is_one_message(tmp_path: Path, text: str | bytes) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RecipeError):
        Recipe.load(path)


@pytest.mark.parametrize("text", ["[" * 20_000, "a: " + "1" * 5_000, "a: 2001-99-99"])
def test_what_python_cannot_hold_is_one_message(tmp_path: Path, text: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(RecipeError):
        Recipe.load(tmp_path / "recipe.yaml")


def test_no_more_is_read_of_a_file_than_it_takes_to_refuse_it(tmp_path: Path) -> None:
    with (tmp_path / "big.yaml").open("wb") as file:
        file.truncate(1 << 42)  # more than fits in memory, and nothing on the disk
    with pytest.raises(RecipeError, match="is it a recipe"):
        Recipe.load(tmp_path / "big.yaml")
    with pytest.raises(RecipeError, match="no regular file"):
        Recipe.load(Path("/dev/zero"))


@pytest.mark.parametrize("text", ["base: &a {model: x}", "base: {model: x}\nmerge: *a", "<<: *a"])
def test_anchors_and_aliases_are_refused_with_the_way_out(tmp_path: Path, text: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(RecipeError, match=r"no anchors and aliases .*: write the value out"):
        Recipe.load(tmp_path / "recipe.yaml")


def test_aliases_do_not_grow_into_a_message(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10))]
    lines += [yaml.safe_dump(MINIMAL), "merge: {methods: [{x: *a9}]}"]
    (tmp_path / "recipe.yaml").write_text("\n".join(lines))
    with pytest.raises(RecipeError) as caught:
        Recipe.load(tmp_path / "recipe.yaml")
    assert len(str(caught.value)) < 1_000


def test_a_recipe_whose_settings_are_one_object_is_written_without_aliases(tmp_path: Path) -> None:
    shared = {"density": [0.2]}
    recipe = parse(merge={"methods": [{"name": "ties", "x": shared}, {"name": "dare", "x": shared}]})
    (tmp_path / "recipe.yaml").write_text(recipe.dump(), encoding="utf-8")
    assert Recipe.load(tmp_path / "recipe.yaml") == recipe


def test_a_key_given_twice_below_the_top_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(MINIMAL) + "search:\n  seed: 1\n  seed: 2\n")
    with pytest.raises(RecipeError, match="the key 'seed' is given twice"):
        Recipe.load(tmp_path / "recipe.yaml")
