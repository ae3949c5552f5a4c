"""The server: its users, repositories and large files, and what a test calls on it."""

import contextlib
import hashlib
import json
import re
import secrets
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from http.server import ThreadingHTTPServer
from pathlib import Path
from time import monotonic, sleep
from types import TracebackType
from typing import Any, Self

from tests.hub_server import curation, repositories, transfers
from tests.hub_server.call import Call
from tests.hub_server.state import (
    GITATTRIBUTES,
    LFS_PATTERNS,
    Blob,
    Commit,
    Fault,
    Json,
    Refused,
    Repo,
    Request,
    User,
    large_blob,
    now,
    read_shard,
    small_blob,
)


ROUTES = (*repositories.ROUTES, *transfers.ROUTES, *curation.ROUTES)


class HubServer:
    """A Hub on a loopback port, for as long as the `with` block lasts.

    Args:
        port: The port, 0 for any free one.
        part_size: Large files are uploaded in parts of so many bytes (None: in one PUT).
        cdn_host: The host name that large files are redirected to; one other than the endpoint's shows that the client
            drops its token.
        xet: Hand hf_xet a `local://` storage address, so that its own upload and download code runs against a folder;
            if false, its token requests get a 404, and who uploads must set HF_HUB_DISABLE_XET=1.
        root: The folder for large files, None for a temporary one.
    """

    def __init__(
        self,
        port: int = 0,
        *,
        part_size: int | None = None,
        cdn_host: str = "localhost",
        xet: bool = False,
        root: str | Path | None = None,
    ) -> None:
        self.users: dict[str, User] = {}
        self.repos: dict[tuple[str, str], Repo] = {}
        self.collections: dict[str, Json] = {}
        self.faults: list[Fault] = []
        self.log: list[Request] = []
        self.lock = threading.RLock()
        self.part_size, self.cdn_host, self.xet = part_size, cdn_host, xet
        self.root = Path(root or tempfile.mkdtemp(prefix="hub-server-"))
        self._own_root, self.xet_cas = root is None, f"local://{self.root}/cas"
        self._xet_hashes: dict[str, str] = {}
        self.uploads: dict[tuple[str, int], str] = {}  # (sha256, part) -> etag
        self._http = _Server(("127.0.0.1", port), _handler(self))
        self.port = self._http.server_port
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._http.server_close()
        if self._own_root:
            shutil.rmtree(self.root, ignore_errors=True)

    def add_user(self, name: str, token: str, orgs: Iterable[str] = (), role: str = "write") -> None:
        self.users[token] = User(name, tuple(orgs), role)

    def fault(self, method: str, path: str, **kwargs: Any) -> None:
        """Orders a fault: see `Fault`; `path` is a pattern that is searched for."""
        with self.lock:
            self.faults.append(Fault(method, path, **kwargs))

    def repo(self, repo_id: str, repo_type: str = "model") -> Repo:
        return self.repos[repo_type, repo_id]

    def requests(self, pattern: str = "") -> list[Request]:
        return [request for request in self.log if re.search(pattern, f"{request.method} {request.path}")]

    def settle(self, seconds: float = 10.0) -> None:
        """Returns when no request is under way any more, whose client may be long dead."""
        deadline = monotonic() + seconds
        while any(request.status is None for request in self.log):
            if monotonic() > deadline:
                raise TimeoutError(f"still under way: {[request for request in self.log if request.status is None]}")
            sleep(0.002)

    def publish(
        self, repo_id: str, files: Mapping[str, bytes], *, repo_type: str = "model", private: bool = False
    ) -> str:
        """Commits exactly these files to `main` without a request, in a new repo where need be; returns the commit."""
        with self.lock:
            repo = self.repos.get((repo_type, repo_id)) or self.create(
                repo_id, repo_type, private, repo_id.split("/")[0]
            )
            tree = {path: self._blob(path, data) for path, data in files.items()}
            return self.commit(repo, "refs/heads/main", tree, "publish", "", repo.owner).oid

    def create(self, repo_id: str, repo_type: str, private: bool, author: str) -> Repo:
        repo = Repo(repo_id, repo_type, private, created=now())
        self.repos[repo_type, repo_id] = repo
        self.commit(
            repo, "refs/heads/main", {".gitattributes": small_blob(GITATTRIBUTES)}, "initial commit", "", author
        )
        return repo

    def commit(self, repo: Repo, ref: str, tree: dict[str, Blob], title: str, message: str, author: str) -> Commit:
        parent = repo.refs.get(ref)
        seed = json.dumps([parent, title, now(), secrets.token_hex(8), sorted((p, b.oid) for p, b in tree.items())])
        oid = hashlib.sha1(seed.encode()).hexdigest()
        repo.commits[oid] = Commit(oid, tree, title, message, author, now(), parent)
        repo.refs[ref] = oid
        return repo.commits[oid]

    def lfs_path(self, sha256: str) -> Path:
        return self.root / sha256[:2] / sha256

    def has_lfs(self, sha256: str) -> bool:
        return self.lfs_path(sha256).is_file()

    def xet_hash(self, sha256: str) -> str | None:
        """The Xet hash of a file that hf_xet put into the `local://` storage, read from the shards it left there."""
        if sha256 not in self._xet_hashes:
            for shard in self.root.glob("cas/xet/xorbs/shards/*.mdb"):
                self._xet_hashes.update(read_shard(shard.read_bytes()))
        return self._xet_hashes.get(sha256)

    def store_lfs(self, sha256: str, chunks: Iterable[bytes]) -> None:
        path = self.lfs_path(sha256)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{sha256}.{secrets.token_hex(4)}.tmp")
        digest = hashlib.sha256()
        try:
            with temporary.open("wb") as file:
                for chunk in chunks:
                    digest.update(chunk)
                    file.write(chunk)
            if digest.hexdigest() != sha256:
                raise Refused(422, f"sha256 mismatch: got {digest.hexdigest()}")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def read(self, blob: Blob) -> bytes:
        return blob.data if blob.data is not None else self.lfs_path(blob.etag).read_bytes()

    def _blob(self, path: str, data: bytes) -> Blob:
        if not data or not any(fnmatch(path.rsplit("/", 1)[-1], pattern) for pattern in LFS_PATTERNS):
            return small_blob(data)
        sha256 = hashlib.sha256(data).hexdigest()
        self.store_lfs(sha256, [data])
        return large_blob(sha256, len(data))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[Call]) -> None:
        super().__init__(address, handler)
        self._open: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        """Closes the connections that clients keep open too; else their threads would go on answering."""
        super().server_close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hung up is no news."""


def _handler(hub: HubServer) -> type[Call]:
    """The handler's class for one server: `http.server` makes its handlers itself, so this is how they know it."""
    return type("HubCall", (Call,), {"hub": hub, "routes": ROUTES})
