"""Results as text: aligned columns, the figures that the documents hold, and the same figures as JSON."""

import json
from dataclasses import replace

import pytest

from hf_merge.serving.model import Generation, Prediction
from hf_merge.storing.hub import Pushed
from hf_merge.storing.results import Report, Scores
from hf_merge.workflow.evaluate import MemberEvaluation
from hf_merge.workflow.plan import plan
from hf_merge.workflow.publish import Publication
from hf_merge.workflow.summary import SearchSummary, summarise
from hf_merge.workflow.tables import (
    evaluation_json,
    evaluation_table,
    front_json,
    front_table,
    generations_table,
    plan_table,
    predictions_table,
    publication_json,
    publication_table,
    report_table,
    search_table,
    summary_table,
    text_table,
)
from tests.tiny_runs import TinyRun


SCORES = Scores(
    "c0288-abcdef", "front", 0.2877, 0.7, 0.6, 0.5, 0.9, 0.8, {"a": 0.7, "b": 0.5}, {"a": 0.6, "b": 0.4}
)  # fmt: skip

EVALUATION = MemberEvaluation(
    SCORES, {"a": 1.0, "b": 0.5}, {"routed": {"a": 0.7}}, ("a, routed: measured 0.6000, the card says 0.7000",)
)
PUBLICATION = Publication(
    Pushed("me/x", "", "https://hub/me/x", ("front.json",), 10),
    {"c0288-abcdef": Pushed("me/x-c0288", "ab" * 20, "https://hub/me/x-c0288", ("a", "b"), 1234567)},
    "me/x-1",
    None,
    create_pr=False,
    dry_run=True,
)


def test_columns_are_as_wide_as_they_need() -> None:
    table = text_table(("name", "C"), [["long name", "1"], ["x", "10.5"]])
    assert table.splitlines() == ["name          C", "---------------", "long name     1", "x          10.5"]
    assert text_table(("name", "C"), []).splitlines()[0] == "name  C"


def test_a_front_is_shown_whole_with_its_controls(tiny_run: TinyRun) -> None:
    front = tiny_run.front
    table = front_table(front)
    lines = {line.split()[0]: line for line in table.splitlines() if line.startswith("c0")}
    assert lines.keys() == {point.id for point in (*front.points, *front.controls.values())}
    for name, point in front.controls.items():
        assert name in lines[point.id]
    for point in front.points:
        assert f"{point.cost:.4f}" in lines[point.id] and f"{100 * point.normalised:.1f}" in lines[point.id]
    assert f"hypervolume {front.hypervolume:.4f}" in table and "task_arithmetic (scale 0.4)" in table


def test_a_search_shows_its_front_and_how_it_went(tiny_run: TinyRun) -> None:
    front, summary = tiny_run.front, summarise(tiny_run.folder, tiny_run.front)
    table = search_table(front, summary)
    assert table.startswith(front_table(front))
    lines = dict(line.split("  ", 1) for line in table.rpartition("\n\n")[2].splitlines())
    assert lines["evaluations"].strip() == f"9, of which {len(front.points)} on the front"
    assert lines["hypervolume"].strip() == f"{front.hypervolume:.4f}"
    assert lines["best within 0.25"].strip() == "-"
    best = summary.best["1"]
    assert best is not None and f"{best.id}: C = {best.cost:.4f}, P = {best.performance:.4f}" in lines["best within 1"]
    assert "of 27 (" in lines["chains run"] and lines["time"].strip().endswith(" s")


def test_how_a_search_went_shows_no_more_than_is_known() -> None:
    known = SearchSummary(40, 3, 0.5, {"0.5": None}, 3600.0, 30, 120, 90, 1000, 250)
    assert summary_table(known).splitlines() == [
        "evaluations         40, of which 3 on the front",
        "hypervolume         0.5000",
        "best within 0.5     -",
        "time                60 min",
        "chains run          90 of 120 (25.0 % had been run before)",
        "blocks run in them  250 of 1,000 (75.0 % had been run before)",
        "times and counts    of 30 evaluations, the others' are lost",
    ]
    older = replace(known, seconds=None, timed=0, pairs_asked=0, pairs_run=0, blocks_asked=0, blocks_run=0)
    assert len(summary_table(older).splitlines()) == 3


