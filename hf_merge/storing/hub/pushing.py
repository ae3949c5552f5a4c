"""Files pushed to a repo in one commit: whoever looks sees the repo before the push or after it, never in between.

Every try begins by asking what the repo holds, and sends what is missing. So the same push again sends nothing, an
interrupted one goes on, and an answer that got lost on its way is found to have been a yes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from json import JSONDecodeError
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperation, CommitOperationAdd, CommitOperationDelete
from huggingface_hub.errors import HfHubHTTPError

from hf_merge.errors import HubError, InputError
from hf_merge.storing import disk
from hf_merge.storing.hub.access import (
    AS_USUAL,
    ERRORS,
    Access,
    PatientApi,
    client_has_retried,
    explained,
    failed_request,
    look_up_wait,
    write_wait,
)
from hf_merge.storing.hub.claiming import CONFLICT, check_fit, claim, explain_push
from hf_merge.storing.hub.heads import Content, Difference, Head, difference, find_head
from hf_merge.storing.hub.identity import full_name
from hf_merge.storing.hub.refusals import check_commit
from hf_merge.storing.redaction import redact
from hf_merge.storing.sources import check_revision
from hf_merge.storing.strict_json import quote


# The two requests of a commit that the client gives up at once.
_UNRETRIED = ("/commit/", "/api/validate-yaml")
_OPEN = ("open", "draft")


@dataclass(frozen=True)
class Pushed:
    """What a push did, or would do.

    Attributes:
        repo: The Hub id.
        revision: The commit that holds the files, 40 hexadecimal digits; empty in a dry run that would make one.
        url: Where to look at it.
        sent: The names of the files that were sent; empty where all was there.
        bytes_sent: How many bytes those hold.
        deleted: The names of the files that were deleted.
    """

    repo: str
    revision: str
    url: str
    sent: tuple[str, ...]
    bytes_sent: int
    deleted: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Order:
    """A push as the caller ordered it: the arguments of `push_files`, and the client that carries it out."""

    api: PatientApi
    repo: str
    wanted: tuple[Content, ...]
    message: str
    tag: str | None
    private: bool | None
    branch: str | None
    create_pr: bool
    owned: tuple[str, ...]
    marker: str | None

    def pushed(self, revision: str, change: Difference, url: str | None = None) -> Pushed:
        return Pushed(
            self.repo,
            revision,
            url or f"{redact(self.api.endpoint)}/{self.repo}" + (f"/tree/{self.branch}" if self.branch else ""),
            tuple(content.name for content in change.add),
            sum(content.size for content in change.add),
            change.delete,
        )


def push_files(
    repo: str,
    files: Mapping[str, Path | bytes],
    *,
    message: str,
    tag: str | None = None,
    private: bool | None = None,
    branch: str | None = None,
    create_pr: bool = False,
    owned: Sequence[str] = (),
    marker: str | None = None,
    dry_run: bool = False,
    access: Access = AS_USUAL,
) -> Pushed:
    """Makes a repo hold these files, in one commit, and returns which commit that is; what it holds is not sent again.

    Args:
        repo: The Hub id; without a namespace it is the user's own. The repo is made if need be.
        files: What to push, by name: bytes, or the path of a local file.
        message: The first line of the commit.
        tag: A tag to set on the commit, moved if it is elsewhere; not for a pull request.
        private: Whether only some may see the repo; None leaves that to the account and to the repo as it is.
        branch: The branch, made from the default one if need be; None is the default branch.
        create_pr: Open a pull request instead, unless an open one with this message holds the same.
        owned: Patterns of the names that are deleted where they are no longer among the files; others stay.
        marker: A file that a repo of this kind holds; one that holds others and not this is refused.
        dry_run: Ask what the repo holds, and send nothing.
        access: How to reach the Hub.

    Raises:
        InputError: The repo, the branch or the tag cannot be called so, or a pull request is to go to a branch.
        HubError: The Hub refuses it or cannot be reached, nobody is logged in, the repo exists with the other
            visibility, or somebody else pushes at the same time; the message says what to do.
        ResourceError: A local file cannot be read.
    """
    if create_pr and branch is not None:
        raise InputError(f"A pull request goes to the default branch, not to '{branch}'. Ask for one of the two.")
    repo = full_name(repo, access)
    for revision in (branch, tag):
        if revision is not None:
            check_revision(revision, repo)
    api = access.connect() if dry_run else access.connect_to_write()
    wanted = tuple(Content(name, data) for name, data in files.items())
    _require_readable(wanted)
    order = _Order(api, repo, wanted, message, tag, private, branch, create_pr, tuple(owned), marker)
    with explained(lambda error: explain_push(error, repo, access), access.token):
        if dry_run:
            return _compare(order)
        head = claim(api, repo, private, branch, marker)
        return _push(order, head)


def _require_readable(wanted: Sequence[Content]) -> None:
    """Raises ResourceError unless every local file is there: before a repo is made for them."""
    for content in wanted:
        if isinstance(content.data, Path):
            with disk.naming(content.data), content.data.open("rb"):
                pass


def _compare(order: _Order) -> Pushed:
    head = find_head(order.api, order.repo, order.branch)
    if head is None:
        return order.pushed("", Difference(order.wanted, ()))
    check_fit(order.api, order.repo, order.private, order.marker, head)
    change = difference(head.files, order.wanted, order.owned)
    return order.pushed("" if change or not head.branch_is_there else head.commit, change)


def _push(order: _Order, head: Head) -> Pushed:
    api, repo, branch, tag = order.api, order.repo, order.branch, order.tag
    if branch is not None and not head.branch_is_there:
        api.insist(lambda: api.create_branch(repo, branch=branch, revision=head.commit, exist_ok=True), write_wait)
    pushed = _Commit(order, head).make()
    if tag is not None and not order.create_pr:
        api.insist(lambda: _set_tag(api, repo, tag, pushed.revision), write_wait)
    return pushed


class _Commit:
    """One commit on its way, through as many tries as it takes."""

    def __init__(self, order: _Order, head: Head) -> None:
        self._order = order
        self._head: Head | None = head
        self._sent = Difference((), ())

    def make(self) -> Pushed:
        """Returns what holds the wanted files in the end: a commit made, or found."""
        insist = self._order.api.insist
        try:
            return insist(self._try, _commit_wait)
        except HfHubHTTPError as error:
            if error.response.status_code != CONFLICT:
                raise
        return insist(self._try, _commit_wait)

    def _try(self) -> Pushed:
        order, head = self._order, self._head or self._look()
        self._head = None  # good for one try: whatever fails below may have changed it
        change = difference(head.files, order.wanted, order.owned)
        if not change:
            return order.pushed(head.commit, self._sent)
        found = _open_request(order) if order.create_pr else None
        if found is not None:
            return order.pushed(found[0], self._sent, found[1])
        # If the answer gets lost, the next try finds all there, and this is what was sent.
        self._sent = change
        made = _send(order, change, head)
        return order.pushed(check_commit(made.oid, order.repo, order.api.endpoint), change, made.pr_url)

    def _look(self) -> Head:
        order = self._order
        head = find_head(order.api, order.repo, order.branch)
        if head is None or (order.branch is not None and not head.branch_is_there):
            raise HubError(f"'{order.repo}' was deleted while it was pushed to. Push again to make it anew.")
        return head


def _send(order: _Order, change: Difference, head: Head) -> CommitInfo:
    operations: list[CommitOperation] = [CommitOperationDelete(name, is_folder=False) for name in change.delete]
    operations += [
        CommitOperationAdd(content.name, content.data if isinstance(content.data, bytes) else str(content.data))
        for content in change.add
    ]
    try:
        return order.api.create_commit(
            order.repo,
            operations,
            commit_message=order.message,
            revision=order.branch,
            create_pr=order.create_pr,
            parent_commit=head.commit,
        )
    except RuntimeError as error:  # so the client wraps what befell a large file
        if isinstance(error.__cause__, ERRORS):
            raise error.__cause__ from None
        raise HubError(_refused(order, error)) from None
    except JSONDecodeError:
        raise _ErrorPage("a page where data were due") from None
    except ValueError as error:
        raise HubError(_refused(order, error)) from None


def _refused(order: _Order, error: Exception) -> str:
    words = quote(redact(str(error), order.api.token))
    return f"'{order.repo}' cannot be pushed: {words}. Correct that, or push again if it may pass."


class _ErrorPage(ConnectionError):
    """The check of a card answered with something that is no answer, as a server that is down does."""


def _set_tag(api: PatientApi, repo: str, tag: str, commit: str) -> None:
    tags = {ref.name: ref.target_commit for ref in api.list_repo_refs(repo).tags}
    if tags.get(tag) == commit:
        return
    if tag in tags:
        api.delete_tag(repo, tag=tag)
    api.create_tag(repo, tag=tag, revision=commit)


def _open_request(order: _Order) -> tuple[str, str] | None:
    """Returns commit and address of an open pull request that holds what is wanted, None where there is none."""
    api = order.api
    requests = api.insist(
        lambda: list(api.get_repo_discussions(order.repo, discussion_type="pull_request")), look_up_wait
    )
    for request in requests:
        if request.title == order.message and request.status in _OPEN:
            head = find_head(api, order.repo, request.git_reference)
            if head is not None and head.branch_is_there and not difference(head.files, order.wanted, order.owned):
                return head.commit, request.url
    return None


def _commit_wait(error: Exception) -> float | None:
    """Returns the wait before a commit is tried again, None where that is pointless or the client has tried enough."""
    if isinstance(error, _ErrorPage):
        return 0.0
    if client_has_retried(error) and not any(part in failed_request(error).address for part in _UNRETRIED):
        return None
    return write_wait(error)
