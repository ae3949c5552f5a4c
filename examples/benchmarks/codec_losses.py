"""What codecs lose on real fine-tunes, before any search: distance from the fine-tunes against storage.

    python examples/benchmarks/codec_losses.py RECIPE [--out FILE.md] [--codecs CODECS]

For each component of the recipe, and each way to store it (all tasks merged by the plain mean, or every task apart by
a codec), what it takes in full-precision models, and what it loses: the squared distance of the decoded experts from
the fine-tunes, over the squared length of their task vectors. Then the ladder that preset `frontier` starts from.
CODECS is a JSON list as in a recipe's `merge.codecs`; by default the preset's, and 8 bits on one scale for comparison.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_merge.merging.settings import spelled
from hf_merge.merging.task_vectors import measure
from hf_merge.recipe import Recipe
from hf_merge.recipe.presets import FRONTIER_CODECS
from hf_merge.searching.codec_ladder import Way, codec_ladder, ways_to_store
from hf_merge.storing.markdown import table
from hf_merge.workflow.configurations import new_builder
from hf_merge.workflow.project import Project, open_project


def main() -> None:
    """Measures and prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--out", type=Path, help="write the tables here as well")
    parser.add_argument("--codecs", type=json.loads, default=[*FRONTIER_CODECS, "int8"])
    parser.add_argument("--steps", type=int, default=16, help="of the ladder")
    arguments = parser.parse_args()
    document = Recipe.load(arguments.recipe).model_dump(mode="json")
    document["merge"] |= {"methods": ["average"], "codecs": arguments.codecs}
    with open_project(Recipe.parse(document, str(arguments.recipe))) as project:
        text = measured(project, arguments.steps)
    print(text, end="")
    if arguments.out is not None:
        arguments.out.write_text(text)


def measured(project: Project, steps: int) -> str:
    """Returns both tables as Markdown."""
    family, space, builder = project.family, project.space(), new_builder(project)
    geometry = measure(project.components, family.shapes, family.origin, family.tasks)
    start = time.process_time()
    ways = ways_to_store(space, builder, [geometry.grams[component.name] for component in project.components])
    print(f"{time.process_time() - start:.0f} s of processor time", file=sys.stderr)
    names = [space.components[index] for index in space.searched]
    labels = [_label(codec.as_json()) for codec in project.codecs]
    rows = [
        [f"{place}, {label}", *(_cell(_way(each, merged, codec), family.parameters) for each in ways)]
        for codec, label in enumerate(labels)
        for place, merged in (("all merged", True), ("apart", False))
        if any(_way(each, merged, codec) for each in ways)
    ]
    ladder = [
        [f"{builder.cost(rung):.4f}", *(
            "all merged" if max(column) == 0 else labels[rung.codec(index)]
            for index, column in enumerate(rung.grouping)
        )]
        for rung in codec_ladder(space, ways, steps)
    ]  # fmt: skip
    first = table(["stored as", *(f"{name}, C: loss" for name in names)], rows)
    return f"{first}\n\n{table(['C', *space.components], ladder)}\n"


def _way(ways: Sequence[Way], merged: bool, codec: int) -> Way | None:
    return next((way for way in ways if way.codec == codec and (max(way.partition) == 0) == merged), None)


def _cell(way: Way | None, parameters: int) -> str:
    return "" if way is None else f"{way.cost / parameters:.4f}: {way.loss:.3f}"


def _label(codec: dict[str, Any]) -> str:
    values = " ".join(spelled(value) for key, value in codec.items() if key not in ("name", "policy"))
    return f"{codec['name']} {values}".strip()


if __name__ == "__main__":
    main()
