"""Fine-tunes of one language model merged and asked: search, build, load under a budget, choose and write.

    python examples/language_models.py examples/language/recipe.yaml --out runs/language "any text" "another"

The recipe names the base, the fine-tunes and their data; the one in `examples/language` shows both ways to be asked.
A run that was interrupted goes on.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from hf_merge import MergeModel, Recipe, build, search
from hf_merge.workflow.tables import front_table, generations_table, predictions_table


def main(recipe: Path, out: Path, texts: Sequence[str], budget: float | None = None) -> None:
    """Searches and builds unless that is done, then asks the best configuration within the budget.

    Args:
        recipe: The recipe.
        out: The run folder.
        texts: What to ask.
        budget: In units of the base; None for the best there is.
    """
    print(front_table(search(Recipe.load(recipe), out, resume=(out / "recipe.yaml").exists())))
    build(out)
    model = MergeModel.from_pretrained(out, budget=budget)
    print(f"\n{model.chain_map.id}: {model.cost:.4f} of a base for {len(model.tasks)} tasks\n")
    choosing = [task for task in model.tasks if model.heads[task].num_labels]
    for task in choosing:  # the task is known; without task= each text is routed
        print(predictions_table(texts, model.predict(texts, task=task)))
    print(generations_table(texts, model.generate(texts, max_new_tokens=8)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("texts", nargs="+")
    parser.add_argument("--out", type=Path, default=Path("runs/language"))
    parser.add_argument("--budget", type=float)
    given = parser.parse_args()
    main(given.recipe, given.out, given.texts, given.budget)
