"""What a search costs beside the naive loop, and what several processes bring.

    python examples/benchmarks/search.py naive RECIPE [--every 30] [--out FILE]
    python examples/benchmarks/search.py ranks RECIPE [--evaluations 20] [--out FILE]
    python examples/benchmarks/search.py parts RECIPE [--seeds 3] [--out FILE]

`naive` searches as the recipe says and then measures, on every 30th configuration that the search evaluated, the naive
loop: each task's model is assembled from its members' checkpoints (merged, encoded, decoded), all its rows are run in
the order of the data, batch by batch, padded to the longest row of the batch as transformers' Trainer does it, in the
same type. Nothing is kept; the rows are tokenised once. Beside it stands a careful loop: every expert built once per
configuration, and the very batches of the search. The ratios are those of whole searches, the naive one taken as its
mean times the evaluations, by the clock and by processor time, which other programs of the machine disturb less. Both
loops must come to the scores of the search: the careful one to the same bits, the naive one to the printed gap.

`ranks` runs the first evaluations of the recipe with one process and one thread, one process and two threads, and two
processes of one thread, and compares the seconds between the first evaluation and the last.

`parts` gives the hypervolume that preset `paper` reaches with 300 evaluations, and what 100 reach as the parts of
preset `fast` are added one after the other, for several seeds. All of these searches share one memory of scores, so
that it takes far less than their sum.

Recipes come from examples/text_suite.py and from the demo (runs/demo/recipe.yaml).
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from hf_merge.merging.experts import ExpertKey, build_expert, decode_expert
from hf_merge.merging.grouping import Grouping
from hf_merge.merging.task_vectors import measure
from hf_merge.modeling.assembly import TaskModel
from hf_merge.modeling.inputs import Batch, load_tokenizer, restore
from hf_merge.recipe import Recipe
from hf_merge.searching.building import reference_chain
from hf_merge.searching.configuration import Configuration
from hf_merge.searching.evaluation import Evaluator, mean_score, predictions
from hf_merge.searching.metrics import score
from hf_merge.searching.pareto import Reference
from hf_merge.searching.running import TaskRun
from hf_merge.searching.search import SearchSettings, run_search
from hf_merge.searching.space import SearchSpace
from hf_merge.searching.states import StateCache
from hf_merge.storing.durable import Journal
from hf_merge.workflow.configurations import new_builder
from hf_merge.workflow.project import DTYPES, Project, Reader, open_project, task_runs
from hf_merge.workflow.records import read_history
from hf_merge.workflow.rows import load_rows
from hf_merge.workflow.search import search


def main() -> None:
    """Runs one of the two measurements and prints it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["naive", "ranks", "parts"])
    parser.add_argument("recipe", type=Path)
    parser.add_argument(
        "--every", type=int, default=30, help="measure the loops on every so manieth evaluation; 0: not"
    )
    parser.add_argument("--evaluations", type=int, help="other than the recipe says")
    parser.add_argument("--preset", choices=["paper", "fast"], help="other than the recipe says")
    parser.add_argument("--seed", type=int, help="other than the recipe says")
    parser.add_argument("--granularity", help="other than the recipe says")
    parser.add_argument("--rows", type=int, help="validation rows per task, other than the recipe says")
    parser.add_argument("--against", type=int, help="evaluations of the naive search; default: as many as ours")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds `parts` takes")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), help="some of the parts")
    parser.add_argument("--out", type=Path, help="write the JSON here as well")
    chosen = parser.parse_args()
    recipe = changed(Recipe.load(chosen.recipe), chosen)
    if chosen.part == "naive":
        found = against_naive(recipe, chosen.every, chosen.against)
    else:
        found = with_ranks(recipe) if chosen.part == "ranks" else by_parts(recipe, chosen)
    text = json.dumps({"machine": machine(), "setting": setting(recipe)} | found, indent=1)
    print(text)
    if chosen.out is not None:
        chosen.out.write_text(text + "\n")


def changed(recipe: Recipe, chosen: argparse.Namespace) -> Recipe:
    """Returns the recipe with what the command line says otherwise."""
    document = recipe.model_dump(mode="json", exclude_unset=True)
    search_section, merge = document.setdefault("search", {}), document.setdefault("merge", {})
    if chosen.preset:  # the preset's own settings, and of the recipe only what does not belong to the search itself
        kept = ("validation_rows", "batch_size", "max_length", "dtype", "seed")
        document["search"] = search_section = {key: search_section[key] for key in kept if key in search_section}
    wanted = {
        "preset": chosen.preset,
        "seed": chosen.seed,
        "evaluations": chosen.evaluations,
        "validation_rows": chosen.rows,
    }
    search_section |= {key: value for key, value in wanted.items() if value is not None}
    if chosen.granularity:
        merge["granularity"] = chosen.granularity
    return Recipe.parse(document, str(chosen.recipe))


