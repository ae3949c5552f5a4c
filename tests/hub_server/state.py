"""What a Hub holds: users, repositories with their commits and files, and the faults that a test has ordered."""

import hashlib
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import yaml


Json = dict[str, Any]

LFS_PATTERNS = (
    *("*.safetensors", "*.bin", "*.pt", "*.pth", "*.npy", "*.npz", "*.parquet", "*.arrow", "*.gguf"),
    *("*.onnx", "*.h5", "*.zip", "*.tar.*", "*.pkl", "*.msgpack"),
)
LFS_BYTES = 10 * 1024 * 1024
GITATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS_PATTERNS).encode()
PREFIX_TO_TYPE = {"datasets": "dataset", "spaces": "space", "models": "model", "kernels": "kernel"}
_FRONT_MATTER = re.compile(r"---\r?\n(.*?)\r?\n---", re.DOTALL)


class Refused(Exception):
    """An error answer, with the headers from which the client picks its exception class."""

    def __init__(
        self, status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None, **body: Any
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.headers, self.body = headers or {}, body


@dataclass(frozen=True)
class User:
    name: str
    orgs: tuple[str, ...] = ()
    role: str = "write"

    @property
    def namespaces(self) -> tuple[str, ...]:
        return (self.name, *self.orgs)


@dataclass(frozen=True)
class Blob:
    """One file at one commit: git blob id, size, and either its bytes or the sha256 of a large file."""

    oid: str
    size: int
    data: bytes | None = None
    sha256: str | None = None

    @property
    def etag(self) -> str:
        return self.sha256 or self.oid

    def lfs(self, key: str) -> Json | None:
        """What listings say of a large file; they disagree on whether its digest is called `oid` or `sha256`."""
        if self.sha256 is None:
            return None
        return {key: self.sha256, "size": self.size, "pointerSize": len(lfs_pointer(self.sha256, self.size))}


@dataclass(frozen=True)
class Commit:
    oid: str
    tree: dict[str, Blob]
    title: str
    message: str
    author: str
    date: str
    parent: str | None


@dataclass
class Repo:
    id: str
    type: str
    private: bool
    gated: bool = False
    created: str = ""
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)  # refs/heads/main -> commit oid
    discussions: list[Json] = field(default_factory=list)
    allowed: set[str] = field(default_factory=set)  # users let through the gate

    @property
    def owner(self) -> str:
        return self.id.split("/")[0]

    def url(self, endpoint: str) -> str:
        return f"{endpoint}/{'' if self.type == 'model' else self.type + 's/'}{self.id}"

    def resolve(self, revision: str) -> Commit:
        for ref in (f"refs/heads/{revision}", f"refs/tags/{revision}", revision):
            if ref in self.refs:
                return self.commits[self.refs[ref]]
        matches = [commit for oid, commit in self.commits.items() if len(revision) >= 7 and oid.startswith(revision)]
        if len(matches) == 1:
            return matches[0]
        raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")


@dataclass
class Fault:
    """Spoils the next `times` requests whose method and path match, after it has let `skip` of them through.

    `drop` says when the connection breaks off: at the "request", which is not carried out; at the "answer", which gets
    lost although the request was carried out; or in mid-answer, at its "body". `call` is called at that moment.
    """

    method: str
    path: str
    times: int = 1
    skip: int = 0
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b'{"error": "injected fault"}'
    drop_after: int | None = None  # drop the connection after so many bytes of the body, either way
    drop: Literal["request", "answer", "body"] | None = None
    reset: bool = True  # by a TCP reset, else by an orderly close
    call: Callable[[], None] | None = None
    delay: float = 0.0


@dataclass
class Request:
    """One request as it was served; `status` is None while it runs, and a word where the connection broke."""

    method: str
    path: str
    authorized: bool
    range: str | None
    length: str | None
    chunked: bool
    content_type: str | None
    user_agent: str | None
    status: int | str | None = None


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def small_blob(data: bytes) -> Blob:
    return Blob(git_oid(data), len(data), data)


def large_blob(sha256: str, size: int) -> Blob:
    return Blob(git_oid(lfs_pointer(sha256, size)), size, sha256=sha256)


def front_matter(text: str) -> str | None:
    """The YAML between the first two `---` lines of a card, if there is any."""
    match = _FRONT_MATTER.match(text)
    return match[1] if match else None


def card_data(commit: Commit) -> Json:
    blob = commit.tree.get("README.md")
    header = front_matter(blob.data.decode()) if blob and blob.data is not None else None
    return (yaml.safe_load(header) or {}) if header else {}


def read_shard(data: bytes) -> Iterator[tuple[str, str]]:
    """Yields (sha256, xet hash) of each file that a Xet metadata shard describes.

    After a 48-byte header comes, per file, a 48-byte head (hash, flags, number of segments), the segments, and, as the
    flags say, one verification entry per segment and one metadata entry with the sha256; 48 bytes each.
    """

    def hexed(raw: bytes) -> str:
        return "".join(f"{word:016x}" for word in struct.unpack("<4Q", raw))

    position = 48
    while (file_hash := data[position : position + 32]) != b"\xff" * 32:
        flags, count = struct.unpack_from("<II", data, position + 32)
        position += 48 * (1 + count + (count if flags & 1 << 31 else 0))
        if flags & 1 << 30:
            yield hexed(data[position : position + 32]), hexed(file_hash)
            position += 48
