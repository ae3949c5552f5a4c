"""The card of a static merge: what the Hub reads in its head, and nothing from outside that does anything."""

from typing import Any

from huggingface_hub import ModelCard

from hf_merge.storing.card_merged import merged_card
from hf_merge.storing.provenance import Origin, Source


METHOD: dict[str, float | str] = {"name": "ties", "density": 0.2, "combine": "mean"}


def _origin(*names: str) -> Origin:
    tasks = {name: Source(f"org/{name}", f"org/{name}", "c" * 40, "mit") for name in names}
    return Origin(Source("org/base", "org/base", "b" * 40, "mit"), tasks, (), "")


def test_the_head_names_every_source_as_merged_from() -> None:
    card = ModelCard(merged_card("both", _origin("one", "two"), METHOD, "https://x.org/1", "type", None))
    data: Any = card.data
    assert data.base_model == ["org/base", "org/one", "org/two"]
    assert data.base_model_relation == "merge" and data.license == "mit"
    assert data.tags == ["merge", "hf-merge"]
    assert "| density | 0.2 |" in card.text and "[ties](https://x.org/1)" in card.text
    assert "every fine-tune's head was left out" in card.text


def test_a_head_is_named() -> None:
    assert "that of the task one" in merged_card("x", _origin("one"), METHOD, "https://x.org/1", "type", "one")


def test_names_from_outside_are_escaped() -> None:
    card = merged_card("<b>x</b>", _origin("one"), METHOD, "https://x.org/1", "type", "one|two")
    assert "<b>" not in card and r"one\|two" in card


def test_local_folders_are_no_base_models() -> None:
    source = Source("base", None, None, None)
    card = ModelCard(merged_card("x", Origin(source, {"a": source}, (), ""), METHOD, "https://x.org/1", "type", None))
    data: Any = card.data
    assert data.base_model is None and data.license == "unknown"
