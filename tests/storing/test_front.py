"""`front.json`: what `dump` writes `parse` reads, and nothing else is taken; budgets choose the best that fits."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_merge.errors import (
    BudgetTooSmall,
    InputError,
    LimitExceeded,
    MalformedChainMap,
    UnknownFormatVersion,
    UnsafeName,
)
from hf_merge.merging.grouping import canonical
from hf_merge.storing import front as fronts
from hf_merge.storing.front import Front, FrontPoint, within
from hf_merge.storing.limits import LIMITS


NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,12}", fullmatch=True)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False).map(lambda number: number + 0.0)
TEXTS = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs")), max_size=20)


def point(
    name: str, cost: float, performance: float, grouping: tuple[tuple[int, ...], ...] = ((0, 0), (0, 1))
) -> FrontPoint:
    return FrontPoint(name, cost, performance, performance / 0.9, {"sst2": performance, "trec": performance}, grouping)


def turned(mapping: Mapping[str, Any]) -> dict[str, Any]:
    return {key: mapping[key] for key in reversed(list(mapping))}


def sample() -> Front:
    return Front(
        base="org/base",
        revision="0123456789" * 4,
        base_sha256="1f" * 32,
        task_sha256={"sst2": "2e" * 32, "trec": "3d" * 32},
        parameters=22_713_216,
        granularity="type",
        components=("attention", "mlp"),
        tasks={"sst2": "accuracy", "trec": "matthews"},
        method={"name": "task_arithmetic", "scale": 0.4},
        codec={"name": "int8", "unit": "tensor", "policy": "criterion"},
        dtype="float32",
        individual={"sst2": 0.9, "trec": 0.8},
        pretrained={"sst2": 0.5, "trec": 0.2},
        reference=(2.02, 0.35),
        hypervolume=0.7,
        history=((4, 0.5), (8, 0.7)),
        points=(point("c0251-aaaaaa", 0.251, 0.7), point("c0400-bbbbbb", 0.4, 0.8)),
        controls={"all-separate": point("c0502-cccccc", 0.502, 0.79, ((0, 1), (0, 1)))},
    )


DIGESTS, COMMITS = (st.from_regex(pattern, fullmatch=True) for pattern in (r"[0-9a-f]{64}", r"[0-9a-f]{40}"))
REPOS = st.from_regex(r"[A-Za-z0-9]{1,9}/[A-Za-z0-9]{1,9}-c[0-9]{4}", fullmatch=True)
PUBLISHED = {"repo": "org/name-c0251", "revision": "0123456789" * 4, "map_sha256": "4a" * 32}


@st.composite
def any_fronts(draw: st.DrawFn) -> Front:
    tasks = draw(st.dictionaries(NAMES, TEXTS, min_size=1, max_size=4))
    components = tuple(draw(st.lists(NAMES, min_size=1, max_size=3, unique=True)))
    scores = st.fixed_dictionaries(dict.fromkeys(tasks, NUMBERS))
    partitions = st.lists(st.integers(0, 3), min_size=len(tasks), max_size=len(tasks)).map(canonical)
    groupings = st.tuples(*(partitions for _ in components))
    choices = st.dictionaries(NAMES.filter(lambda key: key != "name"), NUMBERS | NAMES, max_size=3)
    bare = st.builds(FrontPoint, NAMES, st.floats(1e-9, 1e9), NUMBERS, NUMBERS, scores, groupings)
    points = bare | st.builds(replace, bare, repo=REPOS, revision=COMMITS, map_sha256=DIGESTS)
    listed = draw(st.lists(points, min_size=1, max_size=4, unique_by=lambda entry: entry.id))
    return Front(
        base=draw(TEXTS),
        revision=draw(st.none() | COMMITS),
        base_sha256=draw(DIGESTS),
        task_sha256=draw(st.fixed_dictionaries(dict.fromkeys(tasks, DIGESTS))),
        parameters=draw(st.integers(1, 2**60)),
        granularity="type-stage",
        components=components,
        tasks=tasks,
        method={"name": draw(NAMES)} | draw(choices),
        codec={"name": draw(NAMES)} | draw(choices),
        dtype=draw(st.sampled_from(["float32", "bfloat16"])),
        individual=draw(scores),
        pretrained=draw(scores),
        reference=(draw(NUMBERS), draw(NUMBERS)),
        hypervolume=draw(NUMBERS),
        history=tuple(draw(st.lists(st.tuples(st.integers(0, 10**6), NUMBERS), min_size=1, max_size=3))),
        points=tuple(sorted(listed, key=lambda entry: entry.cost)),
        controls=draw(st.dictionaries(NAMES, points, max_size=2)),
    )


@settings(max_examples=30, deadline=None)
@given(any_fronts())
def test_a_front_is_read_as_it_was_written(front: Front) -> None:
    data = fronts.dump(front)
    assert fronts.parse(data) == front
    assert fronts.dump(fronts.parse(data)) == data


def test_equal_fronts_are_equal_bytes(tmp_path: Path) -> None:
    first = sample()
    second = replace(
        first,
        codec=turned(first.codec),
        individual=turned(first.individual),
        points=tuple(replace(entry, scores=turned(entry.scores)) for entry in first.points),
    )
    assert fronts.dump(second) == fronts.dump(first)
    (tmp_path / "front.json").write_bytes(fronts.dump(first))
    assert fronts.read(tmp_path / "front.json") == first


def test_outside_readers_find_what_they_know() -> None:
    document = json.loads(fronts.dump(sample()))
    assert document["format_version"] == 1
    assert document["points"][0]["id"] == "c0251-aaaaaa"
    assert document["points"][0]["cost"] == 0.251
    assert document["points"][0]["grouping"] == {"attention": [0, 0], "mlp": [0, 1]}
    assert document["reference"] == {"cost": 2.02, "performance": 0.35}
    assert document["history"][1] == {"evaluations": 8, "hypervolume": 0.7}


def publish(top: dict[str, Any], **changes: Any) -> None:
    top["points"][0].update(PUBLISHED | changes)


def test_a_pushed_point_names_its_repo_its_commit_and_the_digest_of_its_map() -> None:
    document = json.loads(fronts.dump(sample()))
    assert [document["points"][0][key] for key in PUBLISHED] == [None, None, None]
    publish(document)
    read = fronts.parse(json.dumps(document).encode()).points
    assert (read[0].repo, read[0].revision, read[0].map_sha256) == tuple(PUBLISHED.values())
    assert (read[1].repo, read[1].revision, read[1].map_sha256) == (None, None, None)


Edit = Callable[[dict[str, Any]], object]
HOSTILE: dict[str, tuple[Edit, type[InputError], str]] = {
    "unknown key": (lambda top: top.update(extra=1), MalformedChainMap, "'extra' is unknown"),
    "missing key": (lambda top: top.pop("codec"), MalformedChainMap, "lacks 'codec'"),
    "newer": (lambda top: top.update(format_version=2), UnknownFormatVersion, "format_version is 2"),
    "true": (lambda top: top.update(format_version=True), MalformedChainMap, "format_version: is true"),
    "no points": (lambda top: top.update(points=[]), MalformedChainMap, "points: is empty"),
    "no tasks": (lambda top: top.update(tasks={}), MalformedChainMap, "tasks: is empty"),
    "same component": (lambda top: top.update(components=["mlp", "mlp"]), MalformedChainMap, "a component twice"),
    "branch": (lambda top: top.update(revision="main"), MalformedChainMap, "revision: 'main' is no commit"),
    "no digest": (lambda top: top.update(base_sha256="1F" * 32), MalformedChainMap, "base_sha256: "),
    "task undigested": (lambda top: top["task_sha256"].pop("trec"), MalformedChainMap, "task_sha256: lacks 'trec'"),
    "path": (lambda top: top["points"][0].update(id="../../etc"), UnsafeName, r"points\[0\]\.id"),
    "same id": (
        lambda top: top["points"][0].update(id="c0400-bbbbbb"),
        MalformedChainMap,
        "two configurations one id",
    ),
    "unsorted": (lambda top: top["points"].reverse(), MalformedChainMap, "by rising cost"),
    "free": (lambda top: top["points"][0].update(cost=0), MalformedChainMap, "costs more than nothing"),
    "text": (lambda top: top["points"][0].update(cost="1"), MalformedChainMap, r"points\[0\]\.cost: is the text"),
    "foreign task": (lambda top: top["individual"].update(cola=0.1), MalformedChainMap, "individual: the key 'cola'"),
    "not canonical": (
        lambda top: top["points"][0]["grouping"].update(mlp=[1, 0]),
        MalformedChainMap,
        r"grouping\.mlp: is no partition of 2 tasks",
    ),
    "too short": (lambda top: top["points"][0]["grouping"].update(mlp=[0]), MalformedChainMap, "is no partition"),
    "too long": (lambda top: top["points"][0]["grouping"].update(mlp=[0] * 9), LimitExceeded, "9 entries"),
    "nameless": (lambda top: top["method"].pop("name"), MalformedChainMap, "method: lacks 'name'"),
    "nested": (lambda top: top["method"].update(scale=[1]), MalformedChainMap, r"method\.scale: is an array"),
    "dtype": (lambda top: top.update(dtype="float64"), MalformedChainMap, "dtype"),
    "half published": (
        lambda top: top["points"][1].update(repo="org/x"),
        MalformedChainMap,
        r"points\[1\]: gives repo and leaves others",
    ),
    "published nowhere": (lambda top: publish(top, revision=None), MalformedChainMap, r"points\[0\]: gives repo"),
    "published by branch": (lambda top: publish(top, revision="main"), MalformedChainMap, r"revision: 'main' is no"),
    "published undigested": (lambda top: publish(top, map_sha256="x"), MalformedChainMap, "map_sha256: 'x'"),
    **{
        f"published as {repo!r}": (
            lambda top, repo=repo: publish(top, repo=repo),  # type: ignore[misc]
            UnsafeName,
            r"points\[0\]\.repo: .* is no repo on the Hub",
        )
        for repo in (
            "../x",
            "/etc/x",
            "members",
            "a/b/c",
            "org/..",
            "org/x.git",
            "./x",
            "org/x/",
            "https://h/x",
            "a\\b",
        )
    },
    "controls": (
        lambda top: top.update(controls={f"c{n}": top["points"][0] for n in range(9)}),
        LimitExceeded,
        "controls: has 9 entries",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_breaks_a_rule_is_refused_with_its_place(case: str) -> None:
    edit, error, message = HOSTILE[case]
    document = json.loads(fronts.dump(sample()))
    edit(document)
    with pytest.raises(error, match=rf"front\.json: .*{message}"):
        fronts.parse(json.dumps(document).encode())


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"{", b"\xff", b'{"format_version": 1, "format_version": 1}'])
def test_what_is_no_front_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedChainMap, match=r"front\.json"):
        fronts.parse(data)


def test_a_file_beyond_the_limit_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "front.json"
    with path.open("wb") as file:
        file.truncate(LIMITS.front_bytes * 1000)
    with pytest.raises(LimitExceeded):
        fronts.read(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_nobody_could_read_is_not_written(value: float) -> None:
    with pytest.raises(MalformedChainMap, match="cannot be written"):
        fronts.dump(replace(sample(), hypervolume=value))
    with pytest.raises(MalformedChainMap, match="costs more than nothing"):
        fronts.dump(replace(sample(), points=(point("x", -1.0, 0.1),)))


def test_points_and_controls_are_found_by_id() -> None:
    front = sample()
    assert front.point("c0400-bbbbbb") == front.points[1]
    assert front.point("c0502-cccccc") == front.controls["all-separate"]
    assert front.point("c9999-zzzzzz") is None


def test_the_best_that_fits_is_chosen_and_ties_go_to_the_cheaper() -> None:
    points = [point("a", 0.3, 0.7), point("b", 0.4, 0.8), point("c", 0.5, 0.8), point("d", 0.9, 0.75)]
    assert within(points, None).id == "b"
    assert within(points, 0.4).id == "b"
    assert within(points, 0.39999).id == "a"
    assert within(list(reversed(points)), 10).id == "b"


def test_a_budget_below_the_cheapest_names_it() -> None:
    with pytest.raises(BudgetTooSmall) as refusal:
        within(sample().points, 0.2)
    assert (refusal.value.asked, refusal.value.least, refusal.value.configuration) == (0.2, 0.251, "c0251-aaaaaa")
