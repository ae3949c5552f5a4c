"""Equal values come in one order, however they were given."""

from itertools import permutations

from hf_merge.storing.ordering import in_order, named_first


def test_values_stand_as_the_tasks_do_and_what_is_no_task_stands_last() -> None:
    values = {"b": 1, "a": 2, "y": 3, "x": 4}
    for items in permutations(values.items()):
        found = in_order(dict(items), ["b", "c", "a"])
        assert found == values and list(found) == ["b", "a", "x", "y"]


def test_the_name_comes_before_the_sorted_settings() -> None:
    settings = {"name": "ties", "density": 0.2, "scale": 1.0}
    for items in permutations(settings.items()):
        found = named_first(dict(items))
        assert found == settings and list(found) == ["name", "density", "scale"]
