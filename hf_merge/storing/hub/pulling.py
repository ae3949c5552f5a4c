"""Repos pulled, each at one commit: its revision is resolved once, and every file comes from there.

Only names on an allow-list travel, so no pickle and no code ever reaches the disk. Files that have arrived are not
fetched again.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_cached_repo_tree
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)
from huggingface_hub.utils.tqdm import tqdm

from hf_merge.errors import HfMergeError, HubError, ResourceError
from hf_merge.storing import disk
from hf_merge.storing.hub.access import AS_USUAL, ERRORS, Access, PatientApi, download_wait, explained
from hf_merge.storing.hub.refusals import PULL, check_commit, explain
from hf_merge.storing.redaction import redact
from hf_merge.storing.repo_files import IGNORED, SETTINGS_FILES, WEIGHT_FILES, check_weights, matching
from hf_merge.storing.sources import check_hub_id, check_revision, local_folder
from hf_merge.storing.strict_json import quote


_BAR_AFTER_SECONDS = 2.0
_MISTAKEN = {
    "model": ("dataset", "is a data set, not a model. Data sets belong under `data` of a task."),
    "dataset": ("model", "is a model, not a data set. Models belong under `base` and `tasks`."),
}
_KINDS = {"model": "model", "dataset": "data set"}


class _LateBar(tqdm):
    """The client's own bar, for what takes long enough to be worth one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"delay": _BAR_AFTER_SECONDS, **kwargs})  # type: ignore[no-untyped-call]


class NotThere(HubError):
    """The Hub shows no such repo, or the repo has no such revision."""


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


class Repo:
    """A repo at one commit, whose files are pulled on demand; always on the Hub, never a local folder.

    Attributes:
        name: Its Hub id.
    """

    def __init__(
        self, name: str, revision: str | None = None, access: Access = AS_USUAL, *, repo_type: str = "model"
    ) -> None:
        """Names a repo; nothing is asked yet.

        Args:
            name: A Hub id: `name` or `org/name`.
            revision: A branch, a tag or a commit, None for the default branch.
            access: How to reach the Hub.
            repo_type: "model" or "dataset".

        Raises:
            InputError: The name is no Hub id, or git would not take the revision.
        """
        check_hub_id(name)
        if revision is not None:
            check_revision(revision, name)
        self.name = name
        self._asked, self._access, self._type = revision, access, repo_type

    @cached_property
    def revision(self) -> str:
        """The commit, 40 hexadecimal digits: looked up once.

        Raises:
            HubError: The Hub does not have it, refuses it or cannot be reached, or we are offline and the cache lacks
                it.
            InputError: The Hub's address is not safe.
        """
        with explained(lambda error: self._explain(error, ()), self._access.token):
            commit = self._api.resolve_revision(
                self.name,
                repo_type=self._type,
                revision=self._asked,
                cache_dir=self._access.cache_dir,
                local_files_only=self._access.offline,
            ).resolved
        return check_commit(commit, self.name, self._access.address)

    def pull(self, patterns: Sequence[str]) -> Path:
        """Returns the folder in which every file of the repo lies that matches; folders of the repo are left out.

        Args:
            patterns: File names, in which `*` stands for anything.

        Raises:
            HubError: The Hub does not have it, refuses it or cannot be reached, or we are offline and the cache lacks
                it.
            InputError: The Hub's address is not safe.
            ResourceError: The files cannot be written.
        """
        commit = self.revision
        with explained(lambda error: self._explain(error, patterns), self._access.token), _unmatched_unsaid():
            return Path(self._api.insist(lambda: self._download(commit, patterns), download_wait))

    def listing(self) -> list[str] | None:
        """Returns the paths of all the files of a repo once pulled, None where another program filled the cache."""
        try:
            tree = get_cached_repo_tree(
                self.name, repo_type=self._type, revision=self.revision, cache_dir=self._access.cache_dir
            )
        except CachedRepoTreeNotFoundError:
            return None
        return [file.path for file in tree]

    @cached_property
    def _api(self) -> PatientApi:
        return self._access.connect()

    def _download(self, commit: str, patterns: Sequence[str]) -> str:
        return self._api.snapshot_download(
            self.name,
            repo_type=self._type,
            revision=commit,
            cache_dir=self._access.cache_dir,
            local_files_only=self._access.offline,
            allow_patterns=list(patterns),
            ignore_patterns=list(IGNORED),
            tqdm_class=_LateBar,
        )

    def _explain(self, error: Exception, patterns: Sequence[str]) -> HfMergeError:
        beneath: BaseException = error
        if isinstance(error, RevisionResolutionError | LocalEntryNotFoundError):
            if self._access.offline:
                return HubError(self._not_cached(getattr(error, "snapshot_path", None), patterns))
            beneath = error.__cause__ or error
        if isinstance(beneath, RepositoryNotFoundError):
            return self._not_found(gated=isinstance(beneath, GatedRepoError))
        if isinstance(beneath, RevisionNotFoundError):
            return NotThere(f"'{self.name}' has no revision '{self._wanted}'. Give a branch, a tag or a commit of it.")
        if (
            isinstance(beneath, OSError)
            and beneath.errno
            and not isinstance(beneath, ConnectionError | HfHubHTTPError)
        ):
            remedy = "Make room, or keep the cache elsewhere: cache_dir or HF_HOME."
            return ResourceError(f"'{self.name}' cannot be written to the cache: {beneath.strerror}. {remedy}")
        return explain(beneath, f"'{self.name}'", self._access, PULL)

    @property
    def _wanted(self) -> str:
        return self._asked or constants.DEFAULT_REVISION

    def _not_found(self, gated: bool) -> HubError:
        address, kind = redact(self._access.address), _KINDS[self._type]
        if gated:
            page = f"{address}/{'datasets/' if self._type == 'dataset' else ''}{self.name}"
            return HubError(
                f"'{self.name}' is gated. Ask for access at {page}, then log in with `hf auth login` or set HF_TOKEN."
            )
        other, mistake = _MISTAKEN[self._type]
        with suppress(*ERRORS):
            if self._api.repo_exists(self.name, repo_type=other):
                return NotThere(f"'{self.name}' {mistake}")
        return NotThere(
            f"No {kind} '{self.name}' on {address}. Check the spelling, or the path if it is a folder; "
            "if it is private, log in with `hf auth login`, or set HF_TOKEN, with a token that may read it."
        )

    def _not_cached(self, snapshot: str | None, patterns: Sequence[str]) -> str:
        lacking, absent = "nothing", ""
        if snapshot is None and self._type == "model" and not Path(self.name).exists():
            absent = f"There is no folder {quote(self.name)} here. "
        if snapshot is not None:
            wanted = matching(self.listing() or [], patterns)
            missing = [quote(name) for name in wanted if not Path(snapshot, name).exists()]
            lacking = f"no {', '.join(missing)}"
        return (
            f"{absent}This run is offline, and the cache holds {lacking} of '{self.name}' at revision "
            f"'{self._wanted}'. Pull it once online: without HF_HUB_OFFLINE, and in Python without local_files_only."
        )


