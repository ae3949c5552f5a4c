"""How the Hub is reached: which one, as whom, and with how much patience.

The client retries much by itself, but gives up at once on a server error while it looks something up, commits, tags or
fetches a file, and on a TCP reset. Exactly those are tried again here: retrying what the client has already retried
would multiply the requests.
"""

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from huggingface_hub import HfApi, constants, get_token, is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RevisionResolutionError

from hf_merge.errors import HfMergeError, HubError
from hf_merge.storing.redaction import redact, redacted_log
from hf_merge.storing.retrying import insist, wait_seconds, was_reset, was_unreachable
from hf_merge.storing.sources import is_encrypted


# The client's HTTP library changes with its major version; that library's base error is a base of the client's own.
TransportError: type[Exception] = HfHubHTTPError.__mro__[1]
ERRORS = (OSError, RevisionResolutionError, TransportError)

# What the client has tried six times by itself before it raises, where it retries at all.
_CLIENT_RETRIES = frozenset({408, 429, 500, 502, 503, 504})
_LISTING = re.compile(r"/api/\w+/[^?]*/tree/")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Access:
    """How a caller reaches the Hub.

    Attributes:
        token: A token to use, False for none; None takes what huggingface_hub finds.
        cache_dir: Where to keep the files instead of huggingface_hub's cache.
        local_files_only: Take everything from the cache; HF_HUB_OFFLINE=1 does the same.
        endpoint: The Hub's address, None for huggingface_hub's own (HF_ENDPOINT).
        sleep: Waits so many seconds between two tries.
    """

    token: str | bool | None = field(default=None, repr=False)
    cache_dir: str | Path | None = None
    local_files_only: bool = False
    endpoint: str | None = None
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False)

    @property
    def offline(self) -> bool:
        """Whether everything has to come from the cache."""
        return self.local_files_only or is_offline_mode()

    @property
    def address(self) -> str:
        """The Hub's address, without a slash at its end."""
        return (self.endpoint or constants.ENDPOINT).rstrip("/")

    def connect(self) -> "PatientApi":
        """Returns a client for this Hub.

        Raises:
            InputError: The Hub's address is neither https nor on this machine.
        """
        token, trusted = self.token, self.offline or is_encrypted(self.address)
        if token is None and not trusted:
            # The stored token was given for the real Hub, not for whatever listens on this machine.
            token = os.environ.get("HF_TOKEN") or False
        return PatientApi(self.address, token, self.sleep)

    def connect_to_write(self) -> "PatientApi":
        """Returns a client that has a token to show.

        Raises:
            HubError: This run is offline, or nobody is logged in; the message says what to run.
            InputError: The Hub's address is neither https nor on this machine.
        """
        if self.offline:
            raise HubError("This run is offline, so nothing can be pushed. Unset HF_HUB_OFFLINE and push again.")
        api = self.connect()
        if api.token is False or (not isinstance(api.token, str) and get_token() is None):
            raise HubError(
                f"Nobody is logged in to {redact(self.address)}. Run `hf auth login`, or set HF_TOKEN to a token that "
                "may write."
            )
        return api


AS_USUAL = Access()


class PatientApi(HfApi):
    """The client, with look-ups that outlast a server error and never wait for ever."""

    def __init__(self, address: str, token: str | bool | None, sleep: Callable[[float], None]) -> None:
        """Makes a client; `sleep` waits so many seconds between two tries."""
        super().__init__(endpoint=address, token=token, library_name="hf-merge")
        self._sleep = sleep

    def repo_info(self, *args: Any, **kwargs: Any) -> Any:
        """As in the client; tried again after an error that may pass."""
        # `resolve_revision` asks here, and takes the commit from its cache as soon as this fails.
        kwargs.setdefault("timeout", constants.HF_HUB_ETAG_TIMEOUT)
        ask = super().repo_info
        return self.insist(lambda: ask(*args, **kwargs), look_up_wait)

    def insist(self, call: Callable[[], _T], asked_wait: Callable[[Exception], float | None]) -> _T:
        """Returns what `call` returns, tried again as long as `asked_wait` sees a point in it."""
        return insist(call, errors=ERRORS, asked_wait=asked_wait, sleep=self._sleep)


@contextmanager
def explained(explain: Callable[[Exception], HfMergeError], token: str | bool | None) -> Iterator[None]:
    """Turns the client's errors into ours; theirs are left out of the trace, for they quote signed URLs."""
    with redacted_log("huggingface_hub", token):
        try:
            yield
        except ERRORS as error:
            raise explain(error) from None


def look_up_wait(error: Exception) -> float | None:
    """Returns the wait before a look-up is repeated, None where it is pointless: no right, nobody there, no answer."""
    if isinstance(error, HfHubHTTPError):
        return _passing(error)
    return 0.0 if isinstance(error, TransportError) and not was_unreachable(error) else None


def write_wait(error: Exception) -> float | None:
    """Returns the wait before a request that changes something is repeated, None where it is pointless.

    A push is under way by then: a Hub that is gone for a moment is waited for, as the client does while it uploads.
    """
    if isinstance(error, HfHubHTTPError):
        return _passing(error)
    return 0.0 if isinstance(error, TransportError) else None


def download_wait(error: Exception) -> float | None:
    """Returns the wait before a download is repeated, None where it is pointless or the client has done it already."""
    # The client looks into its cache when it has no answer; finding nothing there, it says so and why it looked.
    why = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
    request = failed_request(why)
    is_listing = bool(_LISTING.search(request.address))
    if isinstance(why, HfHubHTTPError):
        done = client_has_retried(why) and (is_listing or request.method == "HEAD")
        return None if done or why.response.status_code < 500 else wait_seconds(why.response.headers)
    if not isinstance(error, TransportError) or is_listing:
        return None
    if request.method == "HEAD":
        return None if was_unreachable(error) else 0.0
    return 0.0 if was_reset(error) else None


def client_has_retried(error: Exception) -> bool:
    """Returns whether an error is one that the client tries again by itself in an upload or a listing."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _CLIENT_RETRIES
    return isinstance(error, TransportError)


class Request(NamedTuple):
    """What was asked: "GET" and so on, and the address; both empty where that is not known."""

    method: str
    address: str


def failed_request(error: BaseException | None) -> Request:
    """Returns the request that ended in an error of the client."""
    with suppress(AttributeError, RuntimeError):  # the HTTP library's way of saying that there was no request
        asked: Any = error.response.request if isinstance(error, HfHubHTTPError) else getattr(error, "request", None)
        return Request(str(asked.method), str(asked.url))
    return Request("", "")


def _passing(error: HfHubHTTPError) -> float | None:
    passing = error.response.status_code in (408, 429) or error.response.status_code >= 500
    return wait_seconds(error.response.headers) if passing else None
