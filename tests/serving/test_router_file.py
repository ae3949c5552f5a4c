"""A router on its way through its file: the same decisions after, and nothing taken that a router does not have."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_merge.errors import MalformedChainMap
from hf_merge.serving.router import Router
from hf_merge.serving.router_file import load_router, router_tensors
from hf_merge.storing.checkpoints import trunk_of
from hf_merge.storing.library import Member
from hf_merge.storing.strict_json import read_json
from tests.tiny_runs import TinyRun


Tensors = dict[str, Tensor]


@pytest.fixture
def stored(tiny_run: TinyRun) -> tuple[Tensors, dict[str, Any], str]:
    """Returns the tensors of a real router, the base's configuration, and its trunk."""
    member = Member(tiny_run.members[0])
    tensors = member.router()
    config = read_json(member.folder / "config.json", 100_000)
    assert tensors is not None and isinstance(config, dict)
    names = [name for component in member.chain_map.components for name in component.tensors]
    return tensors, config, trunk_of(names)


def test_a_router_survives_its_file(stored: tuple[Tensors, dict[str, Any], str]) -> None:
    router, eyes = load_router(*stored)
    again = router_tensors(router, eyes)
    assert again.keys() == stored[0].keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in stored[0].items())
    second, _ = load_router(again, *stored[1:])
    features = torch.randn(7, router.width, generator=torch.Generator().manual_seed(1))
    assert isinstance(second, Router)
    assert torch.equal(second.scores(features), router.scores(features))


CHANGES: dict[str, Callable[[Tensors], object]] = {
    "unknown tensor": lambda tensors: tensors.update(other=torch.zeros(1)),
    "no depth": lambda tensors: tensors.pop("settings/layers"),
    "depth of another type": lambda tensors: tensors.update({"settings/layers": torch.tensor(0.0)}),
    "depth of another shape": lambda tensors: tensors.update({"settings/layers": torch.zeros(2, dtype=torch.int32)}),
    "negative depth": lambda tensors: tensors.update({"settings/layers": torch.tensor(-7, dtype=torch.int32)}),
    "no mean": lambda tensors: tensors.pop("router/mean"),
    "nan": lambda tensors: tensors["router/net.0.weight"].fill_(torch.nan),
    "missing features": lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith("features/")],
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_no_router_has_is_refused(stored: tuple[Tensors, dict[str, Any], str], change: str) -> None:
    tensors = {name: tensor.clone() for name, tensor in stored[0].items()}
    CHANGES[change](tensors)
    with pytest.raises(MalformedChainMap):
        load_router(tensors, *stored[1:])
