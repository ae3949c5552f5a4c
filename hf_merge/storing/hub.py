"""The only module that talks to the Hub: checkpoints and configurations pulled, each pinned to one commit.

A source is a local folder, which passes through, or a repo. A repo's revision is resolved once, to a commit, and every
file comes from that commit. Only names on an allow-list travel, so no pickle and no code ever reaches the disk.

The client retries much by itself, but gives up at once on a server error while it looks a repo up or fetches a file,
and on a TCP reset. Exactly those are tried again here, and finished files are not fetched twice: retrying what the
client has already retried would multiply the requests.
"""

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, get_cached_repo_tree, is_offline_mode
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)

from hf_merge.errors import HfMergeError, HubError, ResourceError
from hf_merge.storing.redaction import redact, redacted_log
from hf_merge.storing.repo_files import IGNORED, MEMBER_FILES, SETTINGS_FILES, WEIGHT_FILES, check_weights, matching
from hf_merge.storing.retrying import insist, wait_seconds, was_reset, was_unreachable
from hf_merge.storing.sources import check_revision, is_encrypted, local_folder
from hf_merge.storing.strict_json import quote


_COMMIT = re.compile(r"[0-9a-f]{40}")

# The client's HTTP library changes with its major version; that library's base error is a base of the client's own.
_TransportError: type[Exception] = HfHubHTTPError.__mro__[1]
_ERRORS = (OSError, RevisionResolutionError, _TransportError)


@dataclass(frozen=True)
class Resolved:
    """Where a source's files lie.

    Attributes:
        source: What the caller named: a Hub id or a path.
        folder: The folder that holds the files.
        revision: The commit they come from, 40 hexadecimal digits; None for a local folder.
    """

    source: str
    folder: Path
    revision: str | None


