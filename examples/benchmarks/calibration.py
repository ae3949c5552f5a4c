"""What calibration by unlabelled rows would do for low-rank differences: every task apart, with and without.

    python examples/benchmarks/calibration.py RECIPE --out FILE.json [--ranks 16 8 4] [--rows 32] [--shrink 0.9]

Plain, the codec `lowrank` stores the matrix of a rank that is closest to a fine-tune's difference D from the shared
expert. Calibrated, it stores the one whose outputs are closest on the fine-tune's own inputs x: with G the mean of
x x^T over some training rows, labels unread, and G = L L^T, the truncated SVD of D L times the inverse of L. As for
RegMean, `shrink` multiplies what of G is off the diagonal. Only linear layers have a G: embeddings stay as they are.
Performance is on the recipe's validation rows, of all fine-tunes apart in the same codec, normalised by the
fine-tunes' own. FILE.md lies beside FILE.json.

Source: D. Yuan et al., ASVD, arXiv 2312.05821, and X. Wang et al., SVD-LLM, arXiv 2403.07378, for whole weights.
"""

import argparse
import json
import os
import platform
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_merge.merging import codecs
from hf_merge.merging.experts import Expert, ExpertKey
from hf_merge.merging.methods import MethodSpec
from hf_merge.recipe import Recipe
from hf_merge.searching.building import ExpertBuilder, reference_chain
from hf_merge.searching.evaluation import Evaluator
from hf_merge.searching.search import normalised_performance
from hf_merge.storing.gathered import GatheredFile
from hf_merge.storing.markdown import table
from hf_merge.workflow.gathering import gathered
from hf_merge.workflow.project import DTYPES, Project, Reader, open_project, task_runs
from hf_merge.workflow.rows import load_rows


KEPT_BYTES = 2 * 2**30
DAMPING = 1e-3  # of the mean of the diagonal: inputs that never vary leave G singular
SHARED = {"name": "int8", "unit": "row"}


def main() -> None:
    """Measures every rank both ways, and prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="the JSON to write; the table lies beside it")
    parser.add_argument("--ranks", type=int, nargs="+", default=[16, 8, 4])
    parser.add_argument("--rows", type=int, default=32, help="training rows a task whose inputs are seen")
    parser.add_argument("--shrink", type=float, nargs="+", default=[0.9])
    chosen = parser.parse_args()
    document = Recipe.load(chosen.recipe).model_dump(mode="json")
    ranks = [{"name": "lowrank", "rank": rank} for rank in chosen.ranks]
    document["merge"] |= {"methods": ["average"], "codecs": [SHARED, *ranks]}
    document["search"] |= {"preset": "frontier"}
    with open_project(Recipe.parse(document, "for calibration")) as project, tempfile.TemporaryDirectory() as folder:
        found = measured(project, MethodSpec.resolve("regmean", {"rows": chosen.rows}), chosen.shrink, Path(folder))
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__}
    chosen.out.write_text(json.dumps({"machine": machine, "rows": chosen.rows, "results": found}, indent=1) + "\n")
    text = as_markdown(found)
    chosen.out.with_suffix(".md").write_text(text)
    print(text, end="")


def measured(project: Project, asking: MethodSpec, shrinks: list[float], folder: Path) -> list[dict[str, Any]]:
    """Returns cost and performance of every rank, plain and calibrated with every shrink."""
    data = load_rows(project.recipe, project.heads)
    runs = task_runs(project, {task: rows.search for task, rows in data.items()}, Reader(project))
    inputs, dtype = gathered(project, asking, folder, progress=False), DTYPES[project.recipe.search.dtype]
    results, own = [], dict[str, float]()
    for shrink in (None, *shrinks):
        builder = _Calibrated(project, inputs, shrink)
        evaluator = Evaluator(builder, runs, dtype)
        own = own or {task: evaluator.score(task, reference_chain(project.components, (task,))) for task in runs}
        for number, codec in enumerate(project.codecs):
            if codec.residual:
                configuration = project.space().all_separate(codec=number)
                scores = evaluator.evaluate(configuration).scores
                results.append({
                    "rank": int(codec.mapping["rank"]), "shrink": shrink, "cost": builder.cost(configuration),
                    "normalised": normalised_performance(scores, own), "scores": dict(scores),
                })  # fmt: skip
    return results


class _Calibrated(ExpertBuilder):
    """Builds experts as always, but projects differences with the inputs of their fine-tunes in mind first."""

    def __init__(self, project: Project, inputs: dict[str, GatheredFile], shrink: float | None) -> None:
        """Takes what was gathered of the inputs, by task; a shrink of None projects nothing beforehand."""
        super().__init__(project.family, project.components, project.methods, project.codecs, limit_bytes=KEPT_BYTES)
        self._inputs, self._shrink = inputs, shrink

    def expert(self, key: ExpertKey) -> Expert:
        """Returns an expert, whose difference comes closest in its outputs where there is one."""
        expert = super().expert(key)
        if key.reference is None or self._shrink is None:
            return expert
        shared, encode = self.decoded(key.reference), codecs.get(key.codec.name).encode
        source = self.family.tasks[key.members[0]]
        tensors = dict(expert.tensors)
        for name, reference in shared.items():
            inputs = self._inputs[key.members[0]].find(name)
            if inputs is None or inputs.axis != 1 or tensors[name].dtype != torch.uint8:
                continue
            difference = source.read(name).view(reference.shape) - reference
            projected = closest_outputs(difference, inputs.values, int(key.codec.mapping["rank"]), self._shrink)
            tensors |= encode(name, projected, None, key.codec.mapping)
        return replace(expert, tensors=tensors)


def closest_outputs(difference: Tensor, products: Tensor, rank: int, shrink: float) -> Tensor:
    """Returns the matrix of a rank whose outputs are closest to a difference's, float32 [rows, columns].

    Args:
        difference: D, float32 [rows, columns].
        products: The mean of x x^T over inputs x, [columns, columns].
        rank: The rank.
        shrink: What is off the diagonal of the products is multiplied by this.
    """
    g = products.double()
    diagonal = torch.diag(g.diagonal())
    g = shrink * g + (1 - shrink) * diagonal
    g += DAMPING * g.diagonal().mean() * torch.eye(len(g), dtype=torch.float64)
    lower = torch.linalg.cholesky(g)
    left, values, right = torch.linalg.svd(difference.double() @ lower, full_matrices=False)
    near = (left[:, :rank] * values[:rank]) @ right[:rank]
    solved: Tensor = torch.linalg.solve_triangular(lower, near, upper=False, left=False)
    return solved.float()


def as_markdown(found: list[dict[str, Any]]) -> str:
    """Returns the table: a line for each rank."""
    ways = list(dict.fromkeys(row["shrink"] for row in found))
    of = {(row["rank"], row["shrink"]): row for row in found}
    lines = [
        [str(rank), f"{of[rank, None]['cost']:.4f}", *(f"{100 * of[rank, way]['normalised']:.1f}" for way in ways)]
        for rank in dict.fromkeys(row["rank"] for row in found)
    ]
    head = ["rank", "C", *("plain, %" if way is None else f"calibrated, shrink {way:g}, %" for way in ways)]
    return table(head, lines, right=len(head)) + "\n"


if __name__ == "__main__":
    main()
