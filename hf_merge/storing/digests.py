"""The digests of files that are open for long, each read once for as long as it stays as it is."""

from pathlib import Path

from hf_merge.storing.member_files import state_of
from hf_merge.storing.tensors import sha256_of


class KeptDigests:
    """The SHA-256 of files, kept until one is written over."""

    def __init__(self) -> None:
        """Keeps nothing yet."""
        self._known: dict[Path, tuple[tuple[int, int, int], str]] = {}

    def of(self, path: Path) -> str:
        """Returns the SHA-256 of a file in hex.

        Raises:
            CheckpointDamaged: The file is missing, or no regular file.
        """
        state = state_of(path)  # before it is read: what changes meanwhile is read again next time
        known = self._known.get(path)
        if known is not None and known[0] == state:
            return known[1]
        digest = sha256_of(path)
        if state is not None:
            self._known[path] = state, digest
        return digest
