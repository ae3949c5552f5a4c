"""What residual experts and methods as genes buy: fronts of preset `frontier` beside those of the paper's space.

    python examples/benchmarks/frontier.py RECIPE --out FILE.json [--seeds 0 1 2] [--evaluations 150] [--cache FOLDER]
        [--variants frontier paper ...] [--test-rows 300]

`frontier`: partitions, methods and codecs searched together, with preset `frontier`'s own lists.
`paper`: preset `paper` on the recipe's first merge method and 8 bits. `fast`: the same space by preset `fast`.
`random`: the space of `frontier` by random search, begun with the same uniform ladders.
`ladder`: no search; all tasks apart in every codec of `frontier`, and all merged by each of its methods.

All variants evaluate as many configurations on the same validation rows, which a seed draws (`ladder` as many as there
are). By validation rows a configuration is chosen, by test rows it is told: for each level of the fine-tunes'
performance the cheapest that reaches it, and for each budget the best. Performance is the mean over tasks of the
ratio to the fine-tune's own score; and, in a table of its own, the ratio of the mean scores (P), in which a task whose
fine-tune scores little counts little. The excess is what C is above the cheapest 8-bit model for all tasks.
Hypervolumes are of the validation rows, in the box from the base's P to 1 and from C = 0.25 to 1.1 times all
fine-tunes apart in 8 bits, on a linear and on a logarithmic axis of C.

With --cache the run folders and test scores are kept, and a finished run of the same settings is not searched again
(delete it when checkpoints or data have changed). FILE.md and FILE.png lie beside FILE.json. A recipe of the text
suite comes from `examples/text_suite.py --data DATA`.
"""

import argparse
import hashlib
import json
import math
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from hf_merge.recipe import Recipe
from hf_merge.recipe.presets import MERGE_PRESETS
from hf_merge.searching.building import reference_chain
from hf_merge.searching.configuration import Configuration
from hf_merge.searching.evaluation import Evaluator
from hf_merge.searching.pareto import Reference, hypervolume
from hf_merge.searching.search import normalised_performance
from hf_merge.storing import front as fronts
from hf_merge.storing.canvas import FAINT, INK, PAPER, SMALL, new_figure, png
from hf_merge.storing.durable import Journal, write_atomic
from hf_merge.storing.front import Front
from hf_merge.storing.markdown import table
from hf_merge.workflow.configurations import new_builder
from hf_merge.workflow.project import DTYPES, Reader, open_project, task_runs
from hf_merge.workflow.records import Evaluated, read_history
from hf_merge.workflow.rows import load_rows
from hf_merge.workflow.run_folder import FRONT_FILE, JOURNAL_FILE
from hf_merge.workflow.search import search


LEVELS = (0.97, 0.99, 0.995, 1.0)
BUDGETS = (0.26, 0.30, 0.35, 0.50, 0.75, 1.0)
VARIANTS = ("frontier", "paper", "fast", "random", "ladder")
KEPT = ("validation_rows", "batch_size", "max_length", "dtype")
_LEAST_COST = 0.25
_LOOKS = (("#1d4ed8", "o"), ("#b4490a", "s"), ("#047857", "^"), ("#7c3aed", "v"), ("#6b7280", "D"))
_TICKS = (0.25, 0.3, 0.4, 0.5, 0.7, 1.0, 1.5, 2.0)
# All in points, 1/72 inch.
_WIDTH, _HEIGHT, _LEFT, _BELOW, _MARGIN = 420.0, 280.0, 48.0, 36.0, 60.0
Row = dict[str, Any]


def main() -> None:
    """Runs the searches, scores what they choose on test rows, and prints and writes the tables."""
    parser = searching_parser(__doc__, evaluations=150)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    chosen = parser.parse_args()
    recipe = Recipe.load(chosen.recipe)
    with ExitStack() as stack:
        folder = chosen.cache or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hf-merge-")))
        rows = [
            {"variant": variant, "seed": seed}
            | measured(varied(recipe, variant, seed, chosen.evaluations), variant, folder, chosen.test_rows)
            for seed in chosen.seeds
            for variant in chosen.variants
        ]
    limits = {"evaluations": chosen.evaluations, "test_rows": chosen.test_rows}
    found = {"machine": machine(), **limits, "seeds": chosen.seeds, "runs": rows}
    chosen.out.write_text(json.dumps(found, indent=1) + "\n")
    text = as_markdown(found)
    chosen.out.with_suffix(".md").write_text(text)
    chosen.out.with_suffix(".png").write_bytes(plot(rows))
    print(text, end="")


