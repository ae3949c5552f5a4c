"""Cards as people and the Hub read them: complete, always the same, and nothing from outside gets loose in them."""

import ast
import re
from dataclasses import replace
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from markdown_it.token import Token

from hf_merge.storing.card import Origin, Places, Source, family_card, member_card, recorded_scores
from hf_merge.storing.chains import ChainMap, HeadEntry
from hf_merge.storing.front import Front
from hf_merge.storing.library import Member
from tests.storing import chain_maps, families
from tests.tiny_runs import TinyRun


HOSTILE = (
    "x | y `z` **b** ~~s~~\n---\n# Owned\n```\n</details><script>alert(1)</script> ![i](http://evil/i.png) "
    "[l](javascript:alert(1)) &lt; {{ 7 * 7 }} {% x %} $y$ @someone\u202e"
)
TOKEN = "hf_" + "canaryCANARY0123456789"


def head(card: str) -> dict[str, Any]:
    found = yaml.safe_load(card.split("\n---\n")[0].removeprefix("---\n"))
    assert isinstance(found, dict)
    return found


def body(card: str) -> list[Token]:
    text = ModelCard(card).text
    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(text)


def headings(card: str) -> list[str]:
    tokens = body(card)
    return [tokens[index + 1].content for index, token in enumerate(tokens) if token.type == "heading_open"]


def code(card: str, language: str) -> list[str]:
    return [token.content for token in body(card) if token.type == "fence" and token.info == language]


def links(card: str) -> list[str]:
    inline = [child for token in body(card) for child in token.children or ()]
    found = [child.attrGet("href" if child.type == "link_open" else "src") for child in inline]
    return [str(address) for address in found if address is not None]


def member_of(front: Front, **changes: Any) -> ChainMap:
    """Returns a map that stands for the first point of a front."""
    point, sample = front.points[0], chain_maps.sample()
    heads = {task: next(iter(sample.heads.values())) for task in front.tasks}
    made = replace(
        sample,
        id=point.id,
        cost=point.cost,
        performance=dict(point.scores),
        metrics=dict(front.tasks),
        chains={task: next(iter(sample.chains.values())) for task in front.tasks},
        heads=heads,
    )
    return replace(made, **changes)


def both(front: Front, origin: Origin, *, measured: bool = True, family: str | None = "me/demo") -> dict[str, str]:
    """Returns the family's card and a member's."""
    report, places = families.report(front) if measured else None, families.places(front, family)
    return {
        "family": family_card(front, report, origin, places),
        "member": member_card(member_of(front), front, report, origin, places),
    }


KINDS = pytest.mark.parametrize("kind", ["family", "member"])
MEASURED = pytest.mark.parametrize("measured", [False, True])


@KINDS
@MEASURED
def test_a_card_is_read_by_the_hubs_own_class_and_stays_as_it_is(kind: str, measured: bool) -> None:
    front = families.front()
    card = both(front, families.origin(front.tasks), measured=measured)[kind]
    assert str(ModelCard(card)) == card
    assert card == both(front, families.origin(front.tasks), measured=measured)[kind]
    assert "None" not in card and "Undefined" not in card


@KINDS
def test_the_head_says_what_the_hub_asks_for(kind: str) -> None:
    front = families.front()
    found = head(both(front, families.origin(front.tasks))[kind])
    assert found["library_name"] == "hf-merge"
    assert found["base_model"] == ["org/base", "org/base-task_0", "org/base-task_1", "org/base-task_2"]
    assert found["base_model_relation"] == "merge"
    assert found["pipeline_tag"] == "text-classification"
    assert found["license"] == "apache-2.0"
    assert found["datasets"] == ["org/data"]
    assert {"merge", "hf-merge"} <= set(found["tags"])


def test_the_head_of_local_sources_names_none_of_them() -> None:
    front = families.front()
    origin = families.origin(front.tasks)
    local = {task: Source(f"folder-{task}", None, None, None) for task in front.tasks}
    found = head(
        both(front, replace(origin, base=Source("here", None, None, None), tasks=local, datasets=()))["family"]
    )
    assert not {"base_model", "base_model_relation", "datasets"} & set(found)
    assert found["license"] == "unknown"


@KINDS
@pytest.mark.parametrize(("column", "example"), [("image", "Image.new"), ("audio", '"sampling_rate": 16000')])
def test_images_and_sounds_have_their_own_tag_and_example(kind: str, column: str, example: str) -> None:
    front = families.front()
    card = both(front, families.origin(front.tasks, column=column))[kind]
    assert head(card)["pipeline_tag"] == f"{column}-classification"
    assert example in code(card, "python")[0]


