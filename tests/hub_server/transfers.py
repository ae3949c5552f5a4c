"""Files on their way: downloads, uploads of large files, and the commits that make them visible."""

import base64
import hashlib
import io
import json
import time
from fnmatch import fnmatch
from math import ceil
from urllib.parse import quote

from tests.hub_server.call import API, PLAIN, Call, Route, route
from tests.hub_server.curation import open_discussion
from tests.hub_server.state import LFS_BYTES, LFS_PATTERNS, Blob, Json, Refused, large_blob, small_blob


ROUTES: list[Route] = []


@route(ROUTES, "GET", PLAIN + r"/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
def resolve(call: Call, kind: str | None, repo_id: str, revision: str, path: str) -> None:
    repo = call.find(kind, repo_id, content=True)
    commit = repo.resolve(revision)
    headers: dict[str, str] = {"X-Repo-Commit": commit.oid}
    if path not in commit.tree:
        raise Refused(404, "Entry not found", "EntryNotFound", headers)
    blob = commit.tree[path]
    if blob.sha256 is None:
        # The Hub answers 307 to a relative address of its own, which the client follows.
        target = f"/api/resolve-cache/{repo.type}s/{repo.id}/{commit.oid}/{quote(path)}"
        return call.answer(307, b"", headers | {"ETag": f'"{blob.etag}"', "Location": target})
    headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size), "ETag": f'"{blob.etag}"'}
    if xet_hash := call.hub.xet_hash(blob.sha256):
        refresh = f"{call.hub.endpoint}/api/{repo.type}s/{repo.id}/xet-read-token/{commit.oid}"
        headers |= {"X-Xet-Hash": xet_hash, "Link": f'<{refresh}>; rel="xet-auth"'}
    call.answer(302, b"", headers | {"Location": cdn_url(call, "get", blob.sha256)})


@route(ROUTES, "GET", r"/api/resolve-cache/(?P<kind>\w+)/(?P<repo_id>[^/]+/[^/]+)/(?P<revision>[^/]+)/(?P<path>.+)")
def resolve_cache(call: Call, kind: str, repo_id: str, revision: str, path: str) -> None:
    commit = call.find(kind, repo_id, content=True).resolve(revision)
    blob = commit.tree[path]
    headers = {"ETag": f'"{blob.etag}"', "X-Repo-Commit": commit.oid}
    call.answer_bytes(lambda: io.BytesIO(blob.data or b""), blob.size, headers)


def _signature(verb: str, name: str) -> str:
    return hashlib.sha256(f"{verb}{name}".encode()).hexdigest()[:16]


def cdn_url(call: Call, verb: str, sha256: str, part: int | None = None) -> str:
    """An address signed for one verb and one object, so that it needs no token, like the storage behind the Hub."""
    name = f"{sha256}/{part}" if part else sha256
    return f"http://{call.hub.cdn_host}:{call.hub.port}/cdn/{name}?sig={_signature(verb, name)}"


def check_signature(call: Call, verb: str, name: str) -> None:
    if call.query.get("sig") != [_signature(verb, name)]:
        raise Refused(403, "SignatureDoesNotMatch")


@route(ROUTES, "GET", r"/cdn/(?P<sha256>[0-9a-f]{64})")
def cdn_get(call: Call, sha256: str) -> None:
    check_signature(call, "get", sha256)
    path = call.hub.lfs_path(sha256)
    call.answer_bytes(lambda: path.open("rb"), path.stat().st_size, {"ETag": f'"{sha256}"'})


@route(ROUTES, "POST", API + r"/preupload/(?P<revision>[^/]+)")
def preupload(call: Call, kind: str, repo_id: str, revision: str) -> None:
    repo = call.find(kind, repo_id, write="create_pr" not in call.query)
    payload, commit, answer = call.json(), repo.resolve(revision), []
    ignored = [line.strip() for line in (payload.get("gitIgnore") or "").splitlines() if line.strip()]
    for file in payload["files"]:
        name = file["path"].rsplit("/", 1)[-1]
        large = file["size"] > LFS_BYTES or any(fnmatch(name, pattern) for pattern in LFS_PATTERNS)
        large = large or b"\0" in base64.b64decode(file.get("sample", ""))
        mode = "lfs" if large and file["size"] else "regular"
        skip = any(fnmatch(file["path"], pattern) for pattern in ignored)
        answer.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": skip})
        if file["path"] in commit.tree:
            answer[-1]["oid"] = commit.tree[file["path"]].etag
    call.answer_json({"files": answer, "commitOid": commit.oid})


def upload_target(call: Call, oid: str, size: int, multipart: bool) -> Json:
    """Where a large file goes: one address, or one per part and another to put them together."""
    part_size = call.hub.part_size
    if not (part_size and size > part_size and multipart):
        return {"href": cdn_url(call, "put", oid), "header": {}}
    parts = {f"{part:05d}": cdn_url(call, "put", oid, part) for part in range(1, ceil(size / part_size) + 1)}
    href = f"{call.hub.endpoint}/api/lfs-complete/{oid}"
    return {"href": href, "header": {"chunk_size": str(part_size), **parts}}


@route(ROUTES, "POST", PLAIN + r"\.git/info/lfs/objects/batch")
def lfs_batch(call: Call, kind: str | None, repo_id: str) -> None:
    payload, objects = call.json(), []
    call.find(kind, repo_id, write="ref" in payload)  # a pull request names no ref, and is open to everyone
    for item in payload["objects"]:
        oid, size = item["oid"], item["size"]
        described: Json = {"oid": oid, "size": size, "authenticated": True}
        if not call.hub.has_lfs(oid):  # no "actions": the client sends nothing
            upload = upload_target(call, oid, size, "multipart" in payload["transfers"])
            verify = {"href": f"{call.hub.endpoint}/api/lfs-verify/{oid}", "header": {}}
            described["actions"] = {"upload": upload, "verify": verify}
        objects.append(described)
    headers = {"Content-Type": "application/vnd.git-lfs+json"}
    call.answer_json({"transfer": "basic", "objects": objects}, headers=headers)