def searching_parser(description: str | None, evaluations: int) -> argparse.ArgumentParser:
    """Returns the options of a benchmark that searches a recipe once for each seed."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="the JSON to write; the table lies beside it")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--evaluations", type=int, default=evaluations, help="of every search")
    parser.add_argument("--test-rows", type=count, help="score on the first so many test rows of a task; default: all")
    parser.add_argument("--cache", type=Path, help="keep run folders and test scores here, and take them from here")
    return parser


def machine() -> Row:
    """Returns what ran the benchmark."""
    return {"cores": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__}


def count(text: str) -> int:
    """Returns a whole number of 1 or more that an option was given."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"it is {text}: give 1 or more")
    return int(text)


def varied(recipe: Recipe, variant: str, seed: int, evaluations: int) -> Recipe:
    """Returns the recipe as a variant searches it; `ladder` needs no more than its first generation."""
    document = recipe.model_dump(mode="json")
    section = {key: document["search"][key] for key in KEPT} | {"seed": seed, "evaluations": evaluations}
    if variant in ("paper", "fast"):
        document["merge"] |= {"methods": document["merge"]["methods"][:1], "codecs": ["int8"]}
        document["search"] = section | {"preset": variant}
        return Recipe.parse(document, f"as {variant}")
    document["merge"] |= MERGE_PRESETS["frontier"]
    document["search"] = section | {"preset": "frontier"}
    if variant == "random":
        document["search"] |= {"surrogate": "none", "initial": "random", "population": min(1000, evaluations)}
    if variant == "ladder":
        rungs = len(document["merge"]["methods"]) + len(document["merge"]["codecs"])
        document["search"] |= {
            "surrogate": "none",
            "initial": "random",
            "population": 2 * rungs,
            "evaluations": 2 * rungs,
        }
    return Recipe.parse(document, f"as {variant}")


def measured(recipe: Recipe, variant: str, folder: Path, test_rows: int | None) -> Row:
    """Returns what a search came to: levels, budgets, hypervolumes, seconds."""
    out, front, history = searched(recipe, variant, folder)
    if variant == "ladder":
        uniform = _uniform(recipe)
        history = [entry for entry in history if Configuration(entry.grouping, entry.methods, entry.codecs) in uniform]
    own, mean_own = front.individual, mean(front.individual.values())
    shares: dict[str, Callable[[Evaluated], float]] = {
        "level": lambda entry: normalised_performance(entry.scores, own),
        "mean": lambda entry: entry.performance / mean_own,
    }
    chosen = {f"{by} {level}": cheapest(history, level, share) for by, share in shares.items() for level in LEVELS}
    chosen |= {f"budget {budget}": best(history, budget) for budget in BUDGETS}
    tested = on_test_rows(recipe, out, [entry for entry in chosen.values() if entry is not None], test_rows)
    told = {key: None if entry is None else tested[str(entry.number)] for key, entry in chosen.items()}
    points = [(entry.cost, entry.performance) for entry in history]
    return {"evaluated": len(history), "chosen": told} | volumes(points, front)


def searched(recipe: Recipe, variant: str, folder: Path) -> tuple[Path, Front, list[Evaluated]]:
    """Returns a search's own folder, its front and all that it evaluated; a finished one is not run again."""
    name = hashlib.sha256(recipe.dump().encode()).hexdigest()[:12]
    out = folder / f"{variant}-seed{recipe.search.seed}-{name}"
    print(f"{variant}, seed {recipe.search.seed}: {out}", file=sys.stderr, flush=True)
    if (out / FRONT_FILE).is_file():
        front = fronts.read(out / FRONT_FILE)
    else:
        front = search(recipe, out, resume=out.exists(), progress=sys.stderr.isatty())
    with Journal(out / JOURNAL_FILE) as journal:
        return out, front, list(read_history(journal.records(), str(journal.path)).evaluations)


