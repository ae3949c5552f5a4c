"""Families on the loopback Hub: put there without a push, whole, as a push leaves them."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hf_merge.serving.selection import open_member
from hf_merge.storing import front as fronts
from hf_merge.storing.front import FrontPoint
from hf_merge.storing.hub import Access
from hf_merge.storing.library import Member
from tests.hub_server import HubServer


FAMILY = "alice/tiny"


@dataclass(frozen=True)
class Visitor:
    """Somebody who loads from a Hub into a cache of his own; `naps` holds the waits that were asked for."""

    hub: HubServer
    cache: Path
    naps: list[float] = field(default_factory=list)

    def access(self, **changes: Any) -> Access:
        asked: dict[str, Any] = {"endpoint": self.hub.endpoint, "cache_dir": self.cache, "sleep": self.naps.append}
        return Access(**asked | changes)

    def open(self, source: str | Path = FAMILY, budget: float | str | None = None, **options: Any) -> Member:
        """Returns an opened member, all that it needs checked; options that it does not know are those of `Access`."""
        chosen = {key: options.pop(key) for key in ("tasks", "revision") if key in options}
        member = open_member(source, budget, access=self.access(**options), **chosen)
        member.check_all()
        return member


def content(folder: Path) -> dict[str, bytes]:
    """Returns the files of a folder by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def member_repo(point: FrontPoint) -> str:
    return f"{FAMILY}-{point.id}"


def publish(hub: HubServer, folder: Path, *, private: bool = False) -> dict[str, FrontPoint]:
    """Puts a family folder with all its members on a Hub, and returns the points as published, by id."""
    front = fronts.read(folder / "front.json")
    points = tuple(publish_member(hub, folder, point, private) for point in front.points)
    files = {"front.json": fronts.dump(replace(front, points=points)), "README.md": b"# A family\n"}
    hub.publish(FAMILY, files, private=private)
    return {point.id: point for point in points}


def publish_member(hub: HubServer, folder: Path, point: FrontPoint, private: bool = False) -> FrontPoint:
    files = content(folder / "members" / point.id)
    commit = hub.publish(member_repo(point), files, private=private)
    digest = hashlib.sha256(files["chains.json"]).hexdigest()
    return replace(point, repo=member_repo(point), revision=commit, map_sha256=digest)


def republish(hub: HubServer, change: Mapping[str, Any], only: str | None = None) -> None:
    """Changes keys of the points (of one, or of all) in the published front."""
    front = fronts.parse(hub.read(hub.repo(FAMILY).resolve("main").tree["front.json"]))
    points = [replace(point, **change) if only in (None, point.id) else point for point in front.points]
    hub.publish(FAMILY, {"front.json": fronts.dump(replace(front, points=tuple(points)))})


def fetched(hub: HubServer) -> dict[str, int]:
    """Returns how many bytes of each file were sent, by repo and name; a file that was sent twice counts twice."""
    by_digest = {
        blob.sha256: (repo.id, name)
        for repo in hub.repos.values()
        for commit in repo.commits.values()
        for name, blob in commit.tree.items()
        if blob.sha256 is not None and hub.requests(f"HEAD /{repo.id}/resolve/{commit.oid}/{name}")
    }
    sizes: dict[str, int] = {}
    for request in hub.requests("^GET "):
        large = re.match(r"/cdn/([0-9a-f]{64})", request.path)
        small = re.match(r"/api/resolve-cache/models/([^/]+/[^/]+)/([0-9a-f]{40})/(.+)", request.path)
        if large:
            (repo, name), size = by_digest[large[1]], hub.lfs_path(large[1]).stat().st_size
        elif small:
            repo, name = small[1], small[3]
            size = hub.repo(repo).commits[small[2]].tree[name].size
        else:
            continue
        sizes[f"{repo}/{name}"] = sizes.get(f"{repo}/{name}", 0) + size
    return sizes
