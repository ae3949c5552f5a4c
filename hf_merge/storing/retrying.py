"""Trying again: how often, after which wait, and which broken connections are worth it."""

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar


TRIES = 5
LONGEST_WAIT_SECONDS = 300.0  # the Hub counts requests in windows of five minutes

_LOG = logging.getLogger(__name__)
_EXHAUSTED = re.compile(r"\br\s*=\s*0\s*;\s*t\s*=\s*(\d{1,9})\b")
_RESETS = (ConnectionResetError, ConnectionAbortedError, BrokenPipeError)
_T = TypeVar("_T")


def insist(
    action: Callable[[], _T],
    *,
    errors: tuple[type[Exception], ...],
    asked_wait: Callable[[Exception], float | None],
    sleep: Callable[[float], None],
) -> _T:
    """Returns what `action` returns, tried at most TRIES times with waits that double from one second.

    Args:
        action: What to try.
        errors: What it may raise and still be tried again.
        asked_wait: Says of an error how many seconds the other side asked to wait, 0 if it did not, and None if trying
            again is pointless. More than LONGEST_WAIT_SECONDS are not waited for.
        sleep: Waits so many seconds.

    Raises:
        Exception: The last error, or the first one that is not worth another try.
    """
    for tried in range(TRIES - 1):
        try:
            return action()
        except errors as error:
            asked = asked_wait(error)
            if asked is None or asked > LONGEST_WAIT_SECONDS:
                raise
            wait = max(2.0**tried, asked)
            _LOG.warning("The Hub failed (%s); trying again in %g s.", type(error).__name__, wait)
        sleep(wait)
    return action()


def wait_seconds(headers: Mapping[str, str]) -> float:
    """Returns how long the headers of an answer ask to wait, 0 if they do not.

    Source: `RateLimit` of draft-ietf-httpapi-ratelimit-headers, as the Hub sends it; else `Retry-After` (RFC 9110).
    """
    lower = {name.lower(): text for name, text in headers.items()}
    if exhausted := _EXHAUSTED.search(lower.get("ratelimit", "")):
        return float(exhausted[1]) + 1  # whole seconds, rounded down
    asked = lower.get("retry-after", "").strip()
    return float(asked) if re.fullmatch(r"\d{1,9}", asked) else 0.0


def was_reset(error: BaseException) -> bool:
    """Returns whether an open connection was broken off beneath this error."""
    return any(isinstance(cause, _RESETS) for cause in _causes(error))


def was_unreachable(error: BaseException) -> bool:
    """Returns whether the system beneath this error found nobody there, or nobody in time."""
    return not was_reset(error) and any(isinstance(cause, OSError) for cause in _causes(error))


def _causes(error: BaseException) -> Iterator[BaseException]:
    below: BaseException | None = error
    while below is not None:
        yield below
        below = below.__cause__ or below.__context__
