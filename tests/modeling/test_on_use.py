"""Models that read weights when they use them: the same bits, nothing held, and never wrong numbers."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hf_merge.errors import ModelMismatch
from hf_merge.modeling.on_use import set_on_use
from tests.modeling.test_assembly import assembled, backbone_of, batch_of, head_of, opened, skeleton
from tests.tiny_models import LAYOUTS, TinyFamily


Families = Callable[[str], TinyFamily]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_model_that_reads_its_weights_gives_the_bits_of_one_that_holds_them(
    layout: str, tiny_family: Families
) -> None:
    tiny, batch = tiny_family(layout), batch_of(layout)
    task = next(iter(tiny.tasks))
    with opened(tiny) as family:
        held = assembled(tiny, family, task)
        weights = backbone_of(family, task)
        asked: list[str] = []

        def read(name: str) -> Tensor:
            asked.append(name)
            return weights[name].clone()

        model = skeleton(tiny, family, task)
        model.set_head(head_of(family, task))
        set_on_use(model, weights, family.base.trunk, torch.float32, read)
        model.require_complete()
        assert asked == []
        first = model.logits(batch)
        assert torch.equal(first, held.logits(batch))
        once = len(asked)
        assert once >= len(weights) - 4  # some models leave a pooler aside
        model.logits(batch)
        assert len(asked) == 2 * once


def test_nothing_is_held_and_what_stands_there_is_no_number(tiny_family: Families) -> None:
    tiny = tiny_family("bert")
    task = next(iter(tiny.tasks))
    with opened(tiny) as family:
        weights = backbone_of(family, task)
        model = skeleton(tiny, family, task)
        set_on_use(model, weights, family.base.trunk, torch.bfloat16, lambda name: weights[name].bfloat16())
        own = {model.own_name(name, family.base.trunk) for name in weights}
        for name, parameter in model.module.named_parameters():
            if name in own:
                assert parameter.untyped_storage().nbytes() == 2
                assert parameter.dtype == torch.bfloat16
                assert parameter.isnan().all()
        for name, tensor in model.tensors().items():
            assert name not in own or not tensor.isnan().any()


def test_a_tensor_of_another_shape_is_told_when_it_is_used(tiny_family: Families) -> None:
    tiny = tiny_family("bert")
    task = next(iter(tiny.tasks))
    with opened(tiny) as family:
        weights = backbone_of(family, task)
        model = skeleton(tiny, family, task)
        model.set_head(head_of(family, task))
        set_on_use(model, weights, family.base.trunk, torch.float32, lambda name: weights[name][:1])
        with pytest.raises(ModelMismatch, match=r"has shape \[1, .*\] where the model needs"):
            model.logits(batch_of("bert"))


def test_a_tensor_without_a_place_is_refused(tiny_family: Families) -> None:
    tiny = tiny_family("bert")
    task = next(iter(tiny.tasks))
    with opened(tiny) as family:
        model = skeleton(tiny, family, task)
        with pytest.raises(ModelMismatch, match=r"nowhere\.weight' has no place"):
            set_on_use(model, ["nowhere.weight"], family.base.trunk, torch.float32, lambda name: torch.ones(1))
