"""Sources and their licences: one that all agree on, and otherwise who has which."""

import pytest

from hf_merge.storing.provenance import Origin, Source, hub_link, licence_of, source_link


def origin(*licences: str | None) -> Origin:
    """Returns a base and fine-tunes with these licences."""
    sources = [Source(f"model-{index}", f"org/model-{index}", "0" * 40, text) for index, text in enumerate(licences)]
    return Origin(sources[0], {f"t{index}": source for index, source in enumerate(sources[1:])}, (), "")


@pytest.mark.parametrize("licences", [("mit", "mit"), ("mit", "MIT", " mit\n"), ("mit",)])
def test_a_licence_that_all_share_is_that_of_the_merge(licences: tuple[str, ...]) -> None:
    licence = licence_of(origin(*licences))
    assert (licence.id, licence.name) == ("mit", None)
    assert licence.text == "Every source states the licence mit, and so does this."


def test_a_licence_that_the_hub_does_not_know_is_other_by_name() -> None:
    licence = licence_of(origin("Our Licence 2", "Our  Licence 2"))
    assert (licence.id, licence.name) == ("other", "Our Licence 2")


def test_different_licences_are_said_one_by_one() -> None:
    licence = licence_of(origin("apache-2.0", "mit", "apache-2.0", None))
    assert (licence.id, licence.name) == ("other", "mixed")
    assert licence.text == (
        "The sources have different licences. apache-2.0: org/model-0, org/model-2; mit: org/model-1. No licence was "
        "found for org/model-3. Whoever uses this has to keep to all of them, and to ask where there is none."
    )


@pytest.mark.parametrize("nothing", [None, "", "unknown", "other"])
def test_a_source_without_a_licence_makes_the_whole_other(nothing: str | None) -> None:
    licence = licence_of(origin("mit", nothing))
    assert (licence.id, licence.name) == ("other", "mixed")
    assert "Not every source states a licence. mit: org/model-0. No licence was found for org/model-1." in licence.text


def test_no_licence_at_all_is_unknown() -> None:
    licence = licence_of(origin(None, None))
    assert (licence.id, licence.name) == ("unknown", None)
    assert licence.text.startswith("No licence was found for org/model-0, org/model-1.")


def test_a_licence_from_outside_is_escaped() -> None:
    assert r"\<b\>x\</b\>" in licence_of(origin("<b>x</b>", "mit")).text


def test_a_source_is_named_once_however_often_it_serves() -> None:
    base = Source("b", "org/b", "0" * 40, None)
    local = Source("mine", None, None, None)
    merged = Origin(base, {"one": base, "two": local, "three": local}, (), "")
    assert merged.sources == (base, local)
    assert merged.on_the_hub == ["org/b"]


def test_links_lead_to_the_hub_and_local_folders_have_none() -> None:
    assert source_link(Source("x", "org/b", "0" * 40, None)) == "[org/b](https://huggingface.co/org/b)"
    assert source_link(Source("my_folder", None, None, None)) == "my_folder"
    assert hub_link("data", "org/data", kind="datasets/") == "[data](https://huggingface.co/datasets/org/data)"
    assert hub_link("x", "javascript:alert(1)") == "x"
    assert hub_link("x", "a/b/../../c") == "x"
