"""Renders the committed cards of the demo's family, as a push to `USER/demo` would write them.

    python cards/render.py              # from the small files that lie in cards/demo
    python cards/render.py runs/demo    # takes over those of a finished run first

What is rendered again without a change is the same bytes, so running this twice does nothing.
"""

import hashlib
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from hf_merge.recipe import Recipe
from hf_merge.storing import chains, results
from hf_merge.storing import front as fronts
from hf_merge.storing.card import Origin, Places, Source, family_card, member_card
from hf_merge.storing.front import Front, FrontPoint
from hf_merge.storing.plots import plot_front, plot_grouping
from hf_merge.workflow.build import choose_points
from hf_merge.workflow.origin import published_recipe
from hf_merge.workflow.publish import SENSIBLE, member_repos
from hf_merge.workflow.run_folder import FRONT_FILE, PLOT_FILE, RECIPE_FILE, REPORT_FILE


DEMO = Path(__file__).resolve().parent / "demo"
FAMILY = "USER/demo"
# The folder of the package that the demo starts from is called `model`; this is what lies in it, by its own card.
BASE, BASE_LICENCE = "all-MiniLM-L6-v2", "apache-2.0"
MEMBERS, MAP, CARD, GROUPING = "members", "chains.json", "README.md", "grouping.png"
NO_COMMIT = "0" * 40


def take_over(run: Path, folder: Path) -> None:
    """Copies the small files of a finished run: what the cards are rendered from, without local paths."""
    shutil.rmtree(folder, ignore_errors=True)
    front, recipe = fronts.read(run / FRONT_FILE), Recipe.load(run / RECIPE_FILE)
    repos = member_repos(FAMILY, front)
    for point in choose_points(front, (), SENSIBLE):
        member = folder / MEMBERS / repos[point.id].split("/")[1]
        member.mkdir(parents=True)
        shutil.copyfile(run / MEMBERS / point.id / MAP, member / MAP)
    shutil.copyfile(run / REPORT_FILE, folder / REPORT_FILE)
    named = recipe.model_copy(update={"base": recipe.base.model_copy(update={"model": BASE})})
    (folder / FRONT_FILE).write_bytes(fronts.dump(replace(front, base=BASE)))
    (folder / RECIPE_FILE).write_text(published_recipe(named), encoding="utf-8")


def rendered(folder: Path) -> dict[str, bytes]:
    """Returns the cards and pictures of a family and its members, by their path below `folder`."""
    read = fronts.read(folder / FRONT_FILE)
    report, origin = results.read(folder / REPORT_FILE), read_origin(folder / RECIPE_FILE)
    maps = {path.parent.name: path.read_bytes() for path in sorted((folder / MEMBERS).glob(f"*/{MAP}"))}
    repos = {chains.parse(data).id: f"{FAMILY.split('/')[0]}/{name}" for name, data in maps.items()}
    front = pushed(read, repos, {chains.parse(data).id: data for data in maps.values()})
    places = Places(FAMILY, repos, None)
    files = {
        CARD: family_card(front, report, origin, places).encode(),
        PLOT_FILE: plot_front(front, report),
        GROUPING: plot_grouping(front, [point for point in front.points if point.repo is not None]),
    }
    for name, data in maps.items():
        chain_map = chains.parse(data)
        points = [point for point in (front.point(chain_map.id),) if point is not None]
        files[f"{MEMBERS}/{name}/{CARD}"] = member_card(chain_map, front, report, origin, places).encode()
        files[f"{MEMBERS}/{name}/{GROUPING}"] = plot_grouping(front, points)
    return files


def read_origin(path: Path) -> Origin:
    """Returns what the cards say of the sources: the base and what was fine-tuned from it, all in local folders."""
    recipe = Recipe.load(path)
    tasks = {task.name: Source(Path(task.source).name, None, None, None) for task in recipe.tasks}
    return Origin(
        Source(Path(recipe.base.model).name, None, None, BASE_LICENCE), tasks, (), path.read_text(encoding="utf-8")
    )


def pushed(front: Front, repos: Mapping[str, str], maps: Mapping[str, bytes]) -> Front:
    """Returns a front whose points name the repos that they would be pushed to; there are no commits of them here."""

    def named(point: FrontPoint) -> FrontPoint:
        if point.id not in repos:
            return point
        digest = hashlib.sha256(maps[point.id]).hexdigest()
        return replace(point, repo=repos[point.id], revision=NO_COMMIT, map_sha256=digest)

    controls = {name: named(point) for name, point in front.controls.items()}
    return replace(front, points=tuple(map(named, front.points)), controls=controls)


def main() -> None:
    """Writes the cards, after taking over the run that is named, if one is."""
    if sys.argv[1:]:
        take_over(Path(sys.argv[1]), DEMO)
    for name, data in rendered(DEMO).items():
        (DEMO / name).write_bytes(data)


if __name__ == "__main__":
    main()