@contextmanager
def _unmatched_unsaid() -> Iterator[None]:
    """Keeps the client from saying that no file matched: whoever looks whether one is there gets its answer so."""

    def is_said(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("No files matched")

    logger = logging.getLogger("huggingface_hub._snapshot_download")
    logger.addFilter(is_said)
    try:
        yield
    finally:
        logger.removeFilter(is_said)


def pull_checkpoint(
    source: str | os.PathLike[str], revision: str | None = None, *, access: Access = AS_USUAL, weights: bool = True
) -> Resolved:
    """Returns the folder of a base, a fine-tuned checkpoint or an adapter: configuration, tokenizer and safetensors.

    Args:
        source: A local folder, which passes through as it is, or a Hub id: `name` or `org/name`.
        revision: A branch, a tag or a commit, None for the default branch; without meaning for a local folder.
        access: How to reach the Hub.
        weights: False leaves the weights on the Hub.

    Raises:
        InputError: The source is neither a folder nor a Hub id, or the Hub's address is not safe.
        PickleRefused: The repo's weights are pickles only.
        CheckpointDamaged: The repo holds no weights at all.
        HubError: The Hub does not have it, refuses it or cannot be reached, or we are offline and the cache lacks it.
        ResourceError: The files cannot be written.
    """
    name = os.fspath(source)
    folder = local_folder(name)
    if folder is not None:
        return Resolved(name, folder, None)
    repo = Repo(name, revision, access)
    pulled = repo.pull(SETTINGS_FILES + WEIGHT_FILES if weights else SETTINGS_FILES)
    listing = repo.listing()
    if listing is not None:
        check_weights(listing, f"'{name}' (revision {repo.revision})")
    return Resolved(name, pulled, repo.revision)


def pull_files(
    source: str | os.PathLike[str], patterns: Sequence[str], revision: str | None = None, *, access: Access = AS_USUAL
) -> Resolved:
    """Returns the folder that holds the files of a source that match; the caller has yet to verify them.

    Args:
        source: A local folder, which passes through as it is, or a Hub id: `name` or `org/name`.
        patterns: File names, in which `*` stands for anything.
        revision: A branch, a tag or a commit, None for the default branch; without meaning for a local folder.
        access: How to reach the Hub.

    Raises:
        InputError: The source is neither a folder nor a Hub id, or the Hub's address is not safe.
        HubError: The Hub does not have it, refuses it or cannot be reached, or we are offline and the cache lacks it.
        ResourceError: The files cannot be written.
    """
    name = os.fspath(source)
    folder = local_folder(name)
    if folder is not None:
        return Resolved(name, folder, None)
    repo = Repo(name, revision, access)
    return Resolved(name, repo.pull(patterns), repo.revision)


def read_file(name: str, path: str, revision: str | None = None, *, access: Access = AS_USUAL) -> bytes | None:
    """Returns what one file of a repo holds, None where the Hub shows no such repo, revision or file.

    Args:
        name: The Hub id of the repo.
        path: The file's name.
        revision: A branch, a tag or a commit, None for the default branch.
        access: How to reach the Hub.

    Raises:
        InputError: The name is no Hub id, git would not take the revision, or the Hub's address is not safe.
        HubError: The Hub refuses it or cannot be reached.
        ResourceError: The file cannot be written to the cache, or read from it.
    """
    try:
        file = Repo(name, revision, access).pull((path,)) / path
    except NotThere:
        return None
    with disk.naming(file):
        return file.read_bytes() if file.is_file() else None


def pin_dataset(path: str, revision: str | None = None, access: Access = AS_USUAL) -> str:
    """Returns the commit that a data set on the Hub is at, 40 hexadecimal digits.

    Args:
        path: Its Hub id: `name` or `org/name`.
        revision: A branch, a tag or a commit, None for the default branch.
        access: How to reach the Hub.

    Raises:
        InputError: The path is no Hub id, git would not take the revision, or the Hub's address is not safe.
        HubError: The Hub does not have it, refuses it or cannot be reached, or we are offline and the cache lacks it.
    """
    return Repo(path, revision, access, repo_type="dataset").revision
