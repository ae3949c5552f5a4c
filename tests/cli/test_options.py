"""Hyperparameters on the command line."""

import pytest

from hf_merge.cli.options import read_settings, read_settings_by_method
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


def test_settings_by_method_are_read() -> None:
    given = ["ties.density=0.1", "ties.scale=1", "dare.combine=mean"]
    assert read_settings_by_method(given) == {"ties": {"density": 0.1, "scale": 1.0}, "dare": {"combine": "mean"}}


@pytest.mark.parametrize("given", ["density=0.1", ".density=1", "ties.=1"])
def test_settings_of_no_method_are_refused(given: str) -> None:
    with pytest.raises(InputError, match=r"write METHOD\.NAME=VALUE, as in --set ties\.density=0\.2"):
        read_settings_by_method([given])
