"""Hyperparameters on the command line."""

import pytest

from hf_merge.cli.options import read_settings
from hf_merge.errors import InputError


def test_numbers_are_numbers_and_words_are_words() -> None:
    assert read_settings(["density=0.2", "combine=mean", "scale=1e-1"]) == {
        "density": 0.2,
        "combine": "mean",
        "scale": 0.1,
    }


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["density"], "write NAME=VALUE"),
        (["=1"], "write NAME=VALUE"),
        (["scale=1", "scale=2"], "given twice: 1.0 and 2"),
    ],
)
def test_what_is_no_setting_is_refused(given: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_settings(given)
