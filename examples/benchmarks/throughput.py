"""Merging, encoding and decoding, beside the machine's own copy bandwidth, all in one run.

    python examples/benchmarks/throughput.py [--out examples/benchmarks/results/throughput.json]

Eight synthetic fine-tunes of one base of 32 million parameters, in memory. Bytes count the float32 weights that are
read: of all members for a merge, of one tensor for encoding, of the decoded tensor for decoding. The ratio is to
copying a float32 array.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
import torch

from hf_merge.merging import codecs, methods
from hf_merge.merging.codecs import CodecSpec
from hf_merge.merging.methods import Member, MethodSpec


ELEMENTS, MEMBERS, ROUNDS = 32_000_000, 8, 5
ROWS = 8_000


def main() -> None:
    """Measures and prints the table as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the JSON here as well")
    arguments = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(ELEMENTS, generator=generator) * 0.05
    deltas = [torch.randn(ELEMENTS, generator=generator) * 1e-3 for _ in range(MEMBERS)]
    copy = copy_bandwidth(base)
    # What works on matrices takes its time by their shape, and would only average a flat vector.
    flat = [name for name, method in methods.available().items() if not method.shaped]
    rows = [merge_row(name, base, deltas, copy) for name in flat] + codec_rows(base, copy)
    machine = (
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    text = json.dumps({"machine": machine, "copy_gb_per_s": round(copy, 2), "results": rows}, indent=1)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")


def copy_bandwidth(base: torch.Tensor) -> float:
    """Returns the speed of copying a float32 array into memory that is there already, in GB of source per second."""
    source, target = base.numpy(), np.empty(ELEMENTS, dtype=np.float32)
    return 4e-9 * ELEMENTS / seconds(lambda: np.copyto(target, source))


def merge_row(name: str, base: torch.Tensor, deltas: list[torch.Tensor], copy: float) -> dict[str, object]:
    """Returns time and speed of one merge method over all members, without reading them from disk."""
    settings = MethodSpec.resolve(name, {}).mapping
    buffer = torch.empty(ELEMENTS)

    class Members:
        """The members in one buffer; a method may go through them more than once."""

        def __iter__(self) -> Iterator[Member]:
            for index, delta in enumerate(deltas):
                torch.add(base, delta, out=buffer)
                yield Member(f"task{index}", buffer, index)

    fill = seconds(lambda: [None for _ in Members()])
    taken = max(seconds(lambda: methods.get(name).merge(base, Members(), settings)) - fill, 1e-9)
    return row(f"merge {name}, {MEMBERS} members", taken, 4e-9 * ELEMENTS * MEMBERS, copy)


def codec_rows(base: torch.Tensor, copy: float) -> list[dict[str, object]]:
    """Returns time and speed of int8, per tensor and per row."""
    weight, rows = base.view(ROWS, -1), []
    for unit in ("tensor", "row"):
        codec, settings = codecs.get("int8"), CodecSpec.resolve("int8", {"unit": unit}).mapping
        stored = codec.encode("weight", weight, None, settings)
        encode = seconds(lambda: codec.encode("weight", weight, None, settings))  # noqa: B023
        decode = seconds(lambda: codec.decode("weight", stored))  # noqa: B023
        rows.append(row(f"encode int8 per {unit}", encode, 4e-9 * ELEMENTS, copy))
        rows.append(row(f"decode int8 per {unit}", decode, 4e-9 * ELEMENTS, copy))
    return rows


def row(name: str, taken: float, gigabytes: float, copy: float) -> dict[str, object]:
    """Returns one line of the table."""
    speed = gigabytes / taken
    return {"what": name, "seconds": round(taken, 4), "gb_per_s": round(speed, 2), "of_copy": round(speed / copy, 3)}


def seconds(action: Callable[[], object]) -> float:
    """Returns the median time of some rounds, after one that is not counted."""
    action()
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return median(times)


if __name__ == "__main__":
    main()
