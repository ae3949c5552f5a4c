from collections.abc import Callable
from itertools import pairwise

import pytest

from hf_merge.storing.retrying import LONGEST_WAIT_SECONDS, TRIES, insist, wait_seconds, was_reset, was_unreachable


def failing(times: int, error: Exception) -> Callable[[], int]:
    """An action that fails so many times, then returns how often it was called."""
    calls = 0

    def action() -> int:
        nonlocal calls
        calls += 1
        if calls <= times:
            raise error
        return calls

    return action


def chained(*errors: Exception) -> Exception:
    for upper, lower in pairwise(errors):
        upper.__cause__ = lower
    return errors[0]


@pytest.mark.parametrize("failures", range(TRIES))
def test_a_passing_fault_is_outlasted(failures: int) -> None:
    naps: list[float] = []
    action = failing(failures, OSError("busy"))
    assert insist(action, errors=(OSError,), asked_wait=lambda _: 0.0, sleep=naps.append) == failures + 1
    assert naps == [1.0, 2.0, 4.0, 8.0][:failures]


def test_the_last_error_is_the_answer_when_tries_run_out() -> None:
    naps: list[float] = []
    with pytest.raises(OSError, match="busy"):
        insist(failing(TRIES, OSError("busy")), errors=(OSError,), asked_wait=lambda _: 0.0, sleep=naps.append)
    assert len(naps) == TRIES - 1


@pytest.mark.parametrize("asked", [None, LONGEST_WAIT_SECONDS + 1])
def test_what_is_not_worth_waiting_for_is_raised_at_once(asked: float | None) -> None:
    naps: list[float] = []
    with pytest.raises(OSError, match="busy"):
        insist(failing(1, OSError("busy")), errors=(OSError,), asked_wait=lambda _: asked, sleep=naps.append)
    assert not naps


def test_other_errors_are_not_caught() -> None:
    with pytest.raises(KeyError):
        insist(failing(1, KeyError()), errors=(OSError,), asked_wait=lambda _: 0.0, sleep=lambda _: None)


def test_the_longer_wait_counts() -> None:
    naps: list[float] = []
    insist(failing(3, OSError()), errors=(OSError,), asked_wait=lambda _: 3.0, sleep=naps.append)
    assert naps == [3.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0.0),
        ({"Retry-After": "120"}, 120.0),
        ({"retry-after": " 1 "}, 1.0),
        ({"RateLimit": '"api";r=0;t=55'}, 56.0),
        ({"RateLimit": '"api";r=0;t=55', "Retry-After": "3"}, 56.0),
        ({"RateLimit": '"api";r=12;t=55', "Retry-After": "3"}, 3.0),
        ({"RateLimit": '"api"; r = 0 ; t = 7'}, 8.0),
        ({"RateLimit": '"api";r=10;t=55'}, 0.0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"Retry-After": "-1"}, 0.0),
        ({"Retry-After": "1" * 400, "RateLimit": "nonsense"}, 0.0),
    ],
)
def test_headers_say_how_long_to_wait(headers: dict[str, str], seconds: float) -> None:
    assert wait_seconds(headers) == seconds


def test_a_reset_is_told_from_a_hub_out_of_reach() -> None:
    reset = chained(RuntimeError(), RuntimeError(), ConnectionResetError())
    refused = chained(RuntimeError(), ConnectionRefusedError())
    protocol = RuntimeError("peer closed connection")
    assert [was_reset(error) for error in (reset, refused, protocol)] == [True, False, False]
    assert [was_unreachable(error) for error in (reset, refused, protocol)] == [False, True, False]
