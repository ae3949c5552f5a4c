"""A search that is killed again and again, at any moment, comes to the front that it would have come to anyway."""

import random
import time
from pathlib import Path

import pytest

from hf_merge.recipe import Recipe
from hf_merge.workflow.search import search
from tests import killing
from tests.tiny_runs import ROUTER, SEARCH, TinyRun


pytestmark = pytest.mark.slow
KILLS = 20
SETTINGS = {**SEARCH, "evaluations": 40, "population": 8}


def continue_search(recipe: str, out: Path) -> None:
    search(Recipe.load(Path(recipe)), out, resume=(out / "recipe.yaml").exists(), progress=False)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(1, 10))])
def test_killed_at_random_moments_it_comes_to_the_same_front(tiny_run: TinyRun, tmp_path: Path, seed: int) -> None:
    killing.preload("hf_merge.workflow.search", "hf_merge.searching.tasks", "datasets", "transformers")
    recipe = Recipe.parse(tiny_run.family.recipe(search=SETTINGS, router=ROUTER), "test")
    (tmp_path / "recipe.yaml").write_text(recipe.dump())
    undisturbed = tmp_path / "undisturbed"
    start = time.monotonic()
    assert killing.run(continue_search, str(tmp_path / "recipe.yaml"), undisturbed) == 0
    longest = 1.2 * (time.monotonic() - start)  # whatever this machine needs: some runs must come to their end
    moments, kills, runs = random.Random(seed), 0, 0
    while kills < KILLS:
        out = tmp_path / f"run-{runs}"
        while killing.kill_after(moments.uniform(0.0, longest), continue_search, str(tmp_path / "recipe.yaml"), out):
            kills += 1
        assert (out / "front.json").read_bytes() == (undisturbed / "front.json").read_bytes()
        assert (out / "journal.jsonl").read_bytes() == (undisturbed / "journal.jsonl").read_bytes()
        runs += 1
