"""What each part of the search is worth: hypervolume against evaluations, over seeds, one part changed at a time.

    python examples/benchmarks/ablations.py RECIPE --out FILE.json [--seeds 0 1 2] [--evaluations 300] [--cache FOLDER]

`granularity`: whole models (task-wise), layers, types of layer (the paper's components), types in stages of depth.
`surrogate`: a random forest that screens 100 offspring a generation, and none: every offspring is evaluated.
`initial`: the first generation by k-means on task vectors, or drawn at random; and k-means alone, as many
configurations of it as the others evaluate, without a search. Where k-means has no more to give, which happens in the
smallest spaces only, random configurations fill up.

Everything else is preset `paper` with the recipe's rows, sizes, merge method and codec. A seed decides the search and
the drawing of validation rows, so variants of one seed see the same rows. All hypervolumes are of one box: up to 1.1
times the dearest all-separate of any run, down to the least that the base scores. Where a space is smaller than the
evaluations allowed, its last hypervolume stands for the rest.

With --cache the run folders are kept, and a finished one of the same settings is not searched again (delete it when
checkpoints or data have changed); an unfinished one is continued. FILE.png and FILE.md lie beside FILE.json.

Source: MERGE, arXiv 2602.06552, Fig. 6 (granularity), Fig. 7 (surrogate) and Fig. 8 (first generation); that k-means
alone has the same number of evaluations is settled here. Recipes come from `examples/text_suite.py --data DATA` and
from the demo (runs/demo/recipe.yaml).
"""

import argparse
import hashlib
import json
import os
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

import torch

from hf_merge.recipe import Recipe
from hf_merge.searching.pareto import Reference, hypervolume
from hf_merge.storing import front as fronts
from hf_merge.storing.canvas import FAINT, INK, PAPER, SMALL, TEXT, new_figure, png
from hf_merge.storing.durable import Journal
from hf_merge.storing.markdown import table
from hf_merge.workflow.records import read_history
from hf_merge.workflow.run_folder import FRONT_FILE, JOURNAL_FILE
from hf_merge.workflow.search import search


if TYPE_CHECKING:
    from matplotlib.axes import Axes

# By ablation and variant, the settings of a recipe in which it differs; "all" stands for as many as evaluations.
ABLATIONS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "granularity": {name: {"merge.granularity": name} for name in ("model", "layer", "type", "type-stage")},
    "surrogate": {name: {"search.surrogate": name} for name in ("random_forest", "none")},
    "initial": {
        "kmeans": {"search.initial": "kmeans"},
        "random": {"search.initial": "random"},
        "kmeans only": {"search.initial": "kmeans", "search.population": "all"},
    },
}
_KEPT = ("population", "offspring", "validation_rows", "batch_size", "max_length", "dtype")
_LOOKS = (("#1d4ed8", "-"), ("#b4490a", "--"), ("#047857", "-."), ("#7c3aed", ":"))
# All in points, 1/72 inch.
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _BELOW, _ABOVE = 240.0, 190.0, 52.0, 14.0, 40.0, 24.0


@dataclass(frozen=True)
class Searched:
    """One search: pairs (C, P) in the order of their evaluation, and what bounds its box."""

    points: Sequence[tuple[float, float]]
    separate_cost: float
    pretrained: float


Curves = Mapping[str, Mapping[str, Sequence[Sequence[float]]]]  # by ablation and variant, one curve per seed


def main() -> None:
    """Runs the searches, writes JSON, table and plot, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="the JSON to write; table and plot lie beside it")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--evaluations", type=int, default=300, help="of every search; k-means alone takes up to 1000")
    parser.add_argument("--rows", type=int, help="validation rows per task, other than the recipe says")
    parser.add_argument("--only", nargs="+", choices=list(ABLATIONS), default=list(ABLATIONS))
    parser.add_argument("--cache", type=Path, help="keep the run folders here, and take finished ones from here")
    chosen = parser.parse_args()
    found = ablate(
        Recipe.load(chosen.recipe),
        seeds=chosen.seeds,
        evaluations=chosen.evaluations,
        rows=chosen.rows,
        only=chosen.only,
        cache=chosen.cache,
    )
    chosen.out.write_text(json.dumps({"machine": machine()} | found, indent=1) + "\n")
    text = as_markdown(found)
    chosen.out.with_suffix(".md").write_text(text)
    chosen.out.with_suffix(".png").write_bytes(plot(found["hypervolumes"]))
    print(text, end="")


def ablate(
    recipe: Recipe,
    *,
    seeds: Sequence[int],
    evaluations: int,
    rows: int | None = None,
    only: Sequence[str] = tuple(ABLATIONS),
    cache: Path | None = None,
) -> dict[str, Any]:
    """Returns the hypervolumes after each evaluation of all variants, and what they were measured with."""
    wanted = {
        (ablation, variant): [varied(recipe, changes, seed, evaluations, rows) for seed in seeds]
        for ablation in only
        for variant, changes in ABLATIONS[ablation].items()
    }
    with ExitStack() as stack:
        folder = cache or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hf-merge-")))
        runs = {}
        for (ablation, variant), recipes in wanted.items():
            print(f"{ablation}: {variant}", file=sys.stderr, flush=True)
            runs[ablation, variant] = [searched(altered, folder) for altered in recipes]
    everything = [run for found in runs.values() for run in found]
    box = Reference.from_extremes(
        max(run.separate_cost for run in everything), min(run.pretrained for run in everything)
    )
    curves: dict[str, dict[str, list[list[float]]]] = {ablation: {} for ablation in only}
    for (ablation, variant), found in runs.items():
        curves[ablation][variant] = [curve(run.points, box, evaluations) for run in found]
    return {
        "setting": setting(recipe, rows),
        "seeds": list(seeds),
        "evaluations": evaluations,
        "box": {"cost": box.cost, "performance": box.performance},
        "evaluated": {
            ablation: {variant: [len(run.points) for run in runs[ablation, variant]] for variant in curves[ablation]}
            for ablation in only
        },
        "hypervolumes": curves,
    }


def varied(recipe: Recipe, changes: Mapping[str, Any], seed: int, evaluations: int, rows: int | None) -> Recipe:
    """Returns the recipe as preset `paper` searches it, with a variant's changes."""
    document = recipe.model_dump(mode="json")
    section = {key: document["search"][key] for key in _KEPT}
    section |= {"preset": "paper", "seed": seed, "evaluations": evaluations}
    if rows is not None:
        section["validation_rows"] = rows
    document["search"] = section
    for key, value in changes.items():
        group, name = key.split(".")
        document[group][name] = evaluations if value == "all" else value
    return Recipe.parse(document, "with the settings of the ablation")


