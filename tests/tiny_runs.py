"""A tiny search, run and built once for all tests of the workflow and of the command line."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from hf_merge.recipe import Recipe
from hf_merge.storing.durable import Journal
from hf_merge.storing.front import Front
from hf_merge.workflow.build import build
from hf_merge.workflow.records import Evaluated, read_history
from hf_merge.workflow.run_folder import FRONT_FILE, JOURNAL_FILE, RECIPE_FILE
from hf_merge.workflow.search import search
from tests.tiny_models import TinyFamily


SEARCH: dict[str, Any] = {
    "preset": "paper",
    "population": 4,
    "evaluations": 9,
    "offspring": 12,
    "validation_rows": 24,
    "seed": 0,
}
# What a search imports while it runs: to be imported before it is forked again and again.
SEARCH_MODULES = (
    "datasets.packaged_modules.parquet.parquet",
    "hf_merge.workflow.search",
    "sklearn.cluster",
    "tests.tiny_runs",
    "transformers.models.bert.modeling_bert",
)
ROUTER = {"rows_per_task": 60, "epochs": 8, "learning_rate": 5e-3}


@dataclass(frozen=True)
class TinyRun:
    """A run folder with all its members, not to be changed, and what it was made from."""

    family: TinyFamily
    document: dict[str, Any]
    recipe: Recipe
    recipe_file: Path
    folder: Path
    front: Front
    members: tuple[Path, ...]


def build_run(family: TinyFamily, folder: Path, **changes: Any) -> TinyRun:
    """Returns a search, its settings changed, with its members in `folder`."""
    document = family.recipe(search=SEARCH | changes, router=ROUTER)
    recipe_file = write_recipe(folder / "recipe.yaml", document)
    recipe = Recipe.load(recipe_file)
    front = search(recipe, folder / "run", progress=False)
    members = tuple(build(folder / "run", progress=False))
    return TinyRun(family, document, recipe, recipe_file, folder / "run", front, members)


def copied_run(run: TinyRun, folder: Path) -> TinyRun:
    """Returns a copy in an empty folder: commands lock a run folder, which two processes may not do at once."""
    shutil.copytree(run.folder, folder / "run")
    members = tuple(folder / "run" / member.relative_to(run.folder) for member in run.members)
    recipe_file = Path(shutil.copy(run.recipe_file, folder))
    return replace(run, recipe_file=recipe_file, folder=folder / "run", members=members)


def write_recipe(path: Path, document: object) -> Path:
    """Writes a recipe and returns its path."""
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return path


def continue_search(recipe: Path, out: Path) -> None:
    """Searches into `out`, or goes on there."""
    search(Recipe.load(recipe), out, resume=out.exists(), progress=False)


def require_beginning(whole: Path, out: Path) -> int:
    """Checks that a disturbed search left only what an undisturbed one has: whole files, and of the journal the
    beginning; returns how many lines that is.
    """
    for name in (RECIPE_FILE, FRONT_FILE):
        assert not (out / name).exists() or (out / name).read_bytes() == (whole / name).read_bytes()
    journal = (out / JOURNAL_FILE).read_bytes() if (out / JOURNAL_FILE).exists() else b""
    assert (whole / JOURNAL_FILE).read_bytes().startswith(journal)
    assert not (out / FRONT_FILE).exists() or (whole / JOURNAL_FILE).read_bytes() == journal
    return journal.count(b"\n")


def require_same(whole: Path, out: Path) -> None:
    """Checks that a search came to what an undisturbed one came to, and left nothing over."""
    for name in (RECIPE_FILE, FRONT_FILE, JOURNAL_FILE):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert not list(out.glob("*.part"))


def evaluated(run: Path) -> list[Evaluated]:
    """Returns the evaluations in a run folder's journal, in order."""
    with Journal(run / JOURNAL_FILE) as journal:
        return list(read_history(journal.records(), str(journal.path)).evaluations)
