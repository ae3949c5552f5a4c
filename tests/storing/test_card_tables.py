"""The tables of cards: the right rows in the right order, and numbers as they were measured."""

from dataclasses import replace

import yaml

from hf_merge.recipe import Recipe
from hf_merge.storing import card_tables as tables
from hf_merge.storing.chains import HeadEntry
from tests.storing import chain_maps, families


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()]


def test_configurations_stand_by_rising_cost_after_the_fine_tunes() -> None:
    front = families.front(18)
    report = families.report(front)
    rows = cells(tables.configurations_table(front, report, families.places(front), tables.all_points(front)))
    assert rows[0][2:] == ["C", "MB", "P validation", "P test", "% of fine-tunes", "P test, routed"]
    assert rows[2] == [
        "3 fine-tunes as they are",
        "full precision",
        "3.0100",
        "273.5",
        "0.9500",
        "0.9400",
        "100.0",
        "0.9300",
    ]
    costs = [float(row[2]) for row in rows[3:]]
    assert costs == sorted(costs) and len(costs) == 20
    assert rows[3][1] == "all-merged" and rows[-1][1] == "all-separate"


def test_without_a_report_there_are_validation_scores_only() -> None:
    front = families.front(1)
    rows = cells(tables.configurations_table(front, None, families.places(front), front.points))
    assert rows[0][2:] == ["C", "MB", "P validation", "% of fine-tunes"]
    assert rows[2][2:] == ["above 3", "above 272.6", "0.9500", "100.0"]
    assert rows[3][4] == f"{front.points[0].performance:.4f}"


def test_a_point_that_was_not_measured_has_empty_cells() -> None:
    front = families.front(2)
    report = families.report(front)
    partly = replace(
        report, rows=tuple(row for row in report.rows if row.id not in ("individual", front.points[0].id))
    )
    rows = cells(tables.configurations_table(front, partly, families.places(front), front.points))
    assert rows[2][5:] == rows[3][5:] == ["", "", ""]
    assert all(rows[4][5:])


def test_one_configuration_has_one_column_with_all_its_titles() -> None:
    front = families.front(18)
    cheap = replace(front, points=tuple(point for point in front.points if point.cost <= 0.5))
    titles = [title for title, _ in tables.showcase(cheap, cheap.points)]
    assert titles == ["all-merged", "best at C ≤ 0.5, best at C ≤ 1, best"]
    dear = replace(front, points=tuple(replace(point, cost=point.cost + 3) for point in front.points))
    assert [title for title, _ in tables.showcase(dear, dear.points)] == ["all-merged", "best"]


def test_every_task_has_its_row() -> None:
    front = families.front(3)
    report = families.report(front)
    rows = cells(tables.task_table(front, report, [("best", front.points[-1])]))
    assert rows[0] == ["task", "metric", "test rows", "fine-tune", "best", "rightly routed, %"]
    best = front.points[-1].performance - 0.01
    assert rows[2] == ["task_0", "accuracy", "450", "0.9400", f"{best:.4f}", "98.0"]
    assert [row[0] for row in rows[2:]] == list(front.tasks)


def test_components_that_are_shared_alike_stand_in_one_row() -> None:
    front = families.front(1, tasks=3, components=4)
    point = replace(front.points[0], grouping=((0, 0, 0), (0, 1, 0), (0, 0, 0), (0, 1, 2)))
    assert cells(tables.sharing_table(front, point))[2:] == [
        ["part0, part2", "1", "all"],
        ["part1", "2", "task_0 + task_2; task_1"],
        ["part3", "3", "task_0; task_1; task_2"],
    ]


def test_differences_are_said_to_be_from_a_shared_expert() -> None:
    front = families.front(1, tasks=3, components=3)
    method, whole, signs = {"name": "average"}, {"name": "int8", "unit": "row"}, {"name": "sign"}
    point = replace(
        front.points[0],
        grouping=((0, 0, 0), (0, 1, 2), (0, 1, 2)),
        methods=(method,) * 3,
        codecs=(whole, whole, signs),
    )
    assert cells(tables.sharing_table(front, point)) == [
        ["components", "experts", "shared by", "merged by", "stored as"],
        ["---"] * 5,
        ["part0", "1", "all", "average", "int8 (unit row)"],
        ["part1", "3", "task_0; task_1; task_2", "\\-", "int8 (unit row)"],
        ["part2", "3 + 1 shared", "task_0; task_1; task_2", "average", "sign, as differences from the shared expert"],
    ]


def test_the_first_labels_are_shown_and_very_long_ones_cut() -> None:
    labels = ("no", "y" * 100, "a|b", "more")
    head = HeadEntry(4, labels, "single_label_classification", ("w",), "f", 1)
    sample = chain_maps.sample()
    rows = cells(tables.labels_table(replace(sample, heads={**sample.heads, "sst2": head})))
    assert rows[2] == ["sst2", "4 labels", f"no, {'y' * 47}…, a\\|b, …"]
    assert rows[3] == ["trec", "6 labels", "not named"]
    assert rows[4] == ["qqp", "a number", "not named"]
    assert len(cells(tables.labels_table(replace(sample, heads={})))) == 2


def test_sources_have_commit_licence_and_data() -> None:
    front = families.front()
    origin = families.origin(front.tasks, licences={"task_0": "mit"})
    rows = cells(tables.sources_table(origin, Recipe.parse(yaml.safe_load(origin.recipe), "recipe.yaml")))
    assert rows[2] == ["base", "[org/base](https://huggingface.co/org/base)", "01234567", "apache-2.0", ""]
    assert rows[3][2:] == ["ffffffff", "mit", "[org/data, task_0](https://huggingface.co/datasets/org/data)"]
    assert rows[4][3] == "not found"


def test_what_can_be_loaded_is_what_was_pushed_or_else_what_has_a_place() -> None:
    front = families.front(3)
    everywhere = families.places(front)
    assert tables.loadable(front, everywhere) == list(front.points)
    some = replace(everywhere, members={front.points[0].id: "me/x"})
    assert tables.loadable(front, some) == [front.points[0]]
    assert tables.loadable(front, replace(everywhere, members={})) == list(front.points)
    pushed = replace(front.points[2], repo="me/y", revision="0" * 40, map_sha256="1" * 64)
    assert tables.loadable(replace(front, points=(*front.points[:2], pushed)), everywhere) == [pushed]
