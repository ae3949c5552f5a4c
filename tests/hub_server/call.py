"""One request on its way through: authentication, faults, routing, bodies, answers."""

import json
import re
import secrets
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler
from time import sleep  # bound here, for tests replace it in `time` so that the client does not wait
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub_server.state import PREFIX_TO_TYPE, Fault, Json, Refused, Repo, Request, User


if TYPE_CHECKING:
    from tests.hub_server.server import HubServer


API = r"/api/(?P<kind>models|datasets|spaces|kernels)/(?P<repo_id>[^/]+/[^/]+)"
PLAIN = r"/(?:(?P<kind>datasets|spaces|kernels)/)?(?P<repo_id>[^/]+/[^/]+)"
_CHUNK_BYTES = 1 << 16

Headers = Mapping[str, object]


class Route(NamedTuple):
    """A method and a pattern of paths; the pattern's named groups are what `answer` is called with."""

    method: str
    pattern: re.Pattern[str]
    answer: "Callable[..., None]"


def route(routes: list[Route], method: str, pattern: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator that adds a function to `routes`."""

    def register(answer: Callable[..., None]) -> Callable[..., None]:
        routes.append(Route(method, re.compile(pattern + r"\Z"), answer))
        return answer

    return register


class Call(BaseHTTPRequestHandler):
    """The request being served; the functions in the route tables get it as their first argument."""

    protocol_version = "HTTP/1.1"
    server_version = "hub-server"
    disable_nagle_algorithm = True  # else an answer's body waits 40 ms for the client to acknowledge its headers
    hub: "ClassVar[HubServer]"
    routes: ClassVar[tuple[Route, ...]]

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is printed: `hub.log` holds what was served."""

    def handle_one(self) -> None:
        url = urlsplit(self.path)
        self.raw_path, self.query = url.path, parse_qs(url.query)
        self.left = int(self.headers.get("Content-Length") or 0)
        self.chunked = "chunked" in self.headers.get("Transfer-Encoding", "").lower()
        self.consumed = not (self.left or self.chunked)
        self.fault: Fault | None = None
        self.user: User | None = None
        self.entry = self._log_entry()
        self.hub.log.append(self.entry)
        try:
            self._serve()
        except Refused as refused:
            headers = {"X-Error-Message": refused.message, **refused.headers}
            if refused.code:
                headers["X-Error-Code"] = refused.code
            self.answer_json({"error": refused.message, **refused.body}, refused.status, headers)
        except (BrokenPipeError, ConnectionResetError):
            self.entry.status = self.entry.status or "hung up"
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = handle_one  # noqa: N815 (http.server looks them up by these names)

    def _log_entry(self) -> Request:
        return Request(
            method=self.command,
            path=self.path,
            authorized="Authorization" in self.headers,
            range=self.headers.get("Range"),
            length=self.headers.get("Content-Length"),
            chunked=self.chunked,
            content_type=self.headers.get("Content-Type"),
            user_agent=self.headers.get("User-Agent"),
        )

    def _serve(self) -> None:
        self.fault = self._take_fault()
        if self.fault:
            sleep(self.fault.delay)
            if self.fault.drop == "request":
                self._break_off()
            if self.fault.status:
                return self.answer(self.fault.status, self.fault.body, self.fault.headers)
        self.user = self._authenticate()
        for method, pattern, answer in self.routes:
            match = pattern.match(self.raw_path)
            if match and (method == self.command or (method, self.command) == ("GET", "HEAD")):
                groups = match.groupdict()
                return answer(self, **{name: unquote(text) if text else text for name, text in groups.items()})
        raise Refused(404, "Sorry, we can't find the page you are looking for.")

    def _take_fault(self) -> Fault | None:
        with self.hub.lock:
            for fault in self.hub.faults:
                if fault.times and fault.method in ("*", self.command) and re.search(fault.path, self.path):
                    if fault.skip:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    return fault
        return None

    def _authenticate(self) -> User | None:
        header = self.headers.get("Authorization", "")
        if not header:
            return None
        token = header.removeprefix("Bearer ")
        if token not in self.hub.users:
            raise Refused(401, "Invalid credentials in Authorization header")
        return self.hub.users[token]

    def body(self) -> Iterator[bytes]:
        """The request's body, chunk by chunk; drops the connection on the way where a fault says so."""
        seen, limit = 0, self.fault.drop_after if self.fault and self.command in ("PUT", "POST") else None
        for chunk in self._chunks():
            seen += len(chunk)
            if limit is not None and seen > limit:
                self._drop()
            yield chunk
        self.consumed = True

    def _chunks(self) -> Iterator[bytes]:
        if self.chunked:
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return
        while self.left:
            chunk = self.rfile.read(min(self.left, _CHUNK_BYTES))
            if not chunk:
                raise ConnectionResetError("client hung up in mid-body")
            self.left -= len(chunk)
            yield chunk

    def _break_off(self) -> None:
        if self.fault is not None and self.fault.call is not None:
            self.fault.call()
        self._drop()

    def _drop(self) -> None:
        self.entry.status = "dropped"
        if self.fault is None or self.fault.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        else:
            self.connection.shutdown(socket.SHUT_RDWR)
        raise ConnectionResetError("injected")

    def json(self) -> Json:
        payload: Json = json.loads(b"".join(self.body()) or b"{}")
        return payload

    def answer_json(self, value: object, status: int = 200, headers: Headers | None = None) -> None:
        json_headers = {"Content-Type": "application/json; charset=utf-8", **(headers or {})}
        self.answer(status, json.dumps(value).encode(), json_headers)

    def answer(self, status: int, data: bytes = b"", headers: Headers | None = None, size: int | None = None) -> None:
        self._drain()
        drop = self.fault.drop if self.fault else None
        if drop == "answer":
            self._break_off()
        self.entry.status = status
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, str(value))
        self.send_header("Content-Length", str(len(data) if size is None else size))
        self.send_header("X-Request-Id", secrets.token_hex(8))
        self.end_headers()
        if self.command == "HEAD":
            data = b""
        self.wfile.write(data[: len(data) // 2] if drop == "body" else data)
        if drop == "body":
            self.wfile.flush()
            self._break_off()

    def _drain(self) -> None:
        """Reads what is left of the body, or the next request on this connection is garbled."""
        if self.consumed:
            return
        try:
            for _ in self.body():
                pass
        except (ValueError, ConnectionResetError):
            self.close_connection = True

    def answer_bytes(self, open_file: Callable[[], BinaryIO], size: int, headers: Headers) -> None:
        """A file, whole or by range; `drop_after` cuts it short."""
        start, end, status = 0, size, 200
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end, status = int(match[1]), int(match[2]) + 1 if match[2] else size, 206
            if start >= size:
                return self.answer(416, b"", {"Content-Range": f"bytes */{size}"})
            headers = {**headers, "Content-Range": f"bytes {start}-{end - 1}/{size}"}
        headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
        if self.fault and self.fault.drop == "answer":
            self._break_off()
        if self.command == "HEAD":
            return self.answer(200, b"", headers, size=size)
        with open_file() as file:
            file.seek(start)
            self.entry.status = status
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, str(value))
            self.send_header("Content-Length", str(end - start))
            self.end_headers()
            self._send(file, end - start)

    def _send(self, file: BinaryIO, count: int) -> None:
        limit, sent = self.fault.drop_after if self.fault else None, 0
        if self.fault and self.fault.drop == "body":
            limit = count // 2
        while sent < count:
            chunk = file.read(min(_CHUNK_BYTES, count - sent))
            if limit is not None and sent + len(chunk) > limit:
                self.wfile.write(chunk[: limit - sent])
                self.wfile.flush()
                self._break_off()
            self.wfile.write(chunk)
            sent += len(chunk)

    def flag(self, name: str, default: str) -> str:
        """The first value of a query parameter."""
        return self.query.get(name, [default])[0]

    def signed_in(self) -> User:
        if self.user is None:
            raise Refused(401, "Invalid username or password.")
        return self.user

    def may_write(self, namespace: str) -> None:
        user = self.signed_in()
        if user.role != "write" or namespace not in user.namespaces:
            raise Refused(403, "Forbidden: you must use a write token to upload to a repository.")

    def find(self, kind: str | None, repo_id: str, *, write: bool = False, content: bool = False) -> Repo:
        repo = self.hub.repos.get((PREFIX_TO_TYPE[kind or "models"], repo_id))
        mine = self.user is not None and repo_id.split("/")[0] in self.user.namespaces
        if repo is None or (repo.private and not mine):
            # The Hub does not tell whether a repo it will not show exists: 401 to strangers, 404 to known users.
            raise Refused(404 if self.user else 401, "Repository not found", "RepoNotFound")
        if content and repo.gated and not mine and (self.user is None or self.user.name not in repo.allowed):
            message = f"Access to {repo.type} {repo_id} is restricted and you are not in the authorized list. "
            raise Refused(403 if self.user else 401, message + "Visit the repo's page to ask for access.", "GatedRepo")
        if write:
            self.may_write(repo_id.split("/")[0])
        return repo