def _uniform(recipe: Recipe) -> set[Configuration]:
    """Returns the configurations that treat all components alike: all merged by each method, all apart in each codec.

    What a codec does not quantise it treats as the first does, and the space knows them as one.
    """
    with open_project(recipe) as project:
        space = project.space()
    merged = {space.all_merged(method) for method in range(space.methods)}
    return merged | {space.all_separate(codec=codec) for codec in range(space.codecs)}


def cheapest(history: Iterable[Evaluated], level: float, share: Callable[[Evaluated], float]) -> Evaluated | None:
    """Returns the cheapest configuration that reaches a level, a share of the fine-tunes' validation performance."""
    reaching = [entry for entry in history if share(entry) >= level]
    return min(reaching, key=lambda entry: (entry.cost, -entry.performance), default=None)


def best(history: Iterable[Evaluated], budget: float) -> Evaluated | None:
    """Returns the best configuration on validation rows within a budget."""
    within = [entry for entry in history if entry.cost <= budget]
    return max(within, key=lambda entry: (entry.performance, -entry.cost), default=None)


def volumes(points: Sequence[tuple[float, float]], front: Front) -> Row:
    """Returns the hypervolumes on a linear and on a logarithmic axis of C."""
    most, least = _box(front)
    box = Reference(1.0, least)
    linear = [((cost - _LEAST_COST) / (most - _LEAST_COST), value) for cost, value in points]
    ratio = math.log(most / _LEAST_COST)
    logarithmic = [(math.log(cost / _LEAST_COST) / ratio, value) for cost, value in points]
    return {
        "box": {"cost": [_LEAST_COST, most], "performance": least},
        "hypervolume": hypervolume(linear, box),
        "hypervolume_log": hypervolume(logarithmic, box),
    }


def _box(front: Front) -> tuple[float, float]:
    """Returns 1.1 times the cost of all fine-tunes apart in 8 bits, and the base's P."""
    return 1.1 * front.controls["all-separate"].cost, mean(front.pretrained.values())


def on_test_rows(recipe: Recipe, out: Path, entries: Sequence[Evaluated], limit: int | None) -> dict[str, Row]:
    """Returns cost, validation and test scores of evaluations, by number; what the folder knows is not run again."""
    path = out / f"tested-{limit or 'all'}.json"
    known: dict[str, Row] = json.loads(path.read_text()) if path.is_file() else {}
    missing = {entry.number: entry for entry in entries if str(entry.number) not in known}
    if not missing:
        return known
    with open_project(recipe) as project:
        loaded = load_rows(project.recipe, project.heads).items()
        rows = {task: data.test if limit is None else data.test.first(limit) for task, data in loaded}
        builder = new_builder(project, out)
        evaluator = Evaluator(builder, task_runs(project, rows, Reader(project)), DTYPES[recipe.search.dtype])
        own = {task: evaluator.score(task, reference_chain(project.components, (task,))) for task in rows}
        for number, entry in missing.items():
            found = evaluator.evaluate(Configuration(entry.grouping, entry.methods, entry.codecs))
            known[str(number)] = {
                "number": number,
                "cost": entry.cost,
                "validation": entry.performance,
                "test": found.performance,
                "normalised": normalised_performance(found.scores, own),
                "mean": found.performance / mean(own.values()),
                "codecs": [builder.codecs[codec].as_json() for codec in entry.codecs],
                "methods": [builder.methods[method].as_json() for method in entry.methods],
                "grouping": [list(column) for column in entry.grouping],
                "floor": builder.cost(project.space().all_merged()),
            }
            write_atomic(path, json.dumps(known, indent=1).encode())
    return known


