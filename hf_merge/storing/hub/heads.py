"""What a repo holds now, what it is to hold, and the difference: all that a push sends."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path

from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from hf_merge.storing import disk
from hf_merge.storing.hub.access import PatientApi
from hf_merge.storing.hub.refusals import check_commit


# What the Hub's page for a new repo may put into it.
_BARE_REPO = frozenset({"README.md", "LICENSE"})


@dataclass(frozen=True)
class Content:
    """One file as it is to be.

    Attributes:
        name: Its name in the repo.
        data: Its bytes, or the path of a local file that holds them.
    """

    name: str
    data: Path | bytes

    @cached_property
    def size(self) -> int:
        """How many bytes there are."""
        if isinstance(self.data, bytes):
            return len(self.data)
        with disk.naming(self.data):
            return self.data.stat().st_size

    @cached_property
    def sha256(self) -> str:
        """What the Hub calls a large file by, hexadecimal."""
        if isinstance(self.data, bytes):
            return hashlib.sha256(self.data).hexdigest()
        with disk.naming(self.data), self.data.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @cached_property
    def git_blob(self) -> str:
        """What git calls a small file by, hexadecimal."""
        digest = hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)
        if isinstance(self.data, bytes):
            digest.update(self.data)
        else:
            with disk.naming(self.data):
                digest.update(self.data.read_bytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Stored:
    """One file as the Hub has it.

    Attributes:
        size: How many bytes there are.
        digest: Its SHA-256 if it is stored as a large file, else the SHA-1 of its git blob.
        large: Which of the two.
    """

    size: int | None
    digest: str | None
    large: bool

    def equals(self, content: Content) -> bool:
        """Returns whether the Hub has these very bytes."""
        return self.size == content.size and self.digest == (content.sha256 if self.large else content.git_blob)


@dataclass(frozen=True)
class Head:
    """A repo at the last commit of a branch, asked in one request.

    Attributes:
        commit: The commit, 40 hexadecimal digits.
        private: Whether only some may see the repo.
        files: What the commit holds, by name.
        branch_is_there: Whether there is such a branch; else this is the default branch, from which it would be made.
    """

    commit: str
    private: bool
    files: Mapping[str, Stored]
    branch_is_there: bool

    def foreign(self, marker: str) -> str | None:
        """Returns a file that shows the repo to be something else's, None if `marker` is there or hardly anything."""
        if marker in self.files:
            return None
        return next((name for name in self.files if name not in _BARE_REPO and not name.startswith(".")), None)


@dataclass(frozen=True)
class Difference:
    """What a push has to change.

    Attributes:
        add: The files that the Hub lacks, or has with other bytes.
        delete: The names of files that were pushed earlier and are no longer wanted.
    """

    add: tuple[Content, ...]
    delete: tuple[str, ...]

    def __bool__(self) -> bool:
        """Returns whether there is any."""
        return bool(self.add or self.delete)


def find_head(api: PatientApi, repo: str, branch: str | None) -> Head | None:
    """Returns what a branch of a repo holds now, None where there is no such repo or the token may not see it.

    Args:
        api: The client.
        repo: The Hub id, with its namespace.
        branch: A branch or another ref, None for the default branch.

    Raises:
        HubError: The answer names no commit.
    """
    branch_is_there = True
    try:
        try:
            info = api.repo_info(repo, revision=branch, files_metadata=True)
        except RevisionNotFoundError:
            branch_is_there = False
            info = api.repo_info(repo, files_metadata=True)
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        return None
    commit = check_commit(info.sha, repo, api.endpoint)
    files = {file.rfilename: _stored(file) for file in info.siblings or ()}
    return Head(commit, bool(info.private), files, branch_is_there)


def difference(files: Mapping[str, Stored], wanted: Sequence[Content], owned: Sequence[str]) -> Difference:
    """Returns what is to be sent so that a repo holds what is wanted; files that are not ours stay.

    Args:
        files: What the repo holds.
        wanted: What it is to hold.
        owned: Patterns of the names that a push may delete, in the repo's own folder only.
    """
    add = tuple(content for content in wanted if not _has(files, content))
    kept = {content.name for content in wanted}
    stale = (name for name in files if name not in kept and "/" not in name)
    return Difference(add, tuple(name for name in stale if any(fnmatchcase(name, pattern) for pattern in owned)))


def _has(files: Mapping[str, Stored], content: Content) -> bool:
    stored = files.get(content.name)
    return stored is not None and stored.equals(content)


def _stored(file: object) -> Stored:
    large = getattr(file, "lfs", None)
    digest = large.sha256 if large is not None else getattr(file, "blob_id", None)
    return Stored(getattr(file, "size", None), digest, large is not None)
