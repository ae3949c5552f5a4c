"""What people see of a family: a plot that is a PNG, and cards that say what a member is."""

from dataclasses import replace

import pytest
import yaml
from huggingface_hub import ModelCard

from hf_merge.storing.card import member_card, plot_front
from hf_merge.storing.chains import BaseRef
from hf_merge.storing.library import Member
from tests.tiny_runs import TinyRun


def test_the_plot_is_a_png_and_the_same_bytes_for_the_same_front(tiny_run: TinyRun) -> None:
    first, second = plot_front(tiny_run.front), plot_front(tiny_run.front)
    assert first.startswith(b"\x89PNG\r\n")
    assert first == second
    assert len(first) > 5_000


def test_a_front_of_one_point_is_drawn(tiny_run: TinyRun) -> None:
    point = tiny_run.front.points[0]
    alone = replace(tiny_run.front, points=(point,), controls={"all-merged": point})
    assert plot_front(alone).startswith(b"\x89PNG")


def test_a_card_names_tasks_scores_and_cost(tiny_run: TinyRun) -> None:
    chain_map = Member(tiny_run.members[0]).chain_map
    text = member_card(chain_map, tiny_run.front)
    assert f"C = {chain_map.cost:.4f}" in text
    for task, score in chain_map.performance.items():
        assert f"| {task} | {chain_map.metrics[task]} | {score:.4f} | {tiny_run.front.individual[task]:.4f} |" in text
    assert (tiny_run.members[0] / "README.md").read_text() == text


@pytest.mark.parametrize(("revision", "base_model"), [(None, None), ("0" * 40, "org/base")])
def test_the_head_of_a_card_is_what_the_hub_reads(
    tiny_run: TinyRun, revision: str | None, base_model: str | None
) -> None:
    chain_map = replace(Member(tiny_run.members[0]).chain_map, base=BaseRef("org/base", revision, 10, 32))
    text = member_card(chain_map, tiny_run.front)
    head = yaml.safe_load(text.split("---")[1])
    assert head["library_name"] == "hf-merge"
    assert head.get("base_model") == base_model
    assert ModelCard(text).data.get("library_name") == "hf-merge"
