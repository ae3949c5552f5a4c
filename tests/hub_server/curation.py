"""Pull requests and collections."""

import re
import secrets

from tests.hub_server.call import API, Call, Route, route
from tests.hub_server.state import PREFIX_TO_TYPE, Json, Refused, Repo, now


ROUTES: list[Route] = []
_PAGE_DISCUSSIONS = 10
_LISTED_ITEMS = 4  # of a collection, in a listing
_SLUG = r"/api/collections/(?P<slug>[^/]+/[^/]+)"


def open_discussion(call: Call, repo: Repo, title: str, is_pull_request: bool) -> Json:
    discussion: Json = {
        "num": len(repo.discussions) + 1,
        "title": title,
        "author": {"name": call.signed_in().name},
        "createdAt": now(),
        "status": "draft" if is_pull_request else "open",
        "repo": {"name": repo.id, "type": repo.type},
        "isPullRequest": is_pull_request,
        "events": [],
        "changes": {"base": "refs/heads/main"},
        "filesWithConflicts": [],
        "diff": "",
    }
    repo.discussions.append(discussion)
    return discussion


@route(ROUTES, "POST", API + "/discussions")
def create_discussion(call: Call, kind: str, repo_id: str) -> None:
    repo, payload = call.find(kind, repo_id), call.json()
    discussion = open_discussion(call, repo, payload["title"], payload.get("pullRequest", False))
    if discussion["isPullRequest"]:
        repo.refs[f"refs/pr/{discussion['num']}"] = repo.refs["refs/heads/main"]
    call.answer_json(discussion)


@route(ROUTES, "GET", API + "/discussions")
def list_discussions(call: Call, kind: str, repo_id: str) -> None:
    repo, wanted = call.find(kind, repo_id), call.flag("type", "all")
    author, start = call.flag("author", ""), int(call.flag("p", "0")) * _PAGE_DISCUSSIONS
    found = [
        item
        for item in repo.discussions[::-1]  # the latest first
        if wanted == "all" or item["isPullRequest"] == (wanted == "pull_request")
        if not author or item["author"]["name"] == author
    ]
    page = found[start : start + _PAGE_DISCUSSIONS]
    call.answer_json({"discussions": page, "count": len(found), "start": start})


@route(ROUTES, "GET", API + r"/discussions/(?P<number>\d+)")
def get_discussion(call: Call, kind: str, repo_id: str, number: str) -> None:
    repo = call.find(kind, repo_id)
    if not 0 < int(number) <= len(repo.discussions):
        raise Refused(404, "Discussion not found")
    call.answer_json(repo.discussions[int(number) - 1])


def find_collection(call: Call, slug: str, *, write: bool = False) -> Json:
    collection = call.hub.collections.get(slug)
    owner = collection["owner"]["name"] if collection else ""
    mine = call.user is not None and owner in call.user.namespaces
    if collection is None or (collection["private"] and not mine):
        raise Refused(404, "Collection not found")
    if write:
        call.may_write(owner)
        collection["lastUpdated"] = now()
    return collection


@route(ROUTES, "GET", "/api/collections")
def list_collections(call: Call) -> None:
    owners, items, found = call.query.get("owner"), call.query.get("item"), []
    for collection in call.hub.collections.values():
        mine = call.user is not None and collection["owner"]["name"] in call.user.namespaces
        inside = {f"{item['type']}s/{item['id']}" for item in collection["items"]}
        shown = mine or not collection["private"]
        if shown and (not owners or collection["owner"]["name"] in owners) and (not items or inside & set(items)):
            # The client numbers the list itself, and fails if "position" comes with it.
            listed = {key: value for key, value in collection.items() if key != "position"}
            found.append(listed | {"items": collection["items"][:_LISTED_ITEMS]})
    call.answer_json(found)


@route(ROUTES, "POST", "/api/collections")
def create_collection(call: Call) -> None:
    payload = call.json()
    namespace, title = payload["namespace"], payload["title"]
    call.may_write(namespace)
    for slug, known in call.hub.collections.items():
        if (known["owner"]["name"], known["title"]) == (namespace, title):
            raise Refused(409, "You already have a collection with this title", slug=slug)
    stem = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    slug = f"{namespace}/{stem}-{secrets.token_hex(12)}"
    call.hub.collections[slug] = {
        "slug": slug,
        "title": title,
        "items": [],
        "position": 0,
        "description": payload.get("description"),
        "theme": "green",
        "upvotes": 0,
        "lastUpdated": now(),
        "private": payload.get("private", False),
        "gating": False,
        "owner": {"name": namespace},
    }
    call.answer_json(call.hub.collections[slug])


@route(ROUTES, "GET", _SLUG)
def get_collection(call: Call, slug: str) -> None:
    call.answer_json(find_collection(call, slug))


@route(ROUTES, "PATCH", _SLUG)
def update_collection(call: Call, slug: str) -> None:
    collection = find_collection(call, slug, write=True)
    collection |= call.json()
    call.answer_json({"success": True, "data": collection})


@route(ROUTES, "DELETE", _SLUG)
def delete_collection(call: Call, slug: str) -> None:
    find_collection(call, slug, write=True)
    del call.hub.collections[slug]
    call.answer_json({"success": True})


@route(ROUTES, "POST", _SLUG + "/items")
def add_item(call: Call, slug: str) -> None:
    collection, payload = find_collection(call, slug, write=True), call.json()
    item = payload["item"]
    if any((known["id"], known["type"]) == (item["id"], item["type"]) for known in collection["items"]):
        raise Refused(409, "Item already in collection")
    if item["type"] in PREFIX_TO_TYPE.values():
        call.find(item["type"] + "s", item["id"])
    added: Json = {"_id": secrets.token_hex(12), "id": item["id"], "type": item["type"]}
    added["position"] = len(collection["items"])
    if payload.get("note"):
        added["note"] = {"text": payload["note"], "html": payload["note"]}
    collection["items"].append(added)
    call.answer_json(collection)


@route(ROUTES, "DELETE", _SLUG + "/items/(?P<item>[^/]+)")
def delete_item(call: Call, slug: str, item: str) -> None:
    collection = find_collection(call, slug, write=True)
    collection["items"] = [known for known in collection["items"] if known["_id"] != item]
    call.answer_json({"success": True})


@route(ROUTES, "PATCH", _SLUG + "/items/(?P<item>[^/]+)")
def update_item(call: Call, slug: str, item: str) -> None:
    collection, payload = find_collection(call, slug, write=True), call.json()
    for known in collection["items"]:
        if known["_id"] == item:
            if "note" in payload:
                known["note"] = {"text": payload["note"], "html": payload["note"]}
            known["position"] = payload.get("position", known["position"])
    call.answer_json({"success": True})
