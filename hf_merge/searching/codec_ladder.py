"""A ladder of ways to store every task apart, from the closest to the cheapest, without a single evaluation.

Each component may be stored by each codec, or as the one expert that all tasks share. What that loses is measured on
the weights: how far the decoded experts lie from the fine-tunes, squared, as a share of the component's task vectors
squared. Starting where nothing can be closer, the next step is always the one that loses least for what it saves: the
points of the lower convex hull of loss against cost, whose steps of all components are taken in the order of their
slopes.

Source: greedy allocation along convex hulls (Shoham and Gersho, 1988); the loss as a share of the task vector is ours.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hf_merge.merging.experts import ExpertKey
from hf_merge.merging.grouping import Partition, all_merged, all_separate
from hf_merge.merging.statistics import is_statistic
from hf_merge.searching.building import ExpertBuilder
from hf_merge.searching.configuration import Configuration
from hf_merge.searching.space import SearchSpace


@dataclass(frozen=True)
class Way:
    """One way to store a component: a partition and a codec, with what it costs and loses.

    Attributes:
        partition: Every task apart, or all in one group.
        codec: The codec's number.
        cost: What the component's experts take, in full-precision parameters.
        loss: The squared distance from the fine-tunes over the squared length of their task vectors; 0 where these are
            0, as in a frozen component, which all configurations round alike.
    """

    partition: Partition
    codec: int
    cost: float
    loss: float


def ways_to_store(
    space: SearchSpace,
    builder: ExpertBuilder,
    grams: Sequence[NDArray[np.float64]],
    advance: Callable[[int], object] = lambda _: None,
) -> list[list[Way]]:
    """Returns for each searched component every way to store it: in one group by each codec that can, apart by all.

    Args:
        space: The configurations to choose among.
        builder: Builds the experts, merged by the first method.
        grams: One Gram matrix of task vectors [tasks, tasks] float64 per component.
        advance: Called with the number of experts built since the last call, for a progress bar.

    Raises:
        NonFiniteWeights: The base or a member holds NaN or infinity.
    """
    tasks = len(space.tasks)
    found = []
    for index in space.searched:
        whole = float(np.trace(grams[index]))
        ways = []
        for codec in range(space.codecs):
            for partition in dict.fromkeys([all_merged(tasks), all_separate(tasks)]):
                wanted = _alone(space, index, partition, codec)
                if (wanted.grouping[index], wanted.codec(index)) != (partition, codec):
                    continue  # one group has no differences to store
                keys = [key for key in builder.keys(wanted) if key.component == space.components[index]]
                chain = [builder.chain(wanted, task)[index] for task in space.tasks]
                distance = sum(_distance(builder, key, task) for key, task in zip(chain, space.tasks, strict=True))
                cost = sum(builder.expert(key).parameters for key in keys)
                ways.append(Way(partition, codec, cost, distance / whole if whole else 0.0))
                advance(len(keys))
        found.append(ways)
    return found


def codec_ladder(space: SearchSpace, ways: Sequence[Sequence[Way]], size: int) -> list[Configuration]:
    """Returns at most `size` configurations, evenly spread over the ladder's steps, both ends included.

    Args:
        space: The configurations to choose among.
        ways: For each searched component the ways to store it.
        size: How many to return, 2 or more.
    """
    hulls = [_hull(each) for each in ways]
    moves = sorted(
        (_slope(hull[step], hull[step + 1]), component, step)
        for component, hull in enumerate(hulls)
        for step in range(len(hull) - 1)
    )
    at = [0] * len(hulls)
    steps = [_configuration(space, hulls, at)]
    for _, component, step in moves:
        at[component] = step + 1
        steps.append(_configuration(space, hulls, at))
    chosen = np.unique(np.linspace(0, len(steps) - 1, num=size).round().astype(int))
    return [steps[index] for index in chosen]


def _alone(space: SearchSpace, index: int, partition: Partition, codec: int) -> Configuration:
    """Returns a configuration that stores one component in some way, and the others in one group."""
    merged = all_merged(len(space.tasks))
    columns = [partition if each == index else merged for each in space.searched]
    return space.configuration(columns, codecs=[codec if each == index else 0 for each in space.searched])


def _distance(builder: ExpertBuilder, key: ExpertKey, task: str) -> float:
    """Returns the squared distance of an expert, as decoded, from a task's own weights."""
    total = 0.0
    for name, decoded in builder.decoded(key).items():
        if is_statistic(name):
            continue
        own = builder.family.tasks[task].read(name)
        total += float((own.view(decoded.shape) - decoded).double().square().sum())
    return total


def _hull(ways: Sequence[Way]) -> list[Way]:
    """Returns the ways on the lower convex hull of loss against cost, from the dearest to the cheapest."""
    hull: list[Way] = []
    for way in sorted(ways, key=lambda way: (way.cost, way.loss), reverse=True):
        while hull and way.loss <= hull[-1].loss:
            hull.pop()
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], way):
            hull.pop()
        hull.append(way)
    return hull


def _slope(dear: Way, cheap: Way) -> float:
    """Returns what a step loses for each parameter that it saves."""
    return (cheap.loss - dear.loss) / max(dear.cost - cheap.cost, np.finfo(np.float64).tiny)


def _configuration(space: SearchSpace, hulls: Sequence[Sequence[Way]], at: Sequence[int]) -> Configuration:
    chosen = [hull[step] for hull, step in zip(hulls, at, strict=True)]
    return space.configuration([way.partition for way in chosen], codecs=[way.codec for way in chosen])
