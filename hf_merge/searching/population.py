"""Where a search starts: the first generation, drawn at random or from k-means on task vectors."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hf_merge.merging.grouping import Partition, kmeans_partition
from hf_merge.searching.configuration import Configuration
from hf_merge.searching.space import SearchSpace


def random_population(space: SearchSpace, size: int, seed: int) -> list[Configuration]:
    """Returns the two extremes and random configurations, `size` distinct ones, or the whole space if that is smaller.

    Args:
        space: The configurations to draw from.
        size: How many to return, 1 or more.
        seed: Seed of the draws.
    """
    chosen = dict.fromkeys([space.all_merged(), space.all_separate()])
    return _filled(space, chosen, size, np.random.default_rng(seed))


def kmeans_population(
    space: SearchSpace, grams: Sequence[NDArray[np.float64]], size: int, seed: int
) -> list[Configuration]:
    """Returns `size` distinct configurations from k-means on the task vectors, or the whole space if that is smaller.

    First the two extremes; then those with the same number of groups k in every component, k from 2 to T-1 (evenly
    thinned where `size` does not hold them all); then a k drawn for each component. Where k-means has no more to give,
    random configurations fill up.

    Args:
        space: The configurations to draw from.
        grams: One Gram matrix of task vectors `[tasks, tasks] float64` per component.
        size: How many to return, 1 or more.
        seed: Seed of k-means and of the draws.

    Raises:
        ValueError: The Gram matrices do not fit the space.

    Source: MERGE (arXiv 2602.06552), Algorithm 1, line 1; the numbers of groups, which it leaves open, are ours.
    """
    tasks = len(space.tasks)
    if len(grams) != len(space.components) or any(gram.shape != (tasks, tasks) for gram in grams):
        raise ValueError(
            f"Expected {len(space.components)} Gram matrices of shape {(tasks, tasks)}, one per component, "
            f"not {[gram.shape for gram in grams]}."
        )
    found: dict[tuple[int, int], Partition] = {}

    def clustered(counts: Sequence[int]) -> Configuration:
        keys = list(zip(space.searched, counts, strict=True))
        for key in keys:
            if key not in found:
                found[key] = kmeans_partition(grams[key[0]], key[1], seed)
        return space.configuration([found[key] for key in keys])

    rng = np.random.default_rng(seed)
    chosen = dict.fromkeys([space.all_merged(), space.all_separate()])
    diagonals = np.linspace(2, tasks - 1, num=max(0, min(tasks - 2, size - 2)))
    chosen |= dict.fromkeys(clustered([int(k)] * len(space.searched)) for k in diagonals.round())
    for _ in range(20 * size):
        if len(chosen) >= size:
            break
        chosen[clustered(rng.integers(1, tasks + 1, size=len(space.searched)).tolist())] = None
    return _filled(space, chosen, size, rng)


def with_choices(
    space: SearchSpace,
    drawn: Sequence[Configuration],
    size: int,
    seed: int,
    proposed: Sequence[Configuration] = (),
) -> list[Configuration]:
    """Returns a first generation that tries every merge method and codec, of `size` distinct configurations at most.

    First the uniform ladder: all tasks merged and all apart in each codec alone, then all merged by each method alone;
    half of the generation at most, but all of it where methods alone are searched, and if there are more of them than
    `size`; in any case both extremes in the first method and codec. Then what is proposed. Then what was drawn, with
    methods and codecs drawn at random; then random configurations, where the space holds more.

    Args:
        space: The configurations to draw from.
        drawn: Configurations whose partitions are to be tried; of a space without a choice they come back as they are.
        size: How many to return.
        seed: Seed of the draws.
        proposed: Configurations that come before those drawn.
    """
    if space.methods == space.codecs == 1:
        return [space.all_merged()] if space.merged else list(drawn)
    rng = np.random.default_rng([seed, 2])
    alone = [space.all_merged(codec=codec) for codec in range(space.codecs)]
    if space.codecs > 1 and not space.merged:
        alone += [space.all_separate(codec) for codec in range(space.codecs)]
    alone += [space.all_merged(method) for method in range(1, space.methods)]
    uniform = list(dict.fromkeys(alone))  # of codecs that store differences one group is the same
    chosen = dict.fromkeys(uniform if space.merged else uniform[: max(1, size // 2)])
    if not space.merged:
        chosen |= dict.fromkeys([space.all_merged(), space.all_separate()])  # of many codecs, the latter comes late
    chosen |= dict.fromkeys(proposed)
    size = max(size, len(chosen))
    for configuration in drawn if not space.merged else ():
        partitions = [configuration.grouping[index] for index in space.searched]
        chosen[space.configuration(partitions, *space.random_choices(rng))] = None
    return _filled(space, chosen, size, rng)


def _filled(
    space: SearchSpace, chosen: dict[Configuration, None], size: int, rng: np.random.Generator
) -> list[Configuration]:
    while len(chosen) < min(size, space.size):
        chosen[space.random(rng)] = None
    return list(chosen)[:size]
