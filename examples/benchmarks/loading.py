"""Time from a warm cache to the first prediction: a configuration of a front, beside one fine-tune by transformers.

    python examples/benchmarks/loading.py runs/demo [--budget 0.5] [--out examples/benchmarks/results/loading.json]

`runs/demo` is a run of text tasks with its members built and its fine-tunes in `checkpoints/`, as `make demo` leaves
it. Family and fine-tunes are laid out as a cache of huggingface_hub holds them, and loaded by their ids, offline.

Every load runs in a process of its own. Imports come before the clock starts, that of transformers' model class too;
files are in the system's memory. The clock stops when one sentence is answered. The cases take turns, and the ratios
are of medians: of time on the clock, and of processor time, which counts where another job runs beside. Of the loads,
only those by hf-merge compare digests: they hash every byte that they use.
"""

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

from hf_merge.storing import front as fronts
from hf_merge.storing.front import FrontPoint


OWNER, COMMIT, ROUNDS = "bench", "0" * 40, 7
SENTENCE = "do i need a visa to visit japan next month"
FINE_TUNE, ONE_TASK, KNOWN, ROUTED = "one fine-tune", "tasks=[one]", "all tasks, the task known", "all tasks, routed"
ALL_FINE_TUNES = "all fine-tunes"
CASES = (FINE_TUNE, ONE_TASK, KNOWN, ROUTED, ALL_FINE_TUNES)


def main() -> None:
    """Measures and prints the table as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run folder with members and checkpoints")
    parser.add_argument("--budget", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, help="write the JSON here as well")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case is not None:
        print(json.dumps(measure(arguments.case, arguments.run, arguments.budget)))
        return
    with tempfile.TemporaryDirectory() as cache:
        fill_cache(Path(cache), arguments.run)
        seconds: dict[str, list[tuple[float, float]]] = {case: [] for case in CASES}
        for _ in range(arguments.rounds):
            for case, times in seconds.items():
                times.append(alone(case, Path(cache), arguments.run, arguments.budget))
    text = json.dumps(table(seconds, arguments.budget), indent=1)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")


def table(seconds: dict[str, list[tuple[float, float]]], budget: float) -> dict[str, object]:
    """Returns medians of clock and processor time, and their ratios to loading one fine-tune."""
    medians = {case: [median(column) for column in zip(*times, strict=True)] for case, times in seconds.items()}
    one = medians[FINE_TUNE]
    rows = [
        {
            "what": case,
            "seconds": round(clock, 3),
            "processor_seconds": round(processor, 3),
            "of_one_fine_tune": round(clock / one[0], 2),
            "of_its_processor_seconds": round(processor / one[1], 2),
        }
        for case, (clock, processor) in medians.items()
    ]
    threads = torch.get_num_threads()
    machine = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {threads} threads"
    return {"machine": machine, "budget": budget, "rounds": len(seconds[FINE_TUNE]), "results": rows}


def fill_cache(cache: Path, run: Path) -> None:
    """Lays the family, its members and the fine-tunes out as huggingface_hub keeps what it has fetched."""
    front = fronts.read(run / "front.json")
    points = tuple(publish(cache, run, point) for point in front.points)
    family = {"front.json": fronts.dump(replace(front, points=points))}
    snapshot(cache, "family").joinpath("front.json").write_bytes(family["front.json"])
    for task in front.tasks:
        link(run / "checkpoints" / task, snapshot(cache, task))


def publish(cache: Path, run: Path, point: FrontPoint) -> FrontPoint:
    """Puts a member into the cache, if it was built, and returns its point as a push would publish it."""
    folder = run / "members" / point.id
    if not (folder / "chains.json").is_file():
        return point
    link(folder, snapshot(cache, point.id))
    digest = hashlib.sha256((folder / "chains.json").read_bytes()).hexdigest()
    return replace(point, repo=f"{OWNER}/{point.id}", revision=COMMIT, map_sha256=digest)


def snapshot(cache: Path, name: str) -> Path:
    """Returns a new snapshot folder of a repo, which its default branch leads to."""
    repo = cache / f"models--{OWNER}--{name}"
    folder = repo / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    return folder


def link(source: Path, target: Path) -> None:
    """Puts a folder's files into another by symbolic links, as in a cache."""
    for path in source.iterdir():
        (target / path.name).symlink_to(path.resolve())


def alone(case: str, cache: Path, run: Path, budget: float) -> tuple[float, float]:
    """Returns clock and processor time of one load, made in a process of its own."""
    command = [sys.executable, __file__, str(run), "--budget", str(budget), "--case", case]
    environment = {**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    clock, processor = json.loads(done.stdout.splitlines()[-1])
    return clock, processor


def measure(case: str, run: Path, budget: float) -> tuple[float, float]:
    """Returns clock and processor seconds from a warm cache to the first prediction."""
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    from hf_merge.serving.model import MergeModel

    tasks = list(fronts.read(run / "front.json").tasks)
    config = AutoConfig.from_pretrained(f"{OWNER}/{tasks[0]}")
    # Looking the class up imports it, as loading would.
    AutoModelForSequenceClassification._model_mapping[type(config)]
    AutoTokenizer.from_pretrained(f"{OWNER}/{tasks[-1]}")

    def fine_tune(task: str) -> str:
        model = AutoModelForSequenceClassification.from_pretrained(f"{OWNER}/{task}").eval()
        tokenizer = AutoTokenizer.from_pretrained(f"{OWNER}/{task}")
        with torch.inference_mode():
            logits = model(**tokenizer([SENTENCE], return_tensors="pt")).logits
        return str(model.config.id2label[int(logits.argmax())])

    def merged(chosen: list[str] | None, task: str | None) -> None:
        model = MergeModel.from_pretrained(f"{OWNER}/family", budget=budget, tasks=chosen)
        model.predict([SENTENCE], task=task)

    actions: dict[str, Callable[[], object]] = {
        FINE_TUNE: lambda: fine_tune(tasks[0]),
        ONE_TASK: lambda: merged([tasks[0]], None),
        KNOWN: lambda: merged(None, tasks[0]),
        ROUTED: lambda: merged(None, None),
        ALL_FINE_TUNES: lambda: [fine_tune(task) for task in tasks],
    }
    start, spent = time.perf_counter(), time.process_time()
    actions[case]()
    return time.perf_counter() - start, time.process_time() - spent


if __name__ == "__main__":
    main()
