"""`report.json`: what `dump` writes `parse` reads, and nothing else is taken."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hf_merge.errors import InputError, LimitExceeded, MalformedChainMap
from hf_merge.storing import results
from hf_merge.storing.limits import LIMITS
from hf_merge.storing.results import Report
from tests.storing import families


def sample() -> Report:
    return families.report(families.front())


def document() -> dict[str, Any]:
    read: dict[str, Any] = json.loads(results.dump(sample()))
    return read


def test_what_is_written_is_read_again() -> None:
    data = results.dump(sample())
    assert results.parse(data) == sample()
    assert results.dump(results.parse(data)) == data


def test_a_report_without_routing_is_read_again() -> None:
    known = sample()
    row = replace(known.rows[0], routed=None, routed_normalised=None, routed_scores={})
    assert results.parse(results.dump(replace(known, rows=(row,)))).rows == (row,)


def test_a_file_is_read_up_to_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(results.dump(sample()))
    assert results.read(path) == sample()
    path.write_bytes(b" " * (LIMITS.front_bytes + 1))
    with pytest.raises(LimitExceeded):
        results.read(path)


def test_scores_are_found_by_configuration() -> None:
    report = sample()
    assert report.scores("individual") == report.rows[0]
    assert report.scores("c9999-000000") is None


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "an unknown key": lambda read: read.update(more=1),
    "a missing key": lambda read: read.pop("test_rows"),
    "no rows": lambda read: read.update(rows=[]),
    "no tasks": lambda read: read.update(test_rows={}, router_accuracy={}),
    "no test rows of a task": lambda read: read["test_rows"].update(task_0=0),
    "a share above one": lambda read: read["router_accuracy"].update(task_0=1.5),
    "a share of an unknown task": lambda read: read["router_accuracy"].update(other=0.5),
    "an unknown role": lambda read: read["rows"][0].update(role="winner"),
    "a cost of nothing": lambda read: read["rows"][0].update(cost=0),
    "a text for a number": lambda read: read["rows"][0].update(oracle="0.9"),
    "a name that is a path": lambda read: read["rows"][0].update(id="../x"),
    "a task without score": lambda read: read["rows"][0]["oracle_scores"].pop("task_0"),
    "routed scores without their mean": lambda read: read["rows"][0].update(routed=None),
    "a mean without routed scores": lambda read: read["rows"][0].update(routed_scores={}),
}


@pytest.mark.parametrize("name", EDITS)
def test_what_is_not_ours_is_refused(name: str) -> None:
    changed = document()
    EDITS[name](changed)
    with pytest.raises(InputError, match=r"report\.json"):
        results.parse(json.dumps(changed).encode())


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'{"rows": NaN}', b'{"rows": [], "rows": []}', b"\xff"])
def test_what_is_no_report_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedChainMap):
        results.parse(data)


def test_a_number_that_is_none_is_not_written() -> None:
    report = sample()
    with pytest.raises(MalformedChainMap, match="cannot be written"):
        results.dump(replace(report, rows=(replace(report.rows[0], oracle=float("nan")),)))
