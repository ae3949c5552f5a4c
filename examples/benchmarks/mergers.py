"""Times `hf-merge merge` from files to file: eight fine-tunes of GPT-2 small, each process from its start to its end.

    python examples/benchmarks/mergers.py make FOLDER        # once: 4.5 GB of random weights
    python examples/benchmarks/mergers.py run FOLDER [--methods average ties ...] [--mergekit PROGRAM] [--out JSON]

The weights are a random GPT-2 small (124,439,808 parameters, float32) and eight copies with Gaussian noise of 1e-3.
Beside the merges stands what no merge can do without: one process that reads the nine files into one buffer and writes
one. OMP_NUM_THREADS says how many threads; wall time and peak resident memory are those that the system reports for
the whole process. Each is run `--repeats` times, the methods in turn, and the median is shown. With the path of
`mergekit-yaml`, installed in an environment of its own, mergekit does the same merges in the same run.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel
from yaml import safe_dump

from hf_merge.merging import methods


TASKS, NOISE = 8, 1e-3
METHODS = [name for name, method in methods.available().items() if not method.shaped and method.needs is None]
# What mergekit calls the same, and its parameters of each model that are ours by default.
MERGEKIT = {
    "average": ("linear", {"weight": 1.0}),
    "task_arithmetic": ("task_arithmetic", {"weight": 0.4}),
    "ties": ("ties", {"weight": 1.0, "density": 0.2}),
    "breadcrumbs": ("breadcrumbs", {"weight": 0.2, "density": 0.15, "gamma": 0.006}),
}
_READ = """
import os, sys
buffer = bytearray(64 << 20)
for path in sys.argv[2:]:
    descriptor, place = os.open(path, os.O_RDONLY), 0
    while count := os.preadv(descriptor, [buffer], place):
        place += count
    os.close(descriptor)
length = os.path.getsize(sys.argv[2])
with open(sys.argv[1], "wb", buffering=0) as file:
    while length > 0:
        length -= file.write(memoryview(buffer)[:length])
    os.fsync(file.fileno())
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    making, running = commands.add_parser("make"), commands.add_parser("run")
    for each in (making, running):
        each.add_argument("folder", type=Path)
    running.add_argument("--methods", nargs="+", default=METHODS, metavar="METHOD")
    running.add_argument("--repeats", type=int, default=3)
    running.add_argument("--mergekit", type=Path, help="its program mergekit-yaml")
    running.add_argument("--out", type=Path, help="write the JSON here as well")
    chosen = parser.parse_args(arguments)
    if chosen.command == "make":
        make(chosen.folder.resolve())
    else:
        run(chosen.folder.resolve(), chosen.methods, chosen.repeats, chosen.mergekit, chosen.out)


def make(folder: Path) -> None:
    """Writes base, fine-tunes and a recipe."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config())
    model.save_pretrained(folder / "base")
    base = {name: value.clone() for name, value in model.state_dict().items()}
    for number in range(TASKS):
        noise = torch.Generator().manual_seed(1 + number)
        for name, value in model.state_dict().items():
            if name != "lm_head.weight":  # the embedding once more
                value.copy_(base[name] + NOISE * torch.randn(value.shape, generator=noise))
        model.save_pretrained(folder / f"task{number}")
    (folder / "recipe.yaml").write_text(safe_dump(recipe_of(folder), sort_keys=False))


def recipe_of(folder: Path) -> dict[str, Any]:
    """Returns a recipe of what `make` has made; nothing in it stands twice, for which YAML would write anchors."""
    tasks = [
        {
            "name": f"task{number}",
            "model": str(folder / f"task{number}"),
            "data": {
                "path": "parquet",
                "data_files": {"test": "none.parquet"},
                "text": "text",
                "label": "label",
                "template": "{text}",
                "answers": ["yes", "no"],
            },
        }
        for number in range(TASKS)
    ]
    return {"base": {"model": str(folder / "base")}, "tasks": tasks}


def commands_of(folder: Path, target: Path, names: Sequence[str], mergekit: Path | None) -> dict[str, list[str]]:
    """Returns what is timed, by name."""
    files = [str(folder / part / "model.safetensors") for part in ("base", *(f"task{n}" for n in range(TASKS)))]
    commands = {"(read nine, write one)": [sys.executable, "-c", _READ, str(target / "model.safetensors"), *files]}
    for name in names:
        merge = [sys.executable, "-m", "hf_merge", "merge", str(folder / "recipe.yaml")]
        commands[name] = [*merge, "--method", name, "--out", str(target)]
        if mergekit is not None and name in MERGEKIT:
            method, parameters = MERGEKIT[name]
            models = [{"model": str(folder / f"task{n}"), "parameters": parameters} for n in range(TASKS)]
            config = {"merge_method": method, "models": models, "dtype": "float32"}
            config |= {} if method == "linear" else {"base_model": str(folder / "base")}
            path = folder / f"mergekit-{name}.yaml"
            path.write_text(safe_dump(config))
            options = ["--no-copy-tokenizer", "--random-seed", "0", "--quiet"]
            commands[f"{name}, mergekit"] = [str(mergekit.resolve()), str(path), str(target), *options]
    return commands


def run(folder: Path, names: Sequence[str], repeats: int, mergekit: Path | None, out: Path | None) -> None:
    """Prints seconds and MiB of every method, and of reading and writing alone."""
    target = folder / "merged"
    commands = commands_of(folder, target, names, mergekit)
    taken: dict[str, list[tuple[float, float, float]]] = {name: [] for name in commands}
    for _ in range(repeats):
        for name, command in commands.items():
            shutil.rmtree(target, ignore_errors=True)
            if name.startswith("("):
                target.mkdir()
            taken[name].append(timed(command))
    shutil.rmtree(target, ignore_errors=True)
    rows = []
    for name, runs in taken.items():
        wall, processor, memory = (statistics.median(values) for values in zip(*runs, strict=True))
        rows.append({"method": name, "seconds": wall, "processor_seconds": processor, "peak_mib": memory})
        spread = f"{min(run[0] for run in runs):.2f} to {max(run[0] for run in runs):.2f}"
        print(f"{name:24} {wall:7.2f} s ({spread})  {processor:7.2f} s of a core  {memory:7.0f} MiB")
    document = {"threads": os.environ.get("OMP_NUM_THREADS"), "repeats": repeats, "rows": rows}
    if out is not None:
        out.write_text(json.dumps(document, indent=1) + "\n")


def timed(arguments: Sequence[str]) -> tuple[float, float, float]:
    """Returns wall seconds, processor seconds and peak MiB of a process.

    Raises:
        RuntimeError: It failed.
    """
    began = time.perf_counter()
    child = os.posix_spawn(arguments[0], list(arguments), os.environ)
    _, status, usage = os.wait4(child, 0)
    wall = time.perf_counter() - began
    if status != 0:
        raise RuntimeError(f"{' '.join(arguments[:6])} ended with status {status}.")
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


if __name__ == "__main__":
    main()
