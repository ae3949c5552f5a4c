"""A search that is killed again and again, at any moment, comes to the front that it would have come to anyway."""

import random
import time
from collections import Counter
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

from hf_merge.recipe import Recipe
from hf_merge.workflow.search import search
from tests import killing
from tests.tiny_runs import (
    ROUTER,
    SEARCH,
    SEARCH_MODULES,
    TinyRun,
    continue_search,
    require_beginning,
    require_same,
    write_recipe,
)


pytestmark = pytest.mark.slow
# By the criterion, what an expert costs is known for certain only when it is built: a resumed search must not know
# more than the first one knew at that point, or it chooses other candidates.
SETTINGS = {"search": {**SEARCH, "evaluations": 16}, "merge": {"codecs": [{"name": "int8", "policy": "criterion"}]}}


def nothing() -> None:
    pass


@dataclass(frozen=True)
class Undisturbed:
    """A recipe, and the folder of a search that nobody killed."""

    recipe: Path
    folder: Path


@pytest.fixture(scope="module")
def undisturbed(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    killing.preload(*SEARCH_MODULES)
    folder = tmp_path_factory.mktemp("undisturbed")
    recipe = write_recipe(folder / "recipe.yaml", tiny_run.family.recipe(**SETTINGS, router=ROUTER))
    search(Recipe.load(recipe), folder / "run", progress=False)
    return Undisturbed(recipe, folder / "run")


@pytest.mark.parametrize("kills", [12, pytest.param(200, marks=pytest.mark.soak)])
def test_killed_at_random_moments_it_comes_to_the_same_front(
    undisturbed: Undisturbed, tmp_path: Path, kills: int
) -> None:
    """Searches are killed, resumed and killed again until they come to their end, and the next one begins."""
    assert killing.run(nothing) == 0  # what the fork server needs to start is no part of a search's life
    start = time.monotonic()
    assert killing.run(continue_search, undisturbed.recipe, tmp_path / "alone") == 0
    longest, moments = time.monotonic() - start, random.Random(kills)
    lines, finished = Counter[int](), 0
    while lines.total() < kills:
        out = tmp_path / str(finished)
        if killing.kill_after(moments.uniform(0, longest), continue_search, undisturbed.recipe, out):
            lines[require_beginning(undisturbed.folder, out)] += 1
            longest *= 1.1  # a life is as long as the machine is busy: some are to be ended, and some to end
        else:
            require_same(undisturbed.folder, out)
            longest *= 0.8
            finished += 1
    continue_search(undisturbed.recipe, out)
    require_same(undisturbed.folder, out)
    print(f"{kills} kills in {finished + 1} runs, by lines of the journal: {sorted(lines.items())}")
    assert len(lines) > 3


def test_killed_at_one_write_after_another_it_comes_to_the_same_front(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """Each search goes on from what the one before left, and gets three writes further."""
    out = tmp_path / "run"
    for write in count(step=3):
        if not killing.kill_at_write(write, continue_search, undisturbed.recipe, out):
            break
        require_beginning(undisturbed.folder, out)
    assert write > 20
    require_same(undisturbed.folder, out)


@pytest.mark.soak
def test_killed_at_any_write_it_comes_to_the_same_front(undisturbed: Undisturbed, tmp_path: Path) -> None:
    for write in count():
        out = tmp_path / f"run-{write}"
        killed = killing.kill_at_write(write, continue_search, undisturbed.recipe, out)
        if not killed:
            break
        require_beginning(undisturbed.folder, out)
        continue_search(undisturbed.recipe, out)
        require_same(undisturbed.folder, out)
    assert write > 60