def test_predictions_stand_with_their_inputs_in_columns() -> None:
    answers = [Prediction("animals", "dog", 0.75), Prediction("sizes", None, 2.5)]
    assert predictions_table(["the dog", "long"], answers).splitlines() == [
        "animals\tdog\t0.7500\tthe dog",
        "sizes\t-\t2.5000\tlong",
    ]


def test_what_was_written_stays_on_its_line() -> None:
    answers = [Generation("a", "one\ntwo"), Generation("b", "back\\slash")]
    assert generations_table(["first\nline", "x"], answers).splitlines() == [
        "a\tone\\ntwo\tfirst\\nline",
        "b\tback\\\\slash\tx",
    ]


def test_documents_are_json(tiny_run: TinyRun) -> None:
    assert json.loads(json.dumps(front_json(tiny_run.front)))["base"] == "base"
    document = json.loads(json.dumps(evaluation_json(EVALUATION)))
    assert document["router_accuracy"] == {"a": 1.0, "b": 0.5}
    assert document["differences"] == ["a, routed: measured 0.6000, the card says 0.7000"]
    assert json.loads(json.dumps(publication_json(PUBLICATION)))["members"]["c0288-abcdef"]["bytes_sent"] == 1234567


def test_a_plan_says_what_it_assumes(tiny_run: TinyRun) -> None:
    found = plan(tiny_run.recipe)
    table = plan_table(found)
    assert f"all merged C = {found.cost_all_merged:.4f}" in table
    assert "9 of 625 configurations will be evaluated" in table
    assert "left out" not in table
    assert "left out, as no fine-tune has them: pooler.w" in plan_table(replace(found, left_out=("pooler.w",)))
    assert "could tell" not in table
    assert "without a role that the rule could tell (other): zyx.w" in plan_table(replace(found, unplaced=("zyx.w",)))


@pytest.mark.parametrize(("seconds", "shown"), [(5, "5 s"), (600, "10 min"), (36000, "10.0 h")])
def test_times_are_shown_in_fitting_units(tiny_run: TinyRun, seconds: float, shown: str) -> None:
    assert f"about {shown} of" in plan_table(replace(plan(tiny_run.recipe), forward_seconds=seconds))


def test_a_report_shows_every_row_and_the_router() -> None:
    alone = replace(SCORES, id="individual", role="individual", routed=None, routed_normalised=None)
    lines = report_table(Report((alone, SCORES), {"a": 1.0, "b": 0.5}, {"a": 3, "b": 3})).splitlines()
    assert lines[2].split() == ["individual", "individual", "0.2877", "0.7000", "0.6000", "90.0", "-", "-"]
    assert lines[3].split() == ["c0288-abcdef", "0.2877", "0.7000", "0.6000", "90.0", "0.5000", "80.0"]
    assert lines[-1] == "router: 75.0 % of test rows reach their task (a 100.0 %, b 50.0 %)"


def test_scores_show_every_task_and_the_mean() -> None:
    lines = evaluation_table(EVALUATION).splitlines()
    assert lines[-4].split() == ["mean", "0.6000", "0.5000", "0.7500"]
    assert lines[-5].split() == ["b", "0.5000", "0.4000", "0.5000"]
    assert lines[-2:] == ["The card says otherwise:", "  a, routed: measured 0.6000, the card says 0.7000"]
    assert evaluation_table(replace(EVALUATION, differences=())).endswith("The card says the same.")
    assert evaluation_table(replace(EVALUATION, recorded={}, differences=())).endswith("to compare with.")


def test_a_push_shows_every_repo_and_the_bytes() -> None:
    text = publication_table(PUBLICATION)
    assert "me/x-c0288" in text and "1,234,567" in text and "1,234,577 bytes would be sent to 2 repos" in text
    assert "from_pretrained" not in text
    assert "from_pretrained('me/x', budget=0.5)" in publication_table(replace(PUBLICATION, dry_run=False))
    asked = publication_table(replace(PUBLICATION, dry_run=False, create_pr=True, revision="ab" * 20))
    assert asked.index("https://hub/me/x-c0288") < asked.index("https://hub/me/x\n")
    assert f"from_pretrained('me/x', budget=0.5, revision='{'ab' * 20}')" in asked