def pull_checkpoint(
    source: str | os.PathLike[str],
    revision: str | None = None,
    *,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    weights: bool = True,
    endpoint: str | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Resolved:
    """Returns the folder of a base, a fine-tuned checkpoint or an adapter: configuration, tokenizer and safetensors.

    Args:
        source: A local folder, which passes through as it is, or a Hub id: `name` or `org/name`.
        revision: A branch, a tag or a commit, None for the default branch; without meaning for a local folder.
        token: A token to use, False for none; None takes what huggingface_hub finds.
        cache_dir: Where to keep the files instead of huggingface_hub's cache.
        local_files_only: Take everything from the cache; HF_HUB_OFFLINE=1 does the same.
        weights: False leaves the weights on the Hub.
        endpoint: The Hub's address, None for huggingface_hub's own (HF_ENDPOINT).
        sleep: Waits so many seconds between two tries.

    Raises:
        InputError: The source is neither a folder nor a Hub id, or the Hub's address is not safe.
        PickleRefused: The repo's weights are pickles only.
        CheckpointDamaged: The repo holds no weights at all.
        HubError: The Hub does not have it, refuses it or cannot be reached, or we are offline and the cache lacks it.
        ResourceError: The files cannot be written.
    """
    repo = _Source(os.fspath(source), revision, token, cache_dir, local_files_only, endpoint, sleep)
    pulled = repo.pull(SETTINGS_FILES + WEIGHT_FILES if weights else SETTINGS_FILES)
    listing = repo.listing(pulled.revision) if pulled.revision is not None else None
    if listing is not None:
        check_weights(listing, f"'{pulled.source}' (revision {pulled.revision})")
    return pulled


def pull_member(
    source: str | os.PathLike[str],
    revision: str | None = None,
    *,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    endpoint: str | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Resolved:
    """Returns the folder of a configuration or a front that hf-merge published; the caller has yet to verify it.

    Arguments and errors are those of `pull_checkpoint`, but for what concerns a checkpoint's weights.
    """
    repo = _Source(os.fspath(source), revision, token, cache_dir, local_files_only, endpoint, sleep)
    return repo.pull(MEMBER_FILES)


class _PatientApi(HfApi):
    """The client, with look-ups that outlast a server error and never wait for ever."""

    def __init__(self, address: str, token: str | bool | None, sleep: Callable[[float], None]) -> None:
        super().__init__(endpoint=address, token=token, library_name="hf-merge")
        self._sleep = sleep

    def repo_info(self, *args: Any, **kwargs: Any) -> Any:
        # `resolve_revision` asks here, and takes the commit from its cache as soon as this fails.
        kwargs.setdefault("timeout", constants.HF_HUB_ETAG_TIMEOUT)
        ask = super().repo_info
        return insist(lambda: ask(*args, **kwargs), errors=_ERRORS, asked_wait=_look_up_wait, sleep=self._sleep)


@dataclass(frozen=True)
class _Source:
    """A source as one pull sees it: the arguments of `pull_checkpoint`, and the talk with the Hub."""

    name: str
    revision: str | None
    token: str | bool | None
    cache_dir: str | Path | None
    local_files_only: bool
    endpoint: str | None
    sleep: Callable[[float], None]

    @property
    def offline(self) -> bool:
        return self.local_files_only or is_offline_mode()

    @property
    def address(self) -> str:
        return (self.endpoint or constants.ENDPOINT).rstrip("/")

    @cached_property
    def api(self) -> HfApi:
        token, trusted = self.token, self.offline or is_encrypted(self.address)
        if token is None and not trusted:
            # The stored token was given for the real Hub, not for whatever listens on this machine.
            token = os.environ.get("HF_TOKEN") or False
        return _PatientApi(self.address, token, self.sleep)

    def pull(self, patterns: Sequence[str]) -> Resolved:
        """Returns the local folder, or the repo's files that match, all of them from one commit."""
        folder = local_folder(self.name)
        if folder is not None:
            return Resolved(self.name, folder, None)
        if self.revision is not None:
            check_revision(self.revision, self.name)
        with self._explained(patterns):
            commit = self._resolve()
            snapshot = insist(
                lambda: self._download(commit, patterns), errors=_ERRORS, asked_wait=_download_wait, sleep=self.sleep
            )
        return Resolved(self.name, Path(snapshot), commit)

    def _resolve(self) -> str:
        commit = self.api.resolve_revision(
            self.name, revision=self.revision, cache_dir=self.cache_dir, local_files_only=self.offline
        ).resolved
        if not _COMMIT.fullmatch(commit):
            raise HubError(f"{redact(self.address)} calls {quote(commit)} a commit of '{self.name}'. Is it a Hub?")
        return commit

    def _download(self, commit: str, patterns: Sequence[str]) -> str:
        return self.api.snapshot_download(
            self.name,
            revision=commit,
            cache_dir=self.cache_dir,
            local_files_only=self.offline,
            allow_patterns=list(patterns),
            ignore_patterns=list(IGNORED),
        )

    def listing(self, revision: str) -> list[str] | None:
        """Returns the paths of all the repo's files, None where another program filled the cache and kept no list."""
        try:
            tree = get_cached_repo_tree(self.name, revision=revision, cache_dir=self.cache_dir)
        except CachedRepoTreeNotFoundError:
            return None
        return [file.path for file in tree]

    @contextmanager
    def _explained(self, patterns: Sequence[str]) -> Iterator[None]:
        """Turns the client's errors into ours; theirs are left out of the trace, for they quote signed URLs."""
        with redacted_log("huggingface_hub", self.token):
            try:
                yield
            except _ERRORS as error:
                raise self._explain(error, patterns) from None

    def _explain(self, error: Exception, patterns: Sequence[str]) -> HfMergeError:
        beneath: BaseException = error
        if isinstance(error, RevisionResolutionError | LocalEntryNotFoundError):
            if self.offline:
                return HubError(self._not_cached(getattr(error, "snapshot_path", None), patterns))
            beneath = error.__cause__ or error
        if isinstance(beneath, RepositoryNotFoundError):
            return HubError(self._not_found(gated=isinstance(beneath, GatedRepoError)))
        if isinstance(beneath, RevisionNotFoundError):
            revision = self.revision or constants.DEFAULT_REVISION
            return HubError(f"'{self.name}' has no revision '{revision}'. Give a branch, a tag or a commit of it.")
        if isinstance(beneath, HfHubHTTPError):
            return HubError(f"'{self.name}' cannot be pulled: {_refusal(beneath, self.token)}")
        if isinstance(beneath, OSError) and beneath.errno and not isinstance(beneath, ConnectionError):
            remedy = "Make room, or keep the cache elsewhere: cache_dir or HF_HOME."
            return ResourceError(f"'{self.name}' cannot be written to the cache: {beneath.strerror}. {remedy}")
        reason = f"{type(beneath).__name__}: {quote(redact(str(beneath), self.token))}"
        return HubError(
            f"'{self.name}' cannot be pulled from {redact(self.address)} ({reason}). "
            "Check the network and HF_ENDPOINT; HF_HUB_OFFLINE=1 makes do with what is in the cache."
        )

    def _not_found(self, gated: bool) -> str:
        if gated:
            page = f"{redact(self.address)}/{self.name}"
            return (
                f"'{self.name}' is gated. Ask for access at {page}, then log in with `hf auth login` or set HF_TOKEN."
            )
        with suppress(*_ERRORS):
            if self.api.repo_exists(self.name, repo_type="dataset"):
                return f"'{self.name}' is a data set, not a model. Data sets belong under `data` of a task."
        return (
            f"No model '{self.name}' on {redact(self.address)}, and no folder of that name. Check the spelling; "
            "if it is private, log in with `hf auth login`, or set HF_TOKEN, with a token that may read it."
        )

    def _not_cached(self, snapshot: str | None, patterns: Sequence[str]) -> str:
        lacking = "nothing"
        if snapshot is not None:
            wanted = matching(self.listing(Path(snapshot).name) or [], patterns)
            missing = [quote(name) for name in wanted if not Path(snapshot, name).exists()]
            lacking = f"no {', '.join(missing)}"
        revision = self.revision or constants.DEFAULT_REVISION
        return (
            f"This run is offline, and the cache holds {lacking} of '{self.name}' at revision '{revision}'. "
            "Pull it once online: without local_files_only and without HF_HUB_OFFLINE."
        )


def _look_up_wait(error: Exception) -> float | None:
    """Returns the wait before a look-up is repeated, None where it is pointless: no right, nobody there, no answer."""
    if isinstance(error, HfHubHTTPError):
        passing = error.response.status_code in (408, 429) or error.response.status_code >= 500
        return wait_seconds(error.response.headers) if passing else None
    return 0.0 if isinstance(error, _TransportError) and not was_unreachable(error) else None


def _download_wait(error: Exception) -> float | None:
    """Returns the wait before a download is repeated, None where it is pointless or the client has done it already."""
    if isinstance(error, HfHubHTTPError):
        return wait_seconds(error.response.headers) if error.response.status_code >= 500 else None
    return 0.0 if isinstance(error, _TransportError) and was_reset(error) else None


def _refusal(error: HfHubHTTPError, token: str | bool | None) -> str:
    """Returns what an error answer means and what to do about it."""
    status = error.response.status_code
    if status == 401:
        return "the Hub does not know the token (401). Log in again with `hf auth login`, or correct HF_TOKEN."
    if status == 403:
        return "the token lacks the right to read it (403). Give one that has it: `hf auth login` or HF_TOKEN."
    if status == 429:
        return f"too many requests (429). Try again in {wait_seconds(error.response.headers) or 300:g} s."
    if status >= 500:
        return f"the Hub keeps answering {status}. Try again later; the files that have arrived are kept."
    return f"the Hub answered {status}: {quote(redact(error.server_message or str(error), token))}."
