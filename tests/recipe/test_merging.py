"""How a recipe says to cut, merge and store; the whole is tested in tests/test_recipe.py."""

from typing import Any

import pytest
from pydantic import ValidationError

from hf_merge.recipe.merging import MAX_METHODS, MergeSpec, settings_of


def test_segments_bring_their_granularity() -> None:
    assert MergeSpec.model_validate({"segments": {"late": ["*.5.*"]}}).granularity == "segments"
    assert MergeSpec().granularity == "type"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"granularity": "segments"}, "'segments' goes with merge.segments"),
        ({"granularity": "layer", "segments": {"a": ["*"]}}, "granularity 'layer' does not fit"),
        ({"segments": {"rest": ["*"]}}, "'rest' is the segment of what no other takes"),
        ({"segments": {"base": ["*"]}}, "'base' is the segment of what adapters leave as it is"),
        ({"segments": {}}, "at least 1"),
        ({"segments": {"a b": ["*"]}}, "match pattern"),
        ({"methods": ["ties"] * (MAX_METHODS + 1)}, "65 entries given; give 1 to 64"),
        ({"methods": []}, "0 entries given; give 1 to 64"),
        ({"codecs": []}, "0 entries given; give 1 to 64"),
    ],
)
def test_what_makes_no_sense_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        MergeSpec.model_validate(given)


def test_an_entry_is_a_name_or_a_mapping_with_one() -> None:
    assert settings_of("ties") == ("ties", {})
    assert settings_of({"name": "ties", "density": 0.3}) == ("ties", {"density": 0.3})


def test_a_nameless_method_is_shown_by_its_beginning() -> None:
    nested: list[object] = ["x"]
    for _ in range(12):
        nested = [nested] * 4  # written out, more than fits in memory
    with pytest.raises(ValidationError) as caught:
        MergeSpec.model_validate({"methods": [{"x": nested}]})
    assert len(caught.value.errors(include_input=False)[0]["msg"]) < 1_000
