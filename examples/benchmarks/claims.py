"""How well a router tells its tasks' inputs from strangers': what `claim` keeps, and what it keeps out.

    python examples/benchmarks/claims.py RUN --strangers FILE.parquet [FILE.parquet ...] --out FILE.json [--rows 300]

RUN is a run folder of text tasks with at least one member built, and its recipe's test rows at hand. Each FILE has a
column `text` (and `text_pair`, where it has pairs) of inputs that belong to none of the tasks. For each claim, the
share of the tasks' own test rows that is claimed, how many of those go to their task, and the share of each stranger's
rows that is claimed all the same; the mean over tasks, and over strangers. FILE.md lies beside FILE.json.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import pyarrow.parquet
from torch import Tensor

from hf_merge.recipe import Recipe
from hf_merge.serving.model import MergeModel
from hf_merge.storing.markdown import table
from hf_merge.workflow.evaluate import inputs_of
from hf_merge.workflow.rows import load_rows


CLAIMS = (None, 0.5, 0.8, 0.9, 0.95, 0.99)
Texts = list[str | tuple[str, str]]


def main() -> None:
    """Routes all rows at every claim, and prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run folder with a member built")
    parser.add_argument("--strangers", type=Path, nargs="+", required=True, help="Parquet files of other inputs")
    parser.add_argument("--rows", type=int, default=300, help="the first so many rows of each")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    member = next((path.parent for path in sorted(chosen.run.glob("members/*/chains.json"))), None)
    if member is None:
        parser.error(f"{chosen.run} holds no built member: run hf-merge build {chosen.run} first.")
    model = MergeModel.from_pretrained(member)
    tasks = load_rows(Recipe.load(chosen.run / "recipe.yaml"), model.heads)
    own = {name: list(inputs_of(data.test.first(chosen.rows))) for name, data in tasks.items()}
    strangers = {f"{path.parent.name}/{path.stem}": read(path, chosen.rows) for path in chosen.strangers}
    if len(strangers) < len(chosen.strangers) or not all(strangers.values()):
        parser.error("--strangers names a file without rows, or two files of one folder's and file's name.")
    found = [measured(model, own, strangers, claim) for claim in CLAIMS]
    text = as_markdown(found)
    chosen.out.write_text(json.dumps({"rows": chosen.rows, "claims": found}, indent=1) + "\n")
    chosen.out.with_suffix(".md").write_text(text)
    print(text, end="")


def read(path: Path, count: int) -> Texts:
    """Returns the first texts of a Parquet file."""
    columns = pyarrow.parquet.read_table(path).slice(0, count).to_pydict()
    if "text_pair" in columns:
        return list(zip(columns["text"], columns["text_pair"], strict=True))
    return list(columns["text"])


def measured(
    model: MergeModel, own: dict[str, Texts], strangers: dict[str, Texts], claim: float | None
) -> dict[str, Any]:
    """Returns for one claim the shares that are claimed, and of the tasks' own those that go to their task."""
    routes = {name: model.routes(texts, claim=claim) for name, texts in own.items()}
    right = {name: share(found == model.tasks.index(name)) for name, found in routes.items()}
    return {
        "claim": claim,
        "claimed": {name: share(found >= 0) for name, found in routes.items()},
        "right": right,
        "strangers": {name: share(model.routes(texts, claim=claim) >= 0) for name, texts in strangers.items()},
    }


def share(rows: Tensor) -> float:
    """Returns the share of rows [rows] bool that are true."""
    return float(rows.float().mean())


def as_markdown(found: Sequence[dict[str, Any]]) -> str:
    """Returns the table: a line for each claim."""
    strangers = list(found[0]["strangers"])
    lines = []
    for row in found:
        claimed, right = mean(row["claimed"].values()), mean(row["right"].values())
        others = [row["strangers"][name] for name in strangers]
        lines.append(
            ["none" if row["claim"] is None else f"{row['claim']:g}"]
            + [f"{100 * value:.1f}" for value in (claimed, right / claimed if claimed else 0.0, mean(others), *others)]
        )
    head = ["claim", "own rows claimed, %", "of these to their task, %", "strangers claimed, %", *strangers]
    return table(head, lines, right=len(head)) + "\n"


if __name__ == "__main__":
    main()