@KINDS
def test_hf_merge_is_installed_from_its_repository_and_no_index(kind: str) -> None:
    front = families.front()
    card = both(front, families.origin(front.tasks))[kind]
    assert "Install hf-merge from a clone of its repository" in card
    assert code(card, "bash")[0] == "pip install -e .\n" and "pip install hf-merge" not in card


@KINDS
def test_the_controls_are_said_to_be_stored_as_they_are(kind: str) -> None:
    front = replace(families.front(), codec={"name": "int8", "unit": "row"})
    chosen = tuple(replace(point, codecs=({"name": "delta", "bits": 2},) * 4) for point in front.points)
    card = both(replace(front, points=chosen), families.origin(front.tasks))[kind]
    assert "are controls, both stored by int8" in card and "unit" in card


@KINDS
def test_the_code_is_python_that_imports_hf_merge_first(kind: str) -> None:
    front = families.front()
    [text] = code(both(front, families.origin(front.tasks))[kind], "python")
    first = ast.parse(text).body[0]
    assert isinstance(first, ast.ImportFrom) and first.module == "hf_merge"


def test_the_code_loads_half_a_model_or_the_least_there_is() -> None:
    front = families.front(18)
    [text] = code(both(front, families.origin(front.tasks))["family"], "python")
    assert 'MergeModel.from_pretrained("me/demo", budget=0.5)' in text
    dear = replace(front, points=tuple(replace(point, cost=point.cost + 1) for point in front.points))
    [text] = code(both(dear, families.origin(front.tasks))["family"], "python")
    budget = re.search(r"budget=([\d.]+)", text)
    assert budget is not None
    assert 0 <= float(budget[1]) - dear.points[0].cost < 0.01


def test_the_code_of_a_member_loads_its_own_repo() -> None:
    front = families.front()
    [text] = code(both(front, families.origin(front.tasks))["member"], "python")
    assert f'from_pretrained("me/demo-{front.points[0].id}")' in text


def test_only_what_was_pushed_is_linked_and_offered() -> None:
    front = families.front(3)
    pushed = replace(front.points[1], repo="me/demo-there", revision="0" * 40, map_sha256="1" * 64)
    front = replace(front, points=(front.points[0], pushed, front.points[2]))
    card = family_card(front, families.report(front), families.origin(front.tasks), families.places(front))
    repos = [address for address in links(card) if "/me/" in address]
    assert set(repos) == {"https://huggingface.co/me/demo-there"}
    assert "measured, and not uploaded" in card
    assert "loads [" + pushed.id in card


def test_a_local_member_shows_no_picture_and_downloads_nothing() -> None:
    front = families.front()
    card = both(front, families.origin(front.tasks), family=None)["member"]
    assert "grouping.png" not in card and "hf download" not in card


def test_a_local_family_links_to_its_folders() -> None:
    front = families.front()
    card = both(front, families.origin(front.tasks), family=None)["family"]
    assert f"..-{front.points[1].id}" in links(card)
    assert 'from_pretrained(".", budget=0.5)' in card


def test_a_members_card_is_the_same_whatever_else_was_pushed() -> None:
    front, origin = families.front(), families.origin(families.front().tasks)
    pushed = replace(front.points[1], repo="me/demo-there", revision="0" * 40, map_sha256="1" * 64)
    later = replace(front, points=(front.points[0], pushed, front.points[2]))
    own = {front.points[0].id: "me/demo-own"}
    first = member_card(member_of(front), front, None, origin, Places("me/demo", own, None))
    second = member_card(member_of(front), later, None, origin, Places("me/demo", {**own, pushed.id: "me/x"}, "me/c"))
    assert first == second


def test_a_collection_is_linked() -> None:
    front = families.front()
    places = Places("me/demo", families.places(front).members, "me/demo-0123")
    card = family_card(front, None, families.origin(front.tasks), places)
    assert "https://huggingface.co/collections/me/demo-0123" in links(card)


def test_every_configuration_and_both_controls_are_in_the_familys_table() -> None:
    front = families.front(60)
    card = both(front, families.origin(front.tasks))["family"]
    for point in (*front.points, *front.controls.values()):
        assert f"| {point.cost:.4f} |" in card
    assert "all-merged" in card and "all-separate" in card and "![" in card
    assert {"pareto.png", "grouping.png"} <= set(links(card))


@KINDS
def test_the_recipe_is_whole(kind: str) -> None:
    front = families.front()
    origin = families.origin(front.tasks)
    assert code(both(front, origin)[kind], "yaml") == [origin.recipe]


