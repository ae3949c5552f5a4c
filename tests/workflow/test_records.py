"""Records of the journal: written and read back the same, and nothing else taken."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_merge.errors import RunFolderError
from hf_merge.workflow.records import Evaluated, Inputs, References, read_history


SCORES = {"sst2": 0.5, "trec": -0.25}
EVALUATED = Evaluated(1, ((0, 0), (0, 1)), 0.25, 0.125, SCORES, {"mlp-0123456789ab": 12.5})
NUMBERS = st.floats(allow_nan=False, allow_infinity=False, width=64).map(lambda value: value + 0.0)


@given(st.lists(NUMBERS, min_size=4, max_size=4), st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_records_read_back_as_they_were(numbers: list[float], labels: list[int]) -> None:
    evaluated = Evaluated(7, (tuple(labels),) * 2, numbers[0], numbers[1], {"a": numbers[2]}, {"mlp-0": numbers[3]})
    references = References({"a": numbers[0]}, {"a": numbers[1]})
    inputs = Inputs({"base": "0" * 64, "task a": "1" * 64}, {"a": "2" * 64})
    records = [inputs.record(), references.record(), evaluated.record()]
    history = read_history(json.loads(json.dumps(records)), "journal.jsonl")
    assert (history.inputs, history.references, history.evaluations) == (inputs, references, (evaluated,))


def test_a_new_journal_says_nothing() -> None:
    history = read_history((), "journal.jsonl")
    assert (history.inputs, history.references, history.evaluations) == (None, None, ())


WHOLE = EVALUATED.record()
BROKEN: dict[str, dict[str, Any]] = {
    "unknown kind": {"kind": "note"},
    "no kind": {},
    "unknown key": WHOLE | {"more": 1},
    "missing key": {key: value for key, value in WHOLE.items() if key != "cost"},
    "text for a number": WHOLE | {"cost": "0.25"},
    "no grouping": WHOLE | {"grouping": []},
    "labels that are no integers": WHOLE | {"grouping": [[0.0, 1.0]]},
    "sources that are no object": {"kind": "inputs", "sources": ["base"], "rows": {}},
    "inputs without rows": {"kind": "inputs", "sources": {"base": "0"}},
    "references without one": {"kind": "references", "individual": SCORES},
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_record_that_no_search_writes_is_refused_with_its_line(name: str) -> None:
    with pytest.raises(RunFolderError, match=r"journal\.jsonl, line 2: .*Search again into another folder"):
        read_history([Inputs({"base": "0"}, {}).record(), BROKEN[name]], "journal.jsonl")


BEGUN = Inputs({"base": "0", "task a": "1"}, {"a": "2", "b": "3"})


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (Inputs({"base": "0", "task a": "9"}, {"a": "9", "b": "3"}), "the checkpoint of task a is not"),
        (Inputs({"base": "0", "task a": "1"}, {"a": "2", "b": "9"}), "the validation rows of task 'b' are not"),
        (Inputs({}, {"a": "9", "b": "9"}), "the validation rows of task 'a', 'b' are not"),
    ],
)
def test_other_inputs_than_a_run_began_with_are_refused_by_name(found: Inputs, said: str) -> None:
    BEGUN.require_same(BEGUN, "journal.jsonl")
    with pytest.raises(RunFolderError, match=f"journal.jsonl: {said} .*earch again into another folder"):
        BEGUN.require_same(found, "journal.jsonl")
