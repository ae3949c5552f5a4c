"""How fast each codec encodes and decodes a matrix on one core, beside a copy of it, what it takes and what it loses.

    OMP_NUM_THREADS=1 python examples/benchmarks/codec_speed.py --out examples/benchmarks/results/codecs.json

Writes the same as a table to `codecs.md` beside the JSON. The matrices are Gaussian noise, which is the hardest there
is for most codecs: task vectors have heavier tails, and for `lowrank` and `rows` a structure that noise has not. Bytes
count the float32 weights, seconds are the processor's, so that other programs count little. Every number is the best
of several rounds, in which codecs and copies take turns; a copy goes into memory that is there already, where decoding
asks for it, too.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_merge.merging import codecs
from hf_merge.merging.codecs import CodecSpec
from hf_merge.merging.settings import spelled
from hf_merge.storing.markdown import table


COMMAND = "OMP_NUM_THREADS=1 python examples/benchmarks/codec_speed.py --out examples/benchmarks/results/codecs.json"
SHAPES = ((3072, 768), (384, 1536))
ROUNDS, REPEATS = 7, 3
NAME = "encoder.layer.0.output.dense.weight"
# Beside each codec at its defaults.
OTHERS: tuple[tuple[str, Mapping[str, object]], ...] = (
    ("int8", {"unit": "row"}), ("delta", {"bits": 4}), ("ternary", {"density": 0.1}), ("lowrank", {"rank": 32}),
)  # fmt: skip


def main() -> None:
    """Measures, prints the results as JSON, and writes them with their table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, help="write the JSON here as well, and the table beside it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = [measured(shape, arguments.rounds) for shape in SHAPES]
    machine = f"{platform.machine()}, {os.cpu_count()} cores, numpy {np.__version__}, torch {torch.__version__}"
    result = {"machine": machine, "rounds": arguments.rounds, "results": found}
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")
        arguments.out.with_suffix(".md").write_text(page(machine, found))


def measured(shape: tuple[int, int], rounds: int) -> dict[str, Any]:
    """Returns the speeds of a copy and of every codec for a matrix of a shape."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.05
    specs = [CodecSpec.resolve(name) for name in codecs.available()]
    specs += [CodecSpec.resolve(name, settings) for name, settings in OTHERS]
    stored = [codecs.get(spec.name).encode(NAME, weight, None, spec.mapping) for spec in specs]
    target = np.empty(shape, dtype=np.float32)
    best: dict[str, float] = {}

    def timed(what: str, action: Callable[[], object]) -> None:
        best[what] = min(best.get(what, np.inf), *(seconds(action) for _ in range(REPEATS)))

    for _ in range(rounds):
        timed("copy", lambda: np.copyto(target, weight.numpy()))
        for number, spec in enumerate(specs):
            codec, held, settings = codecs.get(spec.name), stored[number], spec.mapping
            timed(f"decode {number}", partial(codec.decode, NAME, held))
            timed(f"encode {number}", partial(codec.encode, NAME, weight, None, settings))
    speed = {what: 4e-9 * weight.numel() / taken for what, taken in best.items()}
    rows = [
        row(spec, weight, stored[number], speed[f"encode {number}"], speed[f"decode {number}"], speed["copy"])
        for number, spec in enumerate(specs)
    ]
    rows.sort(key=lambda each: -float(str(each["bits_per_weight"])))
    return {"shape": " x ".join(map(str, shape)), "copy_gb_per_s": round(speed["copy"], 2), "codecs": rows}


def seconds(action: Callable[[], object]) -> float:
    """Returns how much of the processor's time an action takes."""
    start = time.process_time()
    action()
    return time.process_time() - start


def row(
    spec: CodecSpec, weight: Tensor, stored: Mapping[str, Tensor], encode: float, decode: float, copy: float
) -> dict[str, object]:
    """Returns what one codec takes, loses and how fast it is.

    Args:
        spec: The codec.
        weight: What was encoded.
        stored: Its encoded tensors.
        encode: GB of float32 weights per second.
        decode: The same.
        copy: The same.
    """
    restored = codecs.get(spec.name).decode(NAME, stored).double()
    held = sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
    lost = (restored - weight.double()).square().sum() / weight.double().square().sum()
    whole = restored.data_ptr() == weight.data_ptr() or stored[NAME] is weight
    return {
        "codec": " ".join([spec.name, *(f"{name}={spelled(value)}" for name, value in spec.settings)]),
        "bits_per_weight": round(8 * held / weight.numel(), 3),
        "relative_squared_error": float(f"{float(lost):.3g}"),
        "encode_gb_per_s": round(encode, 3),
        "decode_gb_per_s": None if whole else round(decode, 2),
        "decode_of_copy": None if whole else round(decode / copy, 2),
    }


def page(machine: str, found: Sequence[Mapping[str, Any]]) -> str:
    """Returns the page of results."""
    lines = [
        "# What codecs take, lose, and how fast they are",
        "",
        "    " + COMMAND,
        "",
        f"{machine}, one thread. GB of float32 weights per second of processor time, the best of",
        "several rounds (other programs ran beside), on matrices of Gaussian noise. `full` hands out what is stored.",
        "Noise is the hardest there is for most codecs; of `lowrank` and `rows` it says nothing but their speed, as",
        "it has no rank and no rows that stand out.",
    ]
    for each in found:
        lines += [
            "",
            f"## {each['shape']}; a plain copy: {each['copy_gb_per_s']} GB/s",
            "",
            table(
                ["codec", "bits a weight", "relative squared error", "encode, GB/s", "decode, GB/s", "decode / copy"],
                [["–" if value is None else value for value in row.values()] for row in each["codecs"]],
            ),
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
