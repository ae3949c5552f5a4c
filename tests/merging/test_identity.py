"""A configuration's id: readable by its cost, distinct by everything that determines it."""

from hf_merge.merging.codecs import CodecSpec
from hf_merge.merging.components import Component
from hf_merge.merging.grouping import Grouping
from hf_merge.merging.identity import configuration_id
from hf_merge.merging.methods import MethodSpec


COMPONENTS = (Component("attention", ("a",)), Component("mlp", ("m",)))
GROUPING: Grouping = ((0, 0), (0, 1))


def name(
    *, tasks: tuple[str, ...] = ("x", "y"), grouping: Grouping = GROUPING, method: str = "average",
    codec: str = "int8", cost: float = 0.359, components: tuple[Component, ...] = COMPONENTS,
) -> str:  # fmt: skip
    return configuration_id(
        components, tasks, grouping, MethodSpec.resolve(method, {}), CodecSpec.resolve(codec, {}), cost
    )


def test_an_id_begins_with_its_cost_in_thousandths() -> None:
    assert [name(cost=cost)[:6] for cost in (0.359, 0.2513, 1.0049, 12.0)] == ["c0359-", "c0251-", "c1005-", "c12000"]


def test_the_digest_is_of_what_determines_a_configuration_and_not_of_its_cost() -> None:
    assert name(cost=0.1)[-6:] == name(cost=0.9)[-6:]
    others = {
        name(), name(tasks=("y", "x")), name(grouping=((0, 1), (0, 0))), name(method="ties"), name(codec="full"),
    }  # fmt: skip
    assert len(others) == 5


def test_the_order_of_components_does_not_count_where_each_keeps_its_groups() -> None:
    assert name(components=COMPONENTS[::-1], grouping=GROUPING[::-1]) == name()
