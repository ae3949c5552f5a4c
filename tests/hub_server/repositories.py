"""Who asks, the life of a repo, and what its listings say."""

import json
from typing import Any
from urllib.parse import parse_qsl

import yaml

from tests.hub_server.call import API, Call, Route, route
from tests.hub_server.state import PREFIX_TO_TYPE, Blob, Commit, Json, Refused, Repo, card_data, front_matter, git_oid


ROUTES: list[Route] = []
_PAGE_ENTRIES = 1000


@route(ROUTES, "GET", "/api/whoami-v2")
def whoami(call: Call) -> None:
    user = call.signed_in()
    call.answer_json(
        {
            "type": "user",
            "id": git_oid(user.name.encode())[:24],
            "name": user.name,
            "fullname": user.name,
            "email": f"{user.name}@example.test",
            "emailVerified": True,
            "isPro": False,
            "orgs": [{"type": "org", "name": org, "roleInOrg": "write"} for org in user.orgs],
            "auth": {"type": "access_token", "accessToken": {"displayName": "test", "role": user.role}},
        }
    )


@route(ROUTES, "GET", "/api/agent-harnesses")
def agent_harnesses(call: Call) -> None:
    """The client asks this once a day to tell whether an agent runs it; unanswered, it asks at every start."""
    call.answer_json({"standardEnvVars": [], "harnesses": {}})


@route(ROUTES, "POST", "/api/repos/create")
def create_repo(call: Call) -> None:
    payload, user = call.json(), call.signed_in()
    repo_type = payload.get("type", "model")
    repo_id = f"{payload.get('organization') or user.name}/{payload['name']}"
    call.may_write(repo_id.split("/")[0])
    private = payload.get("visibility") == "private" or bool(payload.get("private"))
    with call.hub.lock:
        known = call.hub.repos.get((repo_type, repo_id))
        if known is not None:
            raise Refused(409, f"You already created this {repo_type} repo", url=known.url(call.hub.endpoint))
        repo = call.hub.create(repo_id, repo_type, private, user.name)
    url = repo.url(call.hub.endpoint)
    call.answer_json({"url": url, "name": repo_id, "id": git_oid(repo_id.encode())[:24]})


@route(ROUTES, "DELETE", "/api/repos/delete")
def delete_repo(call: Call) -> None:
    payload = call.json()
    owner = payload.get("organization") or (call.user and call.user.name)
    repo = call.find(payload.get("type", "model") + "s", f"{owner}/{payload['name']}", write=True)
    del call.hub.repos[repo.type, repo.id]
    call.answer(200, b"OK", {"Content-Type": "text/plain"})


@route(ROUTES, "PUT", API + "/settings")
def settings(call: Call, kind: str, repo_id: str) -> None:
    repo, payload = call.find(kind, repo_id, write=True), call.json()
    if "private" in payload or "visibility" in payload:
        asked = payload.get("visibility", "private" if payload.get("private") else "public")
        repo.private = asked == "private"
    if "gated" in payload:
        repo.gated = bool(payload["gated"])
    call.answer_json({"private": repo.private, "gated": repo.gated})


@route(ROUTES, "POST", "/api/validate-yaml")
def validate_yaml(call: Call) -> None:
    header = front_matter(call.json()["content"])
    errors, warnings = [], []
    if header is None:
        warnings.append({"message": "empty or missing yaml metadata in repo card"})
    else:
        try:
            yaml.safe_load(header)
        except yaml.YAMLError as error:
            errors.append({"message": str(error)})
    call.answer_json({"errors": errors, "warnings": warnings}, 400 if errors else 200)


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def tags_of(card: Json) -> list[str]:
    tags = as_list(card.get("library_name")) + as_list(card.get("tags")) + as_list(card.get("pipeline_tag"))
    relation = card.get("base_model_relation")
    for base in as_list(card.get("base_model")):
        tags += [f"base_model:{base}"] + ([f"base_model:{relation}:{base}"] if relation else [])
    tags += [f"dataset:{name}" for name in as_list(card.get("datasets"))]
    tags += [f"license:{name}" for name in as_list(card.get("license"))] + ["region:us"]
    return list(dict.fromkeys(tags))


