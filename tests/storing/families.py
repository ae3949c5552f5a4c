"""Families that were never searched: a front of any size, what it scores on test rows, and where it comes from."""

import random
from collections.abc import Mapping

import yaml

from hf_merge.merging.grouping import canonical
from hf_merge.storing.card import Origin, Places, Source
from hf_merge.storing.front import Front, FrontPoint
from hf_merge.storing.results import Report, Scores


BASE = Source("org/base", "org/base", "0123456789" * 4, "apache-2.0")


def front(points: int = 3, tasks: int = 3, components: int = 4, *, most: float | None = None) -> Front:
    """Returns a front with both controls; many of its points stand close together, as they do in real ones."""
    draw = random.Random(points)
    dearest = most or tasks / 4
    names = {f"task_{index}": "accuracy" for index in range(tasks)}
    parts = tuple(f"attention.{index}" if components > 4 else f"part{index}" for index in range(components))
    clusters = [0.2534 + (dearest - 0.26) * draw.random() ** 2 for _ in range(max(1, points // 3))]
    costs = sorted(draw.choice(clusters) + 0.0007 * draw.random() for _ in range(points))
    values = sorted(0.4 + 0.5 * draw.random() for _ in range(points))
    made = [
        _point(cost, value, names, tuple(_partition(draw, tasks) for _ in parts))
        for cost, value in zip(costs, values, strict=True)
    ]
    merged = _point(0.2511, 0.39, names, ((0,) * tasks,) * components)
    separate = _point(dearest + 0.01, 0.91, names, (tuple(range(tasks)),) * components)
    return Front(
        base="org/base",
        revision=BASE.revision,
        base_sha256="1f" * 32,
        task_sha256=dict.fromkeys(names, "2e" * 32),
        parameters=22_713_216,
        granularity="type",
        components=parts,
        tasks=names,
        method={"name": "task_arithmetic", "scale": 0.4},
        codec={"name": "int8", "policy": "always", "unit": "tensor"},
        dtype="float32",
        individual=dict.fromkeys(names, 0.95),
        pretrained=dict.fromkeys(names, 0.1),
        reference=(dearest * 1.1, 0.1),
        hypervolume=0.7,
        history=((60, 0.7),),
        points=tuple(made),
        controls={"all-merged": merged, "all-separate": separate},
    )


def report(of: Front) -> Report:
    """Returns test scores of a front: a little below its validation scores, and routed a little further below."""
    everything = [
        *((name, point) for name, point in of.controls.items()),
        *(("front", point) for point in of.points),
    ]
    own = _scores("individual", "individual", len(of.tasks) + 0.01, 0.95, of.tasks)
    rows = [_scores(point.id, role, point.cost, point.performance, of.tasks) for role, point in everything]
    return Report((own, *rows), dict.fromkeys(of.tasks, 0.98), dict.fromkeys(of.tasks, 450))


def origin(
    tasks: Mapping[str, str], *, licences: Mapping[str, str | None] | None = None, column: str = "text"
) -> Origin:
    """Returns sources on the Hub for a base and some tasks; `licences` by task, all as the base's where not given."""
    recipe = {
        "base": {"model": "org/base", "revision": BASE.revision},
        "tasks": [
            {
                "name": task,
                "model": f"org/base-{task}",
                "revision": "f" * 40,
                "metric": metric,
                "data": {
                    "path": "org/data",
                    "name": task,
                    "revision": "e" * 40,
                    column: "input",
                },
            }
            for task, metric in tasks.items()
        ],
    }
    sources = {
        task: Source(
            f"org/base-{task}", f"org/base-{task}", "f" * 40, BASE.licence if licences is None else licences.get(task)
        )
        for task in tasks
    }
    return Origin(BASE, sources, ("org/data",), yaml.safe_dump(recipe, sort_keys=False))


def places(of: Front, family: str | None = "me/demo") -> Places:
    """Returns where a front would be pushed to."""
    everything = [*of.points, *of.controls.values()]
    return Places(family, {point.id: f"{family or '..'}-{point.id}" for point in everything}, None)


def _point(cost: float, value: float, tasks: Mapping[str, str], grouping: tuple[tuple[int, ...], ...]) -> FrontPoint:
    digest = random.Random(f"{cost}{value}").getrandbits(24)
    identifier = f"c{round(1000 * cost):04d}-{digest:06x}"
    return FrontPoint(identifier, cost, value, value / 0.95, dict.fromkeys(tasks, value), grouping)


def _partition(draw: random.Random, tasks: int) -> tuple[int, ...]:
    return canonical([draw.randrange(tasks) for _ in range(tasks)])


def _scores(name: str, role: str, cost: float, value: float, tasks: Mapping[str, str]) -> Scores:
    known, routed = dict.fromkeys(tasks, value - 0.01), dict.fromkeys(tasks, value - 0.02)
    return Scores(
        id=name,
        role=role,
        cost=cost,
        validation=value,
        oracle=value - 0.01,
        routed=value - 0.02,
        oracle_normalised=(value - 0.01) / 0.94,
        routed_normalised=(value - 0.02) / 0.94,
        oracle_scores=known,
        routed_scores=routed,
    )