@route(ROUTES, "PUT", r"/cdn/(?P<sha256>[0-9a-f]{64})(?:/(?P<part>\d+))?")
def cdn_put(call: Call, sha256: str, part: str | None) -> None:
    check_signature(call, "put", f"{sha256}/{part}" if part else sha256)
    if part is None:
        call.hub.store_lfs(sha256, call.body())
        return call.answer(200, b"", {"ETag": f'"{sha256}"'})
    path = call.hub.root / "parts" / f"{sha256}.{int(part)}"
    path.parent.mkdir(exist_ok=True)
    data = b"".join(call.body())
    path.write_bytes(data)
    etag = f'"{hashlib.md5(data).hexdigest()}"'
    call.hub.uploads[sha256, int(part)] = etag
    call.answer(200, b"", {"ETag": etag})


@route(ROUTES, "POST", r"/api/lfs-complete/(?P<sha256>[0-9a-f]{64})")
def lfs_complete(call: Call, sha256: str) -> None:
    parts = sorted(call.json()["parts"], key=lambda part: int(part["partNumber"]))
    for part in parts:
        if call.hub.uploads.get((sha256, part["partNumber"])) != part["etag"]:
            raise Refused(400, f"Part {part['partNumber']} is missing or differs")
    paths = [call.hub.root / "parts" / f"{sha256}.{part['partNumber']}" for part in parts]
    call.hub.store_lfs(sha256, (path.read_bytes() for path in paths))
    for path in paths:
        path.unlink()
    call.answer_json({"success": True})


@route(ROUTES, "POST", r"/api/lfs-verify/(?P<sha256>[0-9a-f]{64})")
def lfs_verify(call: Call, sha256: str) -> None:
    payload = call.json()
    if not call.hub.has_lfs(sha256) or call.hub.lfs_path(sha256).stat().st_size != payload["size"]:
        raise Refused(404, "Object not found in storage")
    call.answer_json({})


@route(ROUTES, "GET", API + r"/xet-(?P<verb>read|write)-token/(?P<revision>.+)")
def xet_token(call: Call, kind: str, repo_id: str, verb: str, revision: str) -> None:
    call.find(kind, repo_id, write=verb == "write")
    if not call.hub.xet:
        raise Refused(404, "Xet is not enabled on this server: set HF_HUB_DISABLE_XET=1")
    address, expires = call.hub.xet_cas, int(time.time()) + 3600
    headers = {
        "X-Xet-Cas-Url": address,
        "X-Xet-Access-Token": "xet-token",
        "X-Xet-Token-Expiration": str(expires),
    }
    call.answer_json({"accessToken": "xet-token", "exp": expires, "casUrl": address}, headers=headers)


def apply(call: Call, tree: dict[str, Blob], key: str, value: Json) -> dict[str, Blob]:
    """The tree after one operation of a commit."""
    path = value["path"]
    if key == "file":
        return tree | {path: small_blob(base64.b64decode(value["content"]))}
    if key == "lfsFile":
        oid = value["oid"]
        if not call.hub.has_lfs(oid) and not call.hub.xet_hash(oid):
            raise Refused(400, f"LFS pointer pointed to a file that does not exist: {path}")
        return tree | {path: large_blob(oid, value.get("size") or call.hub.lfs_path(oid).stat().st_size)}
    if key == "deletedFile":
        if path not in tree:
            raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
        return {known: blob for known, blob in tree.items() if known != path}
    if key == "deletedFolder":
        return {known: blob for known, blob in tree.items() if not known.startswith(path.rstrip("/") + "/")}
    raise Refused(400, f"Unknown operation {key}")


def read_operations(call: Call) -> tuple[Json, list[tuple[str, Json]]]:
    header: Json = {}
    operations = []
    for line in b"".join(call.body()).splitlines():
        item = json.loads(line)
        if item["key"] == "header":
            header = item["value"]
        else:
            operations.append((item["key"], item["value"]))
    return header, operations


@route(ROUTES, "POST", API + r"/commit/(?P<revision>[^/]+)")
def make_commit(call: Call, kind: str, repo_id: str, revision: str) -> None:
    pull = "create_pr" in call.query
    repo, user = call.find(kind, repo_id, write=not pull), call.signed_in()
    header, operations = read_operations(call)
    with call.hub.lock:
        head = repo.resolve(revision)
        if header.get("parentCommit") and not head.oid.startswith(header["parentCommit"]):
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        tree = dict(head.tree)
        for key, value in operations:
            tree = apply(call, tree, key, value)
        ref, answer = revision if revision.startswith("refs/") else f"refs/heads/{revision}", {}
        if pull:
            discussion = open_discussion(call, repo, header["summary"], True)
            ref = f"refs/pr/{discussion['num']}"
            repo.refs[ref] = head.oid
            answer["pullRequestUrl"] = f"{call.hub.endpoint}/{repo.id}/discussions/{discussion['num']}"
        elif ref not in repo.refs:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        commit = call.hub.commit(repo, ref, tree, header["summary"], header.get("description", ""), user.name)
    url = f"{repo.url(call.hub.endpoint)}/commit/{commit.oid}"
    call.answer_json({"success": True, "commitOid": commit.oid, "commitUrl": url, "hookOutput": "", **answer})