def against_naive(recipe: Recipe, every: int, against: int | None) -> dict[str, Any]:
    """Returns the seconds of a search and of the naive and the careful loop over some of its configurations."""
    with tempfile.TemporaryDirectory() as folder:
        out, began, worked = Path(folder) / "run", time.perf_counter(), time.process_time()
        with timed_forwards() as forwards:
            front = search(recipe, out, progress=sys.stderr.isatty())
        seconds, processor = time.perf_counter() - began, time.process_time() - worked
        with Journal(out / "journal.jsonl") as journal:
            evaluations = read_history(journal.records(), str(journal.path)).evaluations
        timings = [json.loads(line[line.index("{") :]) for line in (out / "timings.jsonl").read_text().splitlines()]
    sampled = evaluations[::every] if every else ()
    with open_project(recipe) as project:
        loops = Loops(project)
        rows = [loops.measured(entry.grouping, entry.scores) for entry in sampled]
    count = against or len(evaluations)
    means = {name: mean(row[name] for row in rows) for name in rows[0]} if rows else {}
    ratios = {}
    if rows:
        ratios = {
            "ratio_to_naive": means["naive_seconds"] * count / seconds,
            "ratio_to_careful": means["careful_seconds"] * count / seconds,
            "processor_ratio_to_naive": means["naive_processor_seconds"] * count / processor,
            "processor_ratio_to_careful": means["careful_processor_seconds"] * count / processor,
            "largest_gap_naive": max(row["naive_gap"] for row in rows),
            "largest_gap_careful": max(row["careful_gap"] for row in rows),
        }
    counted = ("pairs_asked", "pairs_run", "blocks_asked", "blocks_run")
    return {
        "evaluations": len(evaluations),
        "naive_evaluations": count,
        "hypervolume": front.hypervolume,
        "hypervolumes": {str(row["number"]): row["hypervolume"] for row in timings if row["number"] % 20 == 0},
        "search_seconds": seconds,
        "search_processor_seconds": processor,
        "forward_processor_seconds": forwards["forwards"],
        **ratios,
        "work": {name: sum(row[name] for row in timings) for name in counted},
        "means": means,
        "sampled": len(rows),
    }