def sibling(path: str, blob: Blob, details: bool) -> Json:
    described: Json = {"rfilename": path}
    if details:
        described |= {"size": blob.size, "blobId": blob.oid}
        if lfs := blob.lfs("sha256"):
            described["lfs"] = lfs
    return described


def describe(call: Call, repo: Repo, commit: Commit, blobs: bool = False) -> Json:
    card = card_data(commit)
    info: Json = {
        "_id": git_oid(repo.id.encode())[:24],
        "id": repo.id,
        "author": repo.owner,
        "sha": commit.oid,
        "lastModified": commit.date,
        "createdAt": repo.created,
        "private": repo.private,
        "gated": "manual" if repo.gated else False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": tags_of(card),
        "cardData": card,
        "siblings": [sibling(path, blob, blobs) for path, blob in sorted(commit.tree.items())],
        "usedStorage": sum(blob.size for blob in commit.tree.values()),
    }
    if repo.type == "model":
        info["modelId"] = repo.id
        info |= {key: card[key] for key in ("library_name", "pipeline_tag", "model-index") if key in card}
    if "config.json" in commit.tree:
        try:
            config = json.loads(call.hub.read(commit.tree["config.json"]))
        except ValueError:
            return info
        info["config"] = {key: config[key] for key in ("architectures", "model_type") if key in config}
    return info


@route(ROUTES, "GET", r"/api/(?P<kind>models|datasets|spaces)")
def list_repos(call: Call, kind: str) -> None:
    author, search = call.query.get("author", [None])[0], call.flag("search", "").lower()
    wanted, found = call.query.get("filter", []), []
    for (repo_type, _), repo in sorted(call.hub.repos.items()):
        mine = call.user is not None and repo.owner in call.user.namespaces
        if repo_type != PREFIX_TO_TYPE[kind] or (repo.private and not mine):
            continue
        info = describe(call, repo, repo.resolve("main"))
        fits = author in (None, repo.owner) and search in repo.id.lower()
        if fits and all(tag in info["tags"] for tag in wanted):
            found.append(info)
    call.answer_json(found[: int(call.flag("limit", "1000"))])


@route(ROUTES, "GET", API + r"(?:/revision/(?P<revision>[^/]+))?")
def repo_info(call: Call, kind: str, repo_id: str, revision: str | None) -> None:
    repo = call.find(kind, repo_id)
    call.answer_json(describe(call, repo, repo.resolve(revision or "main"), blobs="blobs" in call.query))


@route(ROUTES, "GET", API + "/auth-check")
def auth_check(call: Call, kind: str, repo_id: str) -> None:
    call.find(kind, repo_id, content=True)
    call.answer_json({})


def entry(call: Call, path: str, blob: Blob) -> Json:
    described: Json = {"type": "file", "oid": blob.oid, "size": blob.size, "path": path}
    if lfs := blob.lfs("oid"):
        described["lfs"] = lfs
        if xet_hash := call.hub.xet_hash(blob.etag):
            described["xetHash"] = xet_hash
    return described


def listing(call: Call, commit: Commit) -> dict[str, Json]:
    """Every file and every folder of a commit, by path."""
    entries = {path: entry(call, path, blob) for path, blob in commit.tree.items()}
    for path in commit.tree:
        parts = path.split("/")[:-1]
        for count in range(len(parts)):
            folder = "/".join(parts[: count + 1])
            entries[folder] = {"type": "directory", "oid": git_oid(folder.encode()), "size": 0, "path": folder}
    return entries


