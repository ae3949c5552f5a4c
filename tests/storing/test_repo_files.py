import pytest

from hf_merge.errors import CheckpointDamaged, PickleRefused
from hf_merge.storing.repo_files import (
    MEMBER_FILES,
    PICKLE_FILES,
    SETTINGS_FILES,
    WEIGHT_FILES,
    check_weights,
    matching,
)


@pytest.mark.parametrize("patterns", [SETTINGS_FILES, WEIGHT_FILES, MEMBER_FILES])
@pytest.mark.parametrize(
    "name",
    [
        *(
            "pytorch_model.bin",
            "model.pt",
            "model.ckpt",
            "vectors.npz",
            "tf_model.h5",
            "optimizer.pt",
            "modeling_x.py",
        ),
        *(
            "onnx/model.safetensors",
            "a/config.json",
            "consolidated.safetensors",
            "template.jinja",
            ".gitattributes",
        ),
    ],
)
def test_nothing_travels_that_is_not_wanted(name: str, patterns: tuple[str, ...]) -> None:
    assert matching([name], patterns) == []


def test_no_list_of_what_is_wanted_lets_a_pickle_pass() -> None:
    pickles = [pattern.replace("*", "model") for pattern in PICKLE_FILES]
    assert matching(pickles, SETTINGS_FILES + WEIGHT_FILES + MEMBER_FILES) == []


def test_weights_of_any_name_at_the_top_will_do() -> None:
    for name in ("model.safetensors", "adapter_model.safetensors", "model-00001-of-00002.safetensors"):
        check_weights(["config.json", "pytorch_model.bin", name], "a repo")


def test_pickles_are_named_three_at_most_and_escaped() -> None:
    names = [f"{letter}.bin" for letter in "abcd"] + ["e\x1b.bin"]
    with pytest.raises(PickleRefused, match=r"a repo holds .* \('a\.bin', 'b\.bin', 'c\.bin'\)"):
        check_weights(names, "a repo")
    with pytest.raises(PickleRefused, match=r"'e\\x1b\.bin'"):
        check_weights(names[-1:], "a repo")


@pytest.mark.parametrize("names", [[], ["config.json"], ["consolidated.safetensors"], ["states/model.bin"]])
def test_no_weights_at_all_are_no_checkpoint(names: list[str]) -> None:
    with pytest.raises(CheckpointDamaged, match="a repo holds no"):
        check_weights(names, "a repo")


@pytest.mark.parametrize("name", ["chains.json", "front.json"])
def test_a_merged_model_is_no_checkpoint(name: str) -> None:
    with pytest.raises(CheckpointDamaged, match=rf"holds {name}: it is a merged model.*materialize"):
        check_weights(["config.json", name, "experts-00001-of-00001.safetensors"], "a repo")
