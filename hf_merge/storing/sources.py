"""What a user may name as a source: a local folder or a repo on the Hub, and which Hub."""

import re
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from hf_merge.errors import InputError
from hf_merge.storing.redaction import redact
from hf_merge.storing.strict_json import quote


_SAFE, _NAMESPACE, _NAME = r"(?!.*(?:--|\.\.))(?!.*\.git$)", r"\w(?:[\w.-]*\w)?/", r"\w(?:[\w.-]{0,94}\w)?"
_HUB_ID = re.compile(f"{_SAFE}(?:{_NAMESPACE})?{_NAME}", re.ASCII)
FULL_HUB_ID = re.compile(_SAFE + _NAMESPACE + _NAME, re.ASCII)  # org/name: what may stand in a file from outside
_REVISION = re.compile(r"(?!.*\.\.)\w[\w./+@-]{0,254}", re.ASCII)


def local_folder(source: str) -> Path | None:
    """Returns the folder that a source names, None where it names a repo on the Hub (`name` or `org/name`).

    Raises:
        InputError: It is a file, an address, a path that does not exist, or nothing of the kind.
    """
    path = Path(source).expanduser() if source.startswith("~/") else Path(source)
    with suppress(OSError):
        if source and path.is_dir():
            return path
        if path.is_file():
            raise InputError(f"{quote(source)} is a file. Give the folder: {quote(path.parent)}.")
    if "://" in source:
        raise InputError(
            f"{quote(redact(source))} is an address. Give the Hub id alone (org/name), or a local folder."
        )
    if source.startswith(("/", ".", "~")) or source.endswith("/") or source.count("/") > 1 or "\\" in source:
        raise InputError(
            f"No folder {quote(source)}: {quote(path.absolute())} does not exist. Give a folder or a Hub id."
        )
    if not _HUB_ID.fullmatch(source):
        raise InputError(f"{quote(source)} is neither a folder here nor a Hub id: `name` or `org/name`.")
    return None


def check_hub_id(name: str) -> None:
    """Refuses what cannot be the name of a repo on the Hub.

    Raises:
        InputError: It is neither `name` nor `org/name`.
    """
    if not _HUB_ID.fullmatch(name):
        raise InputError(
            f"{quote(redact(name))} cannot be a repo on the Hub. Give `name` or `org/name`: letters, digits, '-', '_' "
            "and '.', none of '-' and '.' first, last or twice in a row, and no '.git' at the end."
        )


def check_revision(revision: str, source: str) -> None:
    """Refuses what git would not take as a branch, a tag or a commit: the client makes file names of it.

    Raises:
        InputError: It is no such name.
    """
    if not _REVISION.fullmatch(revision):
        raise InputError(f"{quote(revision)} cannot be a revision of '{source}'. Give a branch, a tag or a commit.")


def is_encrypted(address: str) -> bool:
    """Returns whether a Hub is spoken to over https; without it only this machine itself will do.

    Raises:
        InputError: The address is neither https nor a loopback address.
    """
    with suppress(ValueError):
        url = urlsplit(address)
        if url.scheme == "https" and url.hostname:
            return True
        if url.scheme == "http" and (url.hostname == "localhost" or ip_address(url.hostname or "").is_loopback):
            return False
    raise InputError(
        f"The Hub's address {quote(redact(address))} is not https: anyone on the way could change what is pulled. "
        "Set HF_ENDPOINT to an address that begins with https://."
    )
