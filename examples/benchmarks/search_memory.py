"""Peak memory of each process of a search, measured on MiniLM and reckoned from shapes for a base of a billion.

    python examples/benchmarks/search_memory.py [--out examples/benchmarks/results/search_memory.json]

MiniLM plus seeded noise stands for the fine-tunes, as in memory.py. For T = 2 and 8, and for one process and two, the
peak resident set of every process is given above what imports take, beside the sum of the checkpoints, and beside what
is reckoned from shapes: the larger of the task vectors' pass (the largest tensor of base and all fine-tunes) and of
an evaluation (kept experts, the assembled model, the largest component decoded, the largest tensor merged), plus the
hidden states, of which this search keeps none. The last rows reckon the same for a base with the shapes of
Llama-3.2-1B, built on the meta device; no weight is made.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import memory
import torch
from transformers import AutoModel, LlamaConfig

from hf_merge.merging.components import decompose


MIB = 2**20
LLAMA_1B: dict[str, Any] = {
    "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True,
}  # fmt: skip


def main() -> None:
    """Runs every setting in processes of its own and prints the table as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the JSON here as well")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(one_process(arguments.one, arguments.folder)))
        return
    with tempfile.TemporaryDirectory() as folder:
        memory.make_fine_tunes(Path(folder), 8)
        rows = [measured(Path(folder), tasks, processes) for tasks in (2, 8) for processes in (1, 2)]
    with torch.device("meta"):
        llama = AutoModel.from_config(LlamaConfig(**LLAMA_1B))
    shapes = {name: tuple(tensor.shape) for name, tensor in llama.state_dict().items()}
    billion = [reckoned(shapes, tasks, width) for tasks in (2, 8) for width in (4, 2)]
    text = json.dumps({"measured": rows, "billion": billion}, indent=1)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")


def measured(folder: Path, tasks: int, processes: int) -> dict[str, Any]:
    """Returns the peak of every process of one search, in MiB above its imports, and what was reckoned."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(processes):
        place = (
            {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port} if processes > 1 else {}
        )
        environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
        environment |= {name: str(value) for name, value in place.items()}
        command = [sys.executable, __file__, "--one", str(tasks), "--folder", str(folder)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
    found = [json.loads(process.communicate()[0].splitlines()[-1]) for process in started]
    return {
        "tasks": tasks,
        "processes": processes,
        "peak_mib": [round(row["peak_mib"], 1) for row in found],
        "reckoned_mib": found[0]["reckoned_mib"],
        "checkpoints_mib": found[0]["checkpoints_mib"],
    }


def one_process(tasks: int, folder: Path) -> dict[str, Any]:
    """Searches as one rank and returns its peak above the imports, in MiB."""
    from hf_merge import Recipe, search
    from hf_merge.workflow.project import open_project

    document = memory.recipe_document(folder, tasks)
    recipe = Recipe.parse(document, "the benchmark's recipe")
    memory.warm_up(folder)
    before = memory.peak()
    out = folder / f"run{tasks}-{os.environ.get('WORLD_SIZE', '1')}"
    search(recipe, out, progress=False, state_bytes=0)
    with open_project(recipe) as project:
        found = reckoned(project.family.shapes, tasks, 4)
    return found | {"peak_mib": memory.peak() - before}


def reckoned(shapes: Mapping[str, Sequence[int]], tasks: int, width: int) -> dict[str, Any]:
    """Returns what a process of a search holds at its peak, from shapes alone, in MiB.

    Args:
        shapes: The backbone's tensors.
        tasks: T.
        width: Bytes of a number of the assembled model: 4 for float32, 2 for bfloat16.
    """
    parameters = sum(prod(shape) for shape in shapes.values())
    largest = max(prod(shape) for shape in shapes.values())
    component = max(sum(prod(shapes[name]) for name in part.tensors) for part in decompose(shapes, "type"))
    vectors = 4 * (tasks + 1) * largest
    kept = min(4, tasks) * parameters // 2
    evaluating = kept + width * parameters + 4 * component + 4 * 3 * largest
    return {
        "parameters": parameters,
        "tasks": tasks,
        "bytes_per_number": width,
        "task_vectors_mib": round(vectors / MIB, 1),
        "evaluation_mib": round(evaluating / MIB, 1),
        "reckoned_mib": round(max(vectors, evaluating) / MIB, 1),
        "checkpoints_mib": round(4 * (tasks + 1) * parameters / MIB, 1),
    }


if __name__ == "__main__":
    main()