def searched(recipe: Recipe, folder: Path) -> Searched:
    """Returns the search of a recipe, done now unless `folder` holds the finished run of these very settings."""
    name = hashlib.sha256(recipe.dump().encode()).hexdigest()[:12]
    out = folder / f"seed{recipe.search.seed}-{name}"
    if (out / FRONT_FILE).is_file():
        front = fronts.read(out / FRONT_FILE)
    else:
        front = search(recipe, out, resume=out.exists(), progress=sys.stderr.isatty())
    with Journal(out / JOURNAL_FILE) as journal:
        history = read_history(journal.records(), str(journal.path)).evaluations
    return Searched(
        [(entry.cost, entry.performance) for entry in history],
        front.controls["all-separate"].cost,
        mean(front.pretrained.values()),
    )


def curve(points: Sequence[tuple[float, float]], box: Reference, evaluations: int) -> list[float]:
    """Returns the hypervolume after each of so many evaluations; the last one stands for those that were not done."""
    volumes = [hypervolume(points[: count + 1], box) for count in range(len(points))]
    return (volumes + volumes[-1:] * evaluations)[:evaluations]


def as_markdown(found: Mapping[str, Any]) -> str:
    """Returns the hypervolumes at a quarter, half and all of the evaluations, mean and deviation over seeds."""
    last = int(found["evaluations"])
    places = sorted({max(1, last // 4), max(1, last // 2), last})
    header = ["ablation", "variant", "evaluated", *(f"hypervolume at {place}" for place in places)]
    rows = [
        [
            ablation,
            variant,
            f"{mean(found['evaluated'][ablation][variant]):g}",
            *(told([seed[place - 1] for seed in seeds]) for place in places),
        ]
        for ablation, variants in found["hypervolumes"].items()
        for variant, seeds in variants.items()
    ]
    note = (
        f"Means over seeds {', '.join(map(str, found['seeds']))} (± standard deviation), in the box up to "
        f"C = {found['box']['cost']:.4f} and down to P = {found['box']['performance']:.4f}."
    )
    return f"{table(header, rows, right=len(places) + 1)}\n\n{note}\n"


def told(values: Sequence[float]) -> str:
    """Returns a mean, with the standard deviation where there is one."""
    return f"{mean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


def plot(curves: Curves) -> bytes:
    """Returns the curves as PNG bytes: one panel per ablation, a line per variant with its deviation over seeds."""
    width, height = _LEFT + _WIDTH + _RIGHT, _BELOW + _HEIGHT + _ABOVE
    figure = new_figure(len(curves) * width, height)
    for index, (ablation, variants) in enumerate(curves.items()):
        left = (index * width + _LEFT) / (len(curves) * width)
        box = (left, _BELOW / height, _WIDTH / (len(curves) * width), _HEIGHT / height)
        draw(figure.add_axes(box, facecolor=PAPER), ablation, variants)
    return png(figure)


def draw(axes: "Axes", ablation: str, variants: Mapping[str, Sequence[Sequence[float]]]) -> None:
    """Draws the panel of one ablation."""
    from matplotlib.ticker import MaxNLocator

    for (variant, seeds), (color, dashes) in zip(variants.items(), _LOOKS, strict=False):
        numbers = range(1, len(seeds[0]) + 1)
        means = [mean(values) for values in zip(*seeds, strict=True)]
        axes.plot(numbers, means, color=color, linestyle=dashes, linewidth=1.4, label=variant)
        if len(seeds) > 1:
            spread = [stdev(values) for values in zip(*seeds, strict=True)]
            low = [value - part for value, part in zip(means, spread, strict=True)]
            high = [value + part for value, part in zip(means, spread, strict=True)]
            axes.fill_between(numbers, low, high, color=color, alpha=0.12, linewidth=0)
    axes.set_title(ablation, color=INK, fontsize=TEXT, loc="left")
    axes.set_xlabel("evaluations", color=INK, fontsize=SMALL)
    axes.set_ylabel("hypervolume", color=INK, fontsize=SMALL)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
    axes.legend(loc="lower right", frameon=False, fontsize=SMALL, labelcolor=INK)
    axes.tick_params(colors=INK, labelsize=SMALL)
    axes.grid(color=FAINT, linewidth=0.4, alpha=0.5)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def setting(recipe: Recipe, rows: int | None) -> dict[str, Any]:
    """Returns what of the recipe all variants have in common."""
    kept = {key: getattr(recipe.search, key) for key in _KEPT}
    changed = {} if rows is None else {"validation_rows": rows}
    return {"tasks": len(recipe.tasks)} | recipe.merge.model_dump(mode="json") | kept | changed


def machine() -> dict[str, Any]:
    """Returns what the searches ran on; no hypervolume depends on it but by rounding."""
    return {"cores": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__}


if __name__ == "__main__":
    main()