def as_markdown(found: Mapping[str, Any]) -> str:
    """Returns the tables: what levels take, what budgets give, and hypervolumes."""
    variants = list(dict.fromkeys(run["variant"] for run in found["runs"]))
    runs = {name: [run for run in found["runs"] if run["variant"] == name] for name in variants}
    parts = [
        "Cheapest configuration that reaches a level on validation rows: C (excess over one merged model), and what "
        "it keeps on test rows. Means over seeds, ± standard deviation; 'n of m' where not every seed reached it.",
        table(["variant", *(f"{level:.1%}" for level in LEVELS)],
              [[name, *(_level(runs[name], f"level {level}") for level in LEVELS)] for name in variants]),
        "The same by the mean score P: cheapest that reaches a share of the fine-tunes' mean score, and the share on "
        "test rows.",
        table(["variant", *(f"{level:.1%}" for level in LEVELS)],
              [[name, *(_level(runs[name], f"mean {level}", "mean") for level in LEVELS)] for name in variants]),
        "Best configuration within a budget on validation rows: P on test rows, and the share of the fine-tunes' own.",
        table(["variant", *(f"C <= {budget:g}" for budget in BUDGETS)],
              [[name, *(_budget(runs[name], f"budget {budget}") for budget in BUDGETS)] for name in variants]),
        "Hypervolume on validation rows.",
        table(["variant", "evaluated", "linear in C", "logarithmic in C"],
              [[name, f"{mean(run['evaluated'] for run in runs[name]):g}",
                told([run["hypervolume"] for run in runs[name]], 4),
                told([run["hypervolume_log"] for run in runs[name]], 4)] for name in variants], right=3),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _level(runs: Sequence[Row], key: str, share: str = "normalised") -> str:
    reached = [run["chosen"][key] for run in runs if run["chosen"][key] is not None]
    if not reached:
        return "not reached"
    costs, excess = [each["cost"] for each in reached], [each["cost"] - each["floor"] for each in reached]
    kept = f"{told([100 * each[share] for each in reached], 1)} %"
    count = "" if len(reached) == len(runs) else f" ({len(reached)} of {len(runs)})"
    return f"{told(costs, 3)} ({mean(excess):.3f}): {kept}{count}"


def _budget(runs: Sequence[Row], key: str) -> str:
    within = [run["chosen"][key] for run in runs if run["chosen"][key] is not None]
    if not within:
        return "nothing"
    return f"{told([each['test'] for each in within], 3)}, {mean(100 * each['normalised'] for each in within):.1f} %"


def plot(runs: Sequence[Row]) -> bytes:
    """Returns the chosen configurations of all seeds on test rows as PNG bytes, C on a logarithmic axis."""
    figure = new_figure(_WIDTH, _HEIGHT)
    axes = figure.add_axes(
        (_LEFT / _WIDTH, _BELOW / _HEIGHT, 1 - _MARGIN / _WIDTH, 1 - _MARGIN / _HEIGHT), facecolor=PAPER
    )
    for variant, (color, marker) in zip(dict.fromkeys(run["variant"] for run in runs), _LOOKS, strict=False):
        own = [entry for run in runs if run["variant"] == variant for entry in run["chosen"].values() if entry]
        costs, kept = [entry["cost"] for entry in own], [100 * entry["normalised"] for entry in own]
        axes.plot(costs, kept, linestyle="", marker=marker, markersize=4, color=color, alpha=0.8, label=variant)
    axes.set_xscale("log")
    axes.set_xticks(_TICKS, [f"{tick:g}" for tick in _TICKS])
    axes.minorticks_off()
    axes.axhline(100, color=FAINT, linewidth=0.8)
    axes.set_xlabel("C, in full-precision models", color=INK, fontsize=SMALL)
    axes.set_ylabel("% of the fine-tunes, test rows", color=INK, fontsize=SMALL)
    axes.legend(loc="lower right", frameon=False, fontsize=SMALL, labelcolor=INK)
    axes.tick_params(colors=INK, labelsize=SMALL)
    axes.grid(color=FAINT, linewidth=0.4, alpha=0.5)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return png(figure)


def told(values: Sequence[float], digits: int) -> str:
    """Returns a mean, with the standard deviation where there is one."""
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
