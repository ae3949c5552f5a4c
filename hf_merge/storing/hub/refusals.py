"""What the client's errors mean, in one line each that says what to do."""

import re
from dataclasses import dataclass

from huggingface_hub.errors import HfHubHTTPError

from hf_merge.errors import HubError
from hf_merge.storing.hub.access import Access
from hf_merge.storing.redaction import redact
from hf_merge.storing.retrying import wait_seconds
from hf_merge.storing.strict_json import quote


_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Deed:
    """What was tried, in the words of messages.

    Attributes:
        failed: What did not come about: "cannot be pulled from".
        right: What the token has to be able to do with the repo.
        again: What to do when the Hub is out of reach.
    """

    failed: str
    right: str
    again: str


PULL = Deed(
    "cannot be pulled from", "read", "Check the network and HF_ENDPOINT; HF_HUB_OFFLINE=1 makes do with the cache."
)
PUSH = Deed("cannot be pushed to", "write to", "Check the network and HF_ENDPOINT, then push again: nothing is lost.")
LOGIN = Deed(
    "cannot be checked at", "ask for", "Check the network and HF_ENDPOINT; with its namespace a repo needs none."
)


def check_commit(commit: object, repo: str, address: str) -> str:
    """Returns the name of a commit, which goes into addresses, file names and `front.json`.

    Raises:
        HubError: It is not 40 hexadecimal digits.
    """
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise HubError(f"{redact(address)} calls {quote(commit)} a commit of '{repo}'. Is it a Hub?")
    return commit


def explain(error: BaseException, what: str, access: Access, deed: Deed) -> HubError:
    """Returns our error for one of the client's that is about no repo or revision in particular.

    Args:
        error: What the client raised.
        what: What it was about: "'org/name'".
        access: How the Hub was reached.
        deed: What was tried.
    """
    if isinstance(error, HfHubHTTPError):
        failed = deed.failed.rsplit(" ", 1)[0]
        return HubError(f"{what} {failed}: {_refusal(error, access.token, deed)}")
    reason = f"{type(error).__name__}: {quote(redact(str(error), access.token))}"
    return HubError(f"{what} {deed.failed} {redact(access.address)} ({reason}). {deed.again}")


def _refusal(error: HfHubHTTPError, token: str | bool | None, deed: Deed) -> str:
    """Returns what an error answer means and what to do about it."""
    status, words = error.response.status_code, quote(redact(error.server_message or str(error), token))
    if status == 401:
        return "the Hub does not know the token (401). Log in again with `hf auth login`, or correct HF_TOKEN."
    if status in (402, 413, 507) or (status == 403 and "storage" in words.lower()):
        return f"the Hub has no room for it ({status}: {words}). Delete what is not needed, or enlarge the plan."
    if status == 403:
        remedy = f"Give one that has it: `hf auth login` or HF_TOKEN. The Hub says: {words}"
        return f"the token lacks the right to {deed.right} it (403). {remedy}"
    if status == 429:
        return f"too many requests (429). Try again in {wait_seconds(error.response.headers) or 300:g} s."
    if status >= 500:
        return f"the Hub keeps answering {status}. Try again later; what has arrived is kept."
    return f"the Hub answered {status}: {words}."
