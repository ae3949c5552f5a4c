"""Loading and serving a configuration, decoded or packed, beside fine-tunes loaded by transformers.

    python examples/benchmarks/memory_modes.py RUN [--budget 0.36] [--out FILE.json] [--rounds 5] [--cold]

RUN is a run of text tasks whose configurations are built (`hf-merge build RUN`) and whose recipe names local
fine-tunes. Every case runs in a process of its own, the cases take turns, and medians are told: the time from the call
to the first answer to one sentence, the time of a batch of 32 sentences thereafter (of tasks in turn, routing left
out), and the resident memory that both added. Imports come before the clock starts. Files are in the system's memory;
with --cold, they are dropped from it before the clock starts, and come from the disk (a file system in memory has
none). Of the loads only those by hf-merge compare digests: they hash every byte that they use.
"""

import argparse
import gc
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import yaml

from hf_merge.storing import front as fronts
from hf_merge.storing.front import FrontPoint


SENTENCES = [f"do i need a visa to visit japan in the {number}th week of the year" for number in range(32)]
FINE_TUNE, ALL_FINE_TUNES = "one fine-tune, transformers", "all fine-tunes, transformers"
CASES = (FINE_TUNE, "one task, dense", "one task, packed", ALL_FINE_TUNES, "all tasks, dense", "all tasks, packed")
Ask = Callable[[str, list[str]], object]


def main() -> None:
    """Measures and prints the table as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run folder with its members built")
    parser.add_argument("--budget", type=float, default=0.36)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cold", action="store_true", help="read every file from the disk")
    parser.add_argument("--out", type=Path, help="write the JSON here as well")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    front = fronts.read(arguments.run / "front.json")
    built = [point for point in front.points if member_folder(arguments.run, point).is_dir()]
    point = fronts.within(built, arguments.budget)
    if arguments.case is not None:
        member = member_folder(arguments.run, point)
        print(json.dumps(measure(arguments.case, arguments.run, member, cold=arguments.cold)))
        return
    found: dict[str, list[list[float]]] = {case: [] for case in CASES}
    for _ in range(arguments.rounds):
        for case, rounds in found.items():
            rounds.append(alone(case, arguments.run, arguments.budget, arguments.cold))
    described = {"configuration": point.id, "cost": point.cost, "megabytes_of_c": 4e-6 * point.cost * front.parameters}
    text = json.dumps({"rounds": arguments.rounds, "cold": arguments.cold, **described} | table(found), indent=1)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")


def table(found: dict[str, list[list[float]]]) -> dict[str, object]:
    """Returns the machine, and medians by case, the first answer's also as a ratio to that of one fine-tune."""
    medians = {case: [median(column) for column in zip(*rounds, strict=True)] for case, rounds in found.items()}
    one = medians[FINE_TUNE]
    rows = [
        {
            "what": case,
            "seconds_to_first_answer": round(first, 3),
            "of_one_fine_tune": round(first / one[0], 2),
            "milliseconds_a_batch": round(1000 * batch, 1),
            "megabytes": round(memory / 1e6, 1),
        }
        for case, (first, batch, memory) in medians.items()
    ]
    threads = torch.get_num_threads()
    machine = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {threads} threads"
    return {"machine": machine, "results": rows}


def member_folder(run: Path, point: FrontPoint) -> Path:
    """Returns where a configuration lies once it is built."""
    return run / "members" / point.id


def drop(run: Path, member: Path) -> None:
    """Drops the files of all cases from the system's memory; file systems that live there have nowhere to drop to.

    Raises:
        SystemExit: The system cannot do that.
    """
    if not hasattr(os, "posix_fadvise"):
        raise SystemExit("--cold needs a system with posix_fadvise, such as Linux.")
    for folder in (member, *folders_of(run).values()):
        for path in folder.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def folders_of(run: Path) -> dict[str, Path]:
    """Returns the folders of the fine-tunes by task."""
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    return {task["name"]: Path(task["model"]) for task in recipe["tasks"]}


def alone(case: str, run: Path, budget: float, cold: bool) -> list[float]:
    """Returns what a case takes, in a process of its own."""
    command = [sys.executable, __file__, str(run), "--budget", str(budget), "--case", case, *["--cold"][: int(cold)]]
    environment = {**os.environ, "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    result: list[float] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(case: str, run: Path, member: Path, *, cold: bool) -> list[float]:
    """Returns seconds to the first answer, seconds of a batch, and the bytes of resident memory that they added."""
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    from hf_merge.serving.model import MergeModel

    folders = folders_of(run)
    tasks = list(folders) if case.startswith("all") else list(folders)[:1]
    config = AutoConfig.from_pretrained(folders[tasks[0]])
    AutoModelForSequenceClassification._model_mapping[type(config)]  # looking the class up imports it
    AutoTokenizer.from_pretrained(folders[tasks[0]])

    def transformers_models() -> Ask:
        models = {name: AutoModelForSequenceClassification.from_pretrained(folders[name]).eval() for name in tasks}
        tokenizer = AutoTokenizer.from_pretrained(folders[tasks[0]])

        def ask(task: str, texts: list[str]) -> object:
            with torch.inference_mode():
                return models[task](**tokenizer(texts, padding=True, return_tensors="pt")).logits

        return ask

    def merged(memory: str) -> Ask:
        model = MergeModel.from_pretrained(member, tasks=tasks, memory=memory)
        return lambda task, texts: model.predict(texts, task=task)

    gc.collect()
    if cold:
        drop(run, member)
    before = resident()
    start = time.perf_counter()
    ask = transformers_models() if case.endswith("transformers") else merged(case.rsplit(" ", 1)[1])
    for task in tasks:
        ask(task, SENTENCES[:1])
    first = time.perf_counter() - start
    held = resident() - before
    times = []
    for task in tasks * (8 // len(tasks)):
        start = time.perf_counter()
        ask(task, SENTENCES)
        times.append(time.perf_counter() - start)
    return [first, median(times), held]


def resident() -> int:
    """Returns the bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    main()
