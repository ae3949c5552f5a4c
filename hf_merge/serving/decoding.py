"""The experts of an opened member decoded for its tasks' models, a shared one once for all that differ from it."""

from collections import defaultdict
from threading import Lock

from torch import Tensor

from hf_merge.storing.chain_entries import ExpertEntry
from hf_merge.storing.library import Member


class Decoder:
    """Decodes experts and keeps the shared ones that more are to come for: at most one for each component.

    Once every expert that differs from it was decoded, a shared one is let go. Threads may ask at once; those that
    ask for experts of one component take turns.
    """

    def __init__(self, member: Member) -> None:
        """Prepares to decode the experts of the tasks that `member` is opened for; nothing is read yet."""
        self._member = member
        self._entries = {entry.id: entry for entry in member.experts}
        self._kept: dict[str, tuple[str, dict[str, Tensor]]] = {}
        self._locks = {entry.component: Lock() for entry in member.experts}
        self._awaited: defaultdict[str, set[str]] = defaultdict(set)
        for entry in member.experts:
            if entry.reference is not None:
                self._awaited[entry.reference].add(entry.id)

    def expert(self, entry: ExpertEntry) -> dict[str, Tensor]:
        """Returns an expert's weights as `Member.expert` does.

        Raises:
            DigestMismatch: A shard is not the one that the map was written for.
            MalformedChainMap: A shard does not hold the expert that the map describes.
        """
        if entry.reference is None:
            return self._member.expert(entry)
        with self._locks[entry.component]:
            others = self._awaited[entry.reference]
            others.discard(entry.id)
            kept = self._kept.pop(entry.component, None)
            if kept is None or kept[0] != entry.reference:
                if not others:  # read side by side, tensor by tensor: that takes less memory
                    return self._member.expert(entry)
                kept = entry.reference, self._member.expert(self._entries[entry.reference])
            if others:
                self._kept[entry.component] = kept
            return self._member.expert(entry, kept[1])
