"""What methods as genes buy one merged model: preset `automerge` beside the best method for all components.

    python examples/benchmarks/automerge.py RECIPE --out FILE.json [--seeds 0 1 2] [--evaluations 100] [--cache FOLDER]
        [--granularity type] [--test-rows 300]

Of every seed, which draws the validation rows, one search by preset `automerge` with its own list of methods, all
stored in 8 bits. By validation rows three models are chosen: the best method of the list alone at the settings that
it has by default (`dare` is not in the list with these), the best of all methods and settings alone, and the best
mixture, which may be one of these. Test rows tell them. With --cache the run folders and test scores are kept, and a
finished run of the same settings is not searched again (delete it when checkpoints or data have changed). FILE.md
lies beside FILE.json.
"""

import json
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import mean
from typing import Any

from frontier import KEPT, machine, on_test_rows, searched, searching_parser, told

from hf_merge.merging.methods import MethodSpec
from hf_merge.merging.settings import described
from hf_merge.recipe import Recipe
from hf_merge.storing.markdown import table
from hf_merge.workflow.configurations import new_builder
from hf_merge.workflow.project import open_project
from hf_merge.workflow.records import Evaluated


DEFAULT, ALONE, MIXED = "best method alone, its defaults", "best method alone, its settings chosen", "automerge"
Row = dict[str, Any]


def main() -> None:
    """Runs the searches, scores what they choose on test rows, and prints and writes the tables."""
    parser = searching_parser(__doc__, evaluations=100)
    parser.add_argument("--granularity", default="type")
    chosen = parser.parse_args()
    with ExitStack() as stack:
        folder = chosen.cache or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hf-merge-")))
        rows = []
        for seed in chosen.seeds:
            recipe = automerging(Recipe.load(chosen.recipe), chosen.granularity, seed, chosen.evaluations)
            rows.append({"seed": seed} | measured(recipe, folder, chosen.test_rows))
    limits = {"evaluations": chosen.evaluations, "granularity": chosen.granularity, "test_rows": chosen.test_rows}
    found = {"machine": machine(), **limits, "seeds": chosen.seeds, "runs": rows}
    chosen.out.write_text(json.dumps(found, indent=1) + "\n")
    text = as_markdown(rows)
    chosen.out.with_suffix(".md").write_text(text)
    print(text, end="")


def automerging(recipe: Recipe, granularity: str, seed: int, evaluations: int) -> Recipe:
    """Returns the recipe with preset `automerge` and its own methods."""
    document = recipe.model_dump(mode="json")
    limits = {key: document["search"][key] for key in KEPT} | {"seed": seed, "evaluations": evaluations}
    document["search"] = limits | {"preset": "automerge"}
    document["merge"] = {"granularity": granularity, "codecs": ["int8"]}
    return Recipe.parse(document, "as automerge")


def measured(recipe: Recipe, folder: Path, test_rows: int | None) -> Row:
    """Returns the three models that validation rows choose, and what they score on test rows."""
    out, _, history = searched(recipe, "automerge", folder)
    with open_project(recipe) as project:
        methods = new_builder(project, out).methods
    alone = [entry for entry in history if len(set(entry.methods)) == 1]
    plain = [
        entry for entry in alone if methods[entry.methods[0]] == MethodSpec.resolve(methods[entry.methods[0]].name)
    ]
    chosen = {DEFAULT: best(plain), ALONE: best(alone), MIXED: best(history)}
    tested = on_test_rows(recipe, out, list(chosen.values()), test_rows)
    return {"evaluated": len(history), "chosen": {name: tested[str(entry.number)] for name, entry in chosen.items()}}


def best(history: Sequence[Evaluated]) -> Evaluated:
    """Returns the best model on validation rows, of equals the first."""
    return max(history, key=lambda entry: (entry.performance, -entry.number))


def as_markdown(rows: Sequence[Row]) -> str:
    """Returns the table of means over seeds, and of what was chosen in each."""
    names = (DEFAULT, ALONE, MIXED)
    of = {name: [row["chosen"][name] for row in rows] for name in names}
    means = [
        [name, *(told([each[key] for each in of[name]], 4) for key in ("validation", "test")),
         told([100 * each["normalised"] for each in of[name]], 1), f"{mean(each['cost'] for each in of[name]):.4f}"]
        for name in names
    ]  # fmt: skip
    single = [
        [
            str(row["seed"]),
            name,
            spelled(row["chosen"][name]),
            *(f"{row['chosen'][name][key]:.4f}" for key in ("validation", "test")),
        ]
        for row in rows
        for name in names
    ]
    return "\n\n".join(
        [
            "Means over seeds, ± standard deviation.",
            table(["model", "P validation", "P test", "% of individual, test", "C"], means, right=4),
            "What was chosen:",
            table(["seed", "model", "methods by component", "P validation", "P test"], single, right=2),
        ]
    ) + "\n"  # fmt: skip


def spelled(entry: Row) -> str:
    """Returns the methods of the components in order, one where all have the same."""
    words = [described(method) for method in entry["methods"]]
    return words[0] if len(set(words)) == 1 else "; ".join(words)


if __name__ == "__main__":
    main()