@route(ROUTES, "GET", API + r"/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?")
def tree(call: Call, kind: str, repo_id: str, revision: str, path: str | None) -> None:
    entries = listing(call, call.find(kind, repo_id, content=True).resolve(revision))
    base = f"{path.strip('/')}/" if path else ""
    inside = [item for name, item in sorted(entries.items()) if name.startswith(base)]
    if path and not inside:
        raise Refused(404, f"{path} does not exist on {revision!r}", "EntryNotFound")
    if call.flag("recursive", "false").lower() != "true":
        inside = [item for item in inside if "/" not in item["path"][len(base) :]]
    start, headers = int(call.flag("cursor", "0")), {}
    if start + _PAGE_ENTRIES < len(inside):
        rest = "&".join(f"{key}={values[0]}" for key, values in call.query.items() if key != "cursor")
        url = f"{call.hub.endpoint}{call.raw_path}?{rest}&cursor={start + _PAGE_ENTRIES}"
        headers["Link"] = f'<{url}>; rel="next"'
    call.answer_json(inside[start : start + _PAGE_ENTRIES], headers=headers)


@route(ROUTES, "POST", API + r"/paths-info/(?P<revision>[^/]+)")
def paths_info(call: Call, kind: str, repo_id: str, revision: str) -> None:
    entries = listing(call, call.find(kind, repo_id).resolve(revision))
    paths = [value.strip("/") for key, value in parse_qsl(b"".join(call.body()).decode()) if key == "paths"]
    call.answer_json([entries[path] for path in paths if path in entries])


@route(ROUTES, "GET", API + "/refs")
def list_refs(call: Call, kind: str, repo_id: str) -> None:
    answer: dict[str, list[Json]] = {"branches": [], "converts": [], "tags": [], "pullRequests": []}
    for ref, oid in call.find(kind, repo_id).refs.items():
        group = {"heads": "branches", "tags": "tags", "pr": "pullRequests"}[ref.split("/")[1]]
        answer[group].append({"name": ref.split("/", 2)[2], "ref": ref, "targetCommit": oid})
    call.answer_json(answer)


@route(ROUTES, "GET", API + r"/commits/(?P<revision>[^/]+)")
def list_commits(call: Call, kind: str, repo_id: str, revision: str) -> None:
    repo = call.find(kind, repo_id)
    commit: Commit | None = repo.resolve(revision)
    found = []
    while commit:
        authors = [{"user": commit.author}]
        found.append(
            {
                "id": commit.oid,
                "title": commit.title,
                "message": commit.message,
                "date": commit.date,
                "authors": authors,
            }
        )
        commit = repo.commits.get(commit.parent) if commit.parent else None
    call.answer_json(found)


def add_ref(call: Call, repo: Repo, ref: str, oid: str) -> None:
    if ref in repo.refs:
        raise Refused(409, f"Reference already exists: {ref}")
    repo.refs[ref] = oid
    call.answer_json({})


@route(ROUTES, "POST", API + r"/branch/(?P<name>[^/]+)")
def create_branch(call: Call, kind: str, repo_id: str, name: str) -> None:
    repo = call.find(kind, repo_id, write=True)
    add_ref(call, repo, f"refs/heads/{name}", repo.resolve(call.json().get("startingPoint", "main")).oid)


@route(ROUTES, "POST", API + r"/tag/(?P<revision>[^/]+)")
def create_tag(call: Call, kind: str, repo_id: str, revision: str) -> None:
    repo = call.find(kind, repo_id, write=True)
    add_ref(call, repo, f"refs/tags/{call.json()['tag']}", repo.resolve(revision).oid)


@route(ROUTES, "DELETE", API + r"/(?P<what>branch|tag)/(?P<name>[^/]+)")
def delete_ref(call: Call, kind: str, repo_id: str, what: str, name: str) -> None:
    repo = call.find(kind, repo_id, write=True)
    ref = f"refs/{'heads' if what == 'branch' else 'tags'}/{name}"
    if ref == "refs/heads/main":
        raise Refused(403, "Cannot delete the default branch")
    if repo.refs.pop(ref, None) is None:
        raise Refused(404, f"Invalid rev id: {name}", "RevisionNotFound")
    call.answer_json({})
