"""One point of a search space: for every component who shares with whom, how groups are merged, and how stored."""

from dataclasses import dataclass

from hf_merge.merging.grouping import Grouping, canonical, is_canonical


@dataclass(frozen=True)
class Configuration:
    """One point of the search space.

    Attributes:
        grouping: One canonical partition of the tasks per component.
        methods: For every component the number of its merge method among those that are searched; empty where there
            is one for all. A component of which no two tasks share an expert has method 0, for none is used there,
            unless a residual codec stores the differences from what all tasks become merged.
        codecs: For every component the number of its codec among those that are searched; empty where there is one.
            The first stores shared experts, so it is not residual.

    Raises:
        ValueError: A partition is not in canonical form, so that equal configurations would compare unequal; or there
            is another number of methods or codecs than of components, or a method where nothing is merged.
    """

    grouping: Grouping
    methods: tuple[int, ...] = ()
    codecs: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for partition in self.grouping:
            if not is_canonical(partition):
                raise ValueError(f"The partition {partition} is not in canonical form {canonical(partition)}.")
        for name, chosen in (("methods", self.methods), ("codecs", self.codecs)):
            if chosen and len(chosen) != len(self.grouping):
                raise ValueError(f"{len(chosen)} {name} do not fit {len(self.grouping)} components.")
        for index, (partition, method) in enumerate(zip(self.grouping, self.methods, strict=False)):
            if method and is_separate(partition) and not self.codec(index):
                raise ValueError(f"Method {method} merges nothing in {partition}: in canonical form it is 0.")

    def method(self, component: int) -> int:
        """Returns the number of a component's merge method."""
        return self.methods[component] if self.methods else 0

    def codec(self, component: int) -> int:
        """Returns the number of a component's codec."""
        return self.codecs[component] if self.codecs else 0


def is_separate(partition: tuple[int, ...]) -> bool:
    """Returns whether every group of a partition has one task."""
    return len(set(partition)) == len(partition)
