"""Components by patterns: an exact partition, first match wins, and nothing named in vain."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_merge.errors import RecipeError
from hf_merge.merging.components import decompose
from hf_merge.merging.segments import segment


REST = "rest"


NAMES = ["embed.weight", *(f"layer.{n}.{part}.weight" for n in range(4) for part in ("attn", "mlp")), "norm.weight"]


def test_a_tensor_belongs_to_the_first_segment_that_it_matches() -> None:
    (whole,) = decompose(NAMES, "model")
    found = segment(whole, {"attention": ["*.attn.*"], "late": ["layer.2.*", "layer.3.*"]}, REST)
    assert [component.name for component in found] == ["attention", "late", REST]
    assert found[0].tensors == tuple(f"layer.{n}.attn.weight" for n in range(4))
    assert found[1].tensors == ("layer.2.mlp.weight", "layer.3.mlp.weight")
    assert set(found[2].tensors) == {"embed.weight", "norm.weight", "layer.0.mlp.weight", "layer.1.mlp.weight"}
    assert dict(zip(found[1].tensors, found[1].depths, strict=True))["layer.2.mlp.weight"] == pytest.approx(2 / 3)


@given(
    st.dictionaries(
        st.sampled_from("abc"), st.lists(st.sampled_from(["*attn*", "layer.1*", "*norm*", "*"]), max_size=2)
    )
)
def test_segments_are_an_exact_partition(patterns: dict[str, list[str]]) -> None:
    (whole,) = decompose(NAMES, "model")
    try:
        found = segment(whole, patterns, REST)
    except RecipeError:
        return
    assert sorted(name for component in found for name in component.tensors) == sorted(NAMES)
    assert all(component.tensors for component in found)


def test_a_segment_without_tensors_is_refused_with_what_names_look_like() -> None:
    (whole,) = decompose(NAMES, "model")
    with pytest.raises(RecipeError, match=r"no tensor belongs to 'heads' \(\*head\*\).*Names on disk: embed.weight"):
        segment(whole, {"heads": ["*head*"]}, REST)
    with pytest.raises(RecipeError, match="earlier segments took all"):
        segment(whole, {"all": ["*"], "none": ["*attn*"]}, REST)