@contextmanager
def timed_forwards() -> Iterator[dict[str, float]]:
    """Yields the processor seconds spent in forward passes."""
    seconds, original = {"forwards": 0.0}, TaskModel.logits

    def timing(model: TaskModel, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        began = time.process_time()
        logits = original(model, inputs)
        seconds["forwards"] += time.process_time() - began
        return logits

    setattr(TaskModel, "logits", timing)  # noqa: B010
    try:
        yield seconds
    finally:
        setattr(TaskModel, "logits", original)  # noqa: B010


class Loops:
    """The loops that a search is compared with, over the recipe's rows."""

    def __init__(self, project: Project) -> None:
        """Arranges the rows in both ways."""
        self._project, self._dtype = project, DTYPES[project.recipe.search.dtype]
        reader, data = Reader(project), load_rows(project.recipe, project.heads)
        self._runs = task_runs(project, {task: rows.search for task, rows in data.items()}, reader)
        tokenizer = load_tokenizer(reader.folder)
        self._as_they_come = {
            task: in_order(run, tokenizer, project.recipe.search.batch_size) for task, run in self._runs.items()
        }
        self._keys = new_builder(project)  # for identities only; nothing is built by it

    def measured(self, grouping: Grouping, scores: Mapping[str, float]) -> dict[str, float]:
        """Returns the seconds of one evaluation by each loop, and how far its scores are from those given."""
        began = time.perf_counter(), time.process_time()
        naive = {task: self._scored(run, self._as_they_come[task], grouping, {}) for task, run in self._runs.items()}
        between = time.perf_counter(), time.process_time()
        experts: dict[ExpertKey, dict[str, torch.Tensor]] = {}
        careful = {task: self._scored(run, run.batches, grouping, experts) for task, run in self._runs.items()}
        ended = time.perf_counter(), time.process_time()
        return {
            "naive_seconds": between[0] - began[0],
            "naive_processor_seconds": between[1] - began[1],
            "careful_seconds": ended[0] - between[0],
            "careful_processor_seconds": ended[1] - between[1],
            "naive_gap": max(abs(naive[task] - scores[task]) for task in scores),
            "careful_gap": max(abs(careful[task] - scores[task]) for task in scores),
        }

    def _scored(
        self,
        run: TaskRun,
        batches: Sequence[Batch],
        grouping: Grouping,
        experts: dict[ExpertKey, dict[str, torch.Tensor]],
    ) -> float:
        for key in self._keys.chain(Configuration(grouping), run.name):
            if key not in experts:
                experts[key] = self._built(key)
            run.model.set_backbone(experts[key], self._project.family.base.trunk)
        outputs = restore(batches, [run.model.logits(batch.inputs).float() for batch in batches])
        run.model.clear()
        return score(run.metric, predictions(outputs), run.labels)

    def _built(self, key: ExpertKey) -> dict[str, torch.Tensor]:
        family = self._project.family
        component = next(part for part in self._project.components if part.name == key.component)
        expert = build_expert(key, component, family.shapes, family.base, family.tasks)
        decoded = decode_expert(key.codec, component.tensors, expert.tensors)
        return {name: tensor.to(self._dtype) for name, tensor in decoded.items()}


def in_order(run: TaskRun, tokenizer: Any, batch_size: int) -> list[Batch]:
    """Returns a task's rows in the order of the data, so many a batch, padded to the longest of each."""
    rows: dict[int, dict[str, list[int]]] = {}
    for batch in run.batches:
        lengths = batch.inputs["attention_mask"].sum(1).tolist()
        for place, row in enumerate(batch.rows.tolist()):
            rows[row] = {name: value[place, : lengths[place]].tolist() for name, value in batch.inputs.items()}
    batches = []
    for start in range(0, len(rows), batch_size):
        numbers = list(range(start, min(start + batch_size, len(rows))))
        columns = {name: [rows[number][name] for number in numbers] for name in rows[start]}
        batches.append(Batch(dict(tokenizer.pad(columns, return_tensors="pt")), np.array(numbers, dtype=np.int64)))
    return batches


def with_ranks(recipe: Recipe) -> dict[str, Any]:
    """Returns the seconds between the first evaluation and the last, by processes and threads."""
    seconds = {}
    for processes, threads in ((1, 1), (1, 2), (2, 1)):
        with tempfile.TemporaryDirectory() as folder:
            path, out = Path(folder) / "recipe.yaml", Path(folder) / "run"
            path.write_text(recipe.dump())
            command = [sys.executable, "-m", "hf_merge", "search", str(path), "--out", str(out)]
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            subprocess.run(
                [*command, "--num-processes", str(processes)],
                env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            lines = (out / "timings.jsonl").read_text().splitlines()
            ends = [json.loads(line[line.index("{") :])["seconds"] for line in (lines[0], lines[-1])]
            seconds[f"{processes} processes, {threads} threads each"] = ends[1] - ends[0]
    two = seconds["2 processes, 1 threads each"]
    return {
        "seconds": seconds,
        "two_processes_to_two_threads": seconds["1 processes, 2 threads each"] / two,
        "two_processes_to_one_thread": seconds["1 processes, 1 threads each"] / two,
    }


PARTS: Mapping[str, Mapping[str, Any]] = {
    "paper": {},
    "a forest per task": {"surrogate": "random_forest_per_task"},
    "and the ladder": {"surrogate": "random_forest_per_task", "initial": "ladder"},
    "and hypervolume": {"surrogate": "random_forest_per_task", "initial": "ladder", "screening": "hypervolume"},
    "and imagined generations (fast)": {
        "surrogate": "random_forest_per_task", "initial": "ladder", "screening": "hypervolume",
        "imagined_generations": 15,
    },
    "imagined generations without hypervolume": {
        "surrogate": "random_forest_per_task", "initial": "ladder", "imagined_generations": 15,
    },
}  # fmt: skip


def by_parts(recipe: Recipe, chosen: argparse.Namespace) -> dict[str, Any]:
    """Returns the hypervolumes of searches whose settings differ by the parts of preset `fast`, by evaluations.

    The searches share one evaluator, so that a (task, chain) pair is run once for all of them.
    """
    found: dict[str, list[dict[int, float]]] = {}
    with open_project(recipe) as project:
        data = load_rows(project.recipe, project.heads)
        runs = task_runs(project, {task: rows.search for task, rows in data.items()}, Reader(project))
        evaluator = Evaluator(new_builder(project), runs, DTYPES[project.recipe.search.dtype], StateCache(2 * 10**9))
        family, components = project.family, project.components
        space = SearchSpace(tuple(component.name for component in components), tuple(family.tasks))
        geometry = measure(components, family.shapes, family.base, family.tasks)
        grams = [geometry.grams[component.name] for component in components]
        pretrained = {task: evaluator.score(task, reference_chain(components, ())) for task in runs}
        box = Reference.from_extremes(evaluator.cost(space.all_separate()), mean_score(pretrained))
        for name in chosen.only or PARTS:
            part = PARTS[name]
            for seed in range(chosen.seeds):
                settings = SearchSettings(evaluations=100 if part else 300, seed=seed, **part)
                archive = run_search(space, evaluator, grams, settings, box)
                found.setdefault(name, []).append(dict(archive.history))
            print(name, [row[max(row)] for row in found[name]], file=sys.stderr, flush=True)
    return {"seeds": chosen.seeds, "hypervolumes": found}


def setting(recipe: Recipe) -> dict[str, Any]:
    """Returns what of a recipe decides the cost."""
    merge = {"granularity": recipe.merge.granularity, "stages": recipe.merge.stages}
    return {"tasks": len(recipe.tasks)} | merge | recipe.search.model_dump(mode="json")


def machine() -> dict[str, Any]:
    """Returns what the figures were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    processor = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    main()
