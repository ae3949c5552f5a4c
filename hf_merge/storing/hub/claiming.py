"""The repo that a push goes to: made if need be, as private as asked, and whose it is."""

from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from hf_merge.errors import HfMergeError, HubError, ResourceError
from hf_merge.storing.hub.access import AS_USUAL, Access, PatientApi, explained, write_wait
from hf_merge.storing.hub.heads import Head, find_head
from hf_merge.storing.hub.identity import full_name
from hf_merge.storing.hub.refusals import PUSH, explain
from hf_merge.storing.redaction import redact
from hf_merge.storing.strict_json import quote


CONFLICT = 412  # the answer to a commit whose parent is no longer the last one


def claim_repo(repo: str, *, private: bool | None, marker: str | None = None, access: Access = AS_USUAL) -> None:
    """Makes a repo unless it exists, and sees to it that it is as private as asked.

    Args:
        repo: The Hub id; without a namespace it is the user's own.
        private: Whether only some may see it; None leaves that to the account and to the repo as it is.
        marker: A file that a repo of this kind holds; one that holds others and not this is refused.
        access: How to reach the Hub.

    Raises:
        InputError: The repo cannot be called so.
        HubError: The Hub refuses it or cannot be reached, nobody is logged in, or the repo exists with the other
            visibility or holds something else; the message says what to do.
    """
    repo = full_name(repo, access)
    api = access.connect_to_write()
    with explained(lambda error: explain_push(error, repo, access), access.token):
        claim(api, repo, private, None, marker)


def claim(api: PatientApi, repo: str, private: bool | None, branch: str | None, marker: str | None) -> Head:
    """Returns what a branch of a repo holds, the repo made if need be; the client's errors are left as they are."""
    head = find_head(api, repo, branch)
    if head is None:
        api.insist(lambda: api.create_repo(repo, private=private, exist_ok=True), write_wait)
        head = find_head(api, repo, branch)
    if head is None:
        raise HubError(
            f"'{repo}' exists, but {redact(api.endpoint)} does not show it to this token. Give the token the right to "
            "read it; if it was made just now, push again in a minute."
        )
    check_fit(api, repo, private, marker, head)
    return head


def check_fit(api: PatientApi, repo: str, private: bool | None, marker: str | None, head: Head) -> None:
    """Raises HubError if a repo is public and was asked for as private, or the reverse, or holds something else."""
    foreign = head.foreign(marker) if marker is not None else None
    if foreign is not None:
        raise HubError(
            f"'{repo}' holds {quote(foreign)} and no {marker}, so it is something else; nothing was sent. Push to "
            "another name."
        )
    if private is None or private == head.private:
        return
    there, asked = ("private", "public") if head.private else ("public", "private")
    raise HubError(
        f"'{repo}' exists and is {there}, and {asked} was asked for; nothing was sent. Push to another name, or "
        f"change it first: {redact(api.endpoint)}/{repo}/settings"
    )


def explain_push(error: Exception, repo: str, access: Access) -> HfMergeError:
    """Returns our error for one of the client's that stopped a push."""
    if isinstance(error, RepositoryNotFoundError):
        return HubError(
            f"'{repo}' cannot be pushed: {redact(access.address)} shows no such repo to this token, or lets it make "
            "none. Check the name; log in with `hf auth login`, or set HF_TOKEN, with a token that may write there."
        )
    if isinstance(error, HfHubHTTPError) and error.response.status_code == CONFLICT:
        return HubError(f"Somebody else pushes to '{repo}' at the same time. Push again when they are done.")
    if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError | HfHubHTTPError):
        return ResourceError(f"'{repo}' cannot be pushed: {error.filename} cannot be read: {error.strerror}.")
    return explain(error, f"'{repo}'", access, PUSH)