@KINDS
@MEASURED
def test_nothing_from_outside_gets_loose(kind: str, measured: bool) -> None:
    front = replace(families.front(), base=HOSTILE)
    calm = families.origin(front.tasks)
    recipe = yaml.safe_load(calm.recipe)
    for task in recipe["tasks"]:
        task["data"] |= {"path": HOSTILE, "name": HOSTILE, "text": HOSTILE}
    tasks = {task: Source(HOSTILE, f"{task} {HOSTILE}", None, HOSTILE) for task in front.tasks}
    wild = Origin(
        Source(HOSTILE, HOSTILE, None, HOSTILE), tasks, (HOSTILE,), yaml.safe_dump(recipe, allow_unicode=True)
    )
    labels = HeadEntry(2, (HOSTILE, "|"), "single_label_classification", ("w",), "f", 1)
    heads = dict.fromkeys(front.tasks, labels)
    report, places = families.report(front) if measured else None, families.places(front)
    made = {
        "family": family_card(front, report, wild, places),
        "member": member_card(member_of(front, heads=heads), front, report, wild, places),
    }[kind]
    tame = both(front, calm, measured=measured)[kind]
    assert headings(made) == headings(tame)
    assert [token.type for token in body(made) if token.block and token.nesting >= 0] == [
        token.type for token in body(tame) if token.block and token.nesting >= 0
    ]
    assert [token.content for token in body(made) if token.type == "html_block"] == [
        token.content for token in body(tame) if token.type == "html_block"
    ]
    assert not [child for token in body(made) for child in token.children or () if child.type == "html_inline"]
    assert all(
        address.startswith(("https://huggingface.co/", "https://arxiv.org/", "pareto.png", "grouping.png"))
        for address in links(made)
    )
    assert head(made)["base_model"] == [HOSTILE, *(f"{task} {HOSTILE}" for task in front.tasks)]
    assert yaml.safe_load(code(made, "yaml")[0]) == recipe
    assert set(head(made)) - {"license_name"} == set(head(tame)) - {"license_name"}


@KINDS
def test_a_token_is_in_no_card(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "another-secret")
    front = families.front()
    origin = families.origin(front.tasks)
    recipe = origin.recipe.replace("org/base-task_0", f"https://user:another-secret@host/{TOKEN}")
    source = Source(f"a {TOKEN} b another-secret", None, None, TOKEN)
    card = both(front, Origin(source, origin.tasks, (), recipe))[kind]
    assert TOKEN not in card and "another-secret" not in card


@KINDS
def test_what_a_card_records_is_what_was_measured(kind: str) -> None:
    front = families.front()
    report = families.report(front)
    best = max(front.points, key=lambda point: point.performance)
    scores = report.scores(best.id if kind == "family" else front.points[0].id)
    assert scores is not None
    recorded = recorded_scores(both(front, families.origin(front.tasks))[kind])
    assert recorded == {"oracle": scores.oracle_scores, "routed": scores.routed_scores}


@pytest.mark.parametrize(("tasks", "components"), [(1, 1), (2, 72), (40, 4)])
def test_families_of_any_size_have_cards(tasks: int, components: int) -> None:
    front = families.front(3, tasks=tasks, components=components)
    for card in both(front, families.origin(front.tasks)).values():
        assert len(card) < 200_000
        assert str(ModelCard(card)) == card


def test_a_real_member_has_its_card(tiny_run: TinyRun) -> None:
    chain_map = Member(tiny_run.members[0]).chain_map
    card = (tiny_run.members[0] / "README.md").read_text()
    assert f"C = {chain_map.cost:.4f}" in card
    for task, score in chain_map.performance.items():
        assert f"| {task} | {chain_map.metrics[task]} | {tiny_run.front.individual[task]:.4f} | {score:.4f} |" in card
    for place in (tiny_run.folder.parent, tiny_run.family.base.parents[1]):  # where it was made lies beside the family
        assert str(place) not in card
    assert recorded_scores(card) == {}


def test_pairs_of_texts_are_given_as_pairs() -> None:
    front = families.front()
    origin = families.origin(front.tasks)
    recipe = yaml.safe_load(origin.recipe)
    for task in recipe["tasks"]:
        task["data"]["text_pair"] = "other"
    card = both(front, replace(origin, recipe=yaml.safe_dump(recipe)))["family"]
    assert '("one text", "another text")' in code(card, "python")[0]


def test_a_member_that_is_not_on_the_front_is_held_against_the_controls_alone() -> None:
    front = families.front()
    stranger = member_of(front, id="c0777-abcdef")
    card = member_card(stranger, front, families.report(front), families.origin(front.tasks), families.places(front))
    assert "Who shares what" not in headings(card)
    assert "all-merged" in card and recorded_scores(card) == {}
