"""What a search takes beside its forward passes, by tasks and components, on random small models.

    python examples/benchmarks/search_overhead.py [--out examples/benchmarks/results/search_overhead.json]

Every setting is a whole search of 60 evaluations over a tiny BERT and fine-tunes that are the base plus noise: T from
2 to 32 at four components (granularity `type`), and 4 to 151 components at eight tasks (`type-layer` over 1 to 50
blocks). Given are the processor seconds per evaluation that were no forward pass, whole and by what they went to:
choosing (NSGA-II, surrogate, screening), building and decoding experts, and the rest (journal, scores, hypervolume).
They do
not depend on the rows or on the width of the model, building apart, which grows with its parameters.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from hf_merge import Recipe, search
from hf_merge.modeling.assembly import TaskModel
from hf_merge.searching import search as searching
from hf_merge.searching.building import ExpertBuilder
from hf_merge.searching.nsga2 import Nsga2


SETTINGS = [(2, 4), (8, 4), (32, 4), (8, 16), (8, 40), (8, 151)]
EVALUATIONS, ROWS = 60, 16
WORDS = [f"word{index}" for index in range(40)]


def main() -> None:
    """Measures every setting and prints the table as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="paper", help="the preset of the search")
    parser.add_argument("--out", type=Path, help="write the JSON here as well")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for tasks, components in SETTINGS:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measured(Path(folder), tasks, components, chosen.preset))
        print(rows[-1], file=sys.stderr)
    text = json.dumps({"preset": chosen.preset, "evaluations": EVALUATIONS, "results": rows}, indent=1)
    print(text)
    if chosen.out is not None:
        chosen.out.write_text(text + "\n")


def measured(folder: Path, tasks: int, components: int, preset: str) -> dict[str, Any]:
    """Returns the seconds per evaluation of one search, by what they went to."""
    layers = max(1, (components - 1) // 3)
    recipe = Recipe.parse(family(folder, tasks, layers, preset), "the benchmark's recipe")
    with timed() as seconds:
        began = time.process_time()
        front = search(recipe, folder / "run", progress=False)
        whole = time.process_time() - began
    count = front.history[-1][0]  # two tasks have fewer configurations than are asked for
    forwards, building, choosing = (seconds[name] / count for name in ("forwards", "building", "choosing"))
    overhead = whole / count - forwards
    return {
        "tasks": tasks,
        "components": len(front.components),
        "evaluations": count,
        "overhead_seconds_per_evaluation": round(overhead, 4),
        "choosing": round(choosing, 4),
        "building": round(building, 4),
        "rest": round(overhead - choosing - building, 4),
    }


@contextmanager
def timed() -> Iterator[dict[str, float]]:
    """Yields the seconds spent in forward passes, in building experts and in choosing what to evaluate."""
    seconds = {"forwards": 0.0, "building": 0.0, "choosing": 0.0}
    with ExitStack() as stack:
        for owner, name, part in (
            (TaskModel, "logits", "forwards"),
            (ExpertBuilder, "decoded", "building"),
            (Nsga2, "ask", "choosing"),
            (searching._Chooser, "choose", "choosing"),
        ):
            stack.enter_context(counted(owner, name, part, seconds))
        yield seconds


@contextmanager
def counted(owner: Any, name: str, part: str, seconds: dict[str, float]) -> Iterator[None]:
    """Adds the seconds of each call of a function to those of a part, for a while."""
    original: Callable[..., Any] = getattr(owner, name)

    def timing(*arguments: Any, **settings: Any) -> Any:
        began, before = time.process_time(), seconds[part]
        try:
            return original(*arguments, **settings)
        finally:
            seconds[part] = before + time.process_time() - began  # with all that it called itself

    setattr(owner, name, timing)
    try:
        yield
    finally:
        setattr(owner, name, original)


def family(folder: Path, tasks: int, layers: int, preset: str) -> dict[str, Any]:
    """Writes a tiny base, fine-tunes and rows, and returns their recipe."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS) + 2, hidden_size=32, num_hidden_layers=layers, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=16,
    )  # fmt: skip
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["[PAD]", "[UNK]", *WORDS])}, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    model = BertForSequenceClassification(config)
    model.bert.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    entries = []
    for index in range(tasks):
        model.load_state_dict({name: tensor + 0.05 * torch.randn_like(tensor) for name, tensor in start.items()})
        model.save_pretrained(folder / f"task{index}")
        entries.append({"name": f"task{index}", "model": str(folder / f"task{index}"), "data": rows(folder, index)})
    merge = {"granularity": "type" if layers == 1 else "type-layer"}
    wanted = {"preset": preset, "evaluations": EVALUATIONS, "validation_rows": ROWS}
    return {"base": {"model": str(folder / "base")}, "tasks": entries, "merge": merge, "search": wanted}


def rows(folder: Path, index: int) -> dict[str, Any]:
    """Writes a task's rows, no two alike, and returns where they are."""
    generator = torch.Generator().manual_seed(index)
    files = {}
    for split, count in (("train", 40), ("validation", 40), ("test", 8)):
        picked = torch.randint(len(WORDS), (count, 8), generator=generator).tolist()
        table = pyarrow.table(
            {"text": [" ".join(WORDS[word] for word in row) for row in picked], "label": [i % 2 for i in range(count)]}
        )
        files[split] = str(folder / f"{split}{index}.parquet")
        pyarrow.parquet.write_table(table, files[split])
    return {"path": "parquet", "data_files": files, "text": "text", "label": "label"}


if __name__ == "__main__":
    main()
