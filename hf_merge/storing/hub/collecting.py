"""The collection that groups the repos of a family on one page."""

from collections.abc import Mapping

from huggingface_hub import Collection

from hf_merge.errors import HubError
from hf_merge.storing.hub.access import AS_USUAL, Access, PatientApi, explained, look_up_wait, write_wait
from hf_merge.storing.hub.heads import find_head
from hf_merge.storing.hub.refusals import PUSH, explain
from hf_merge.storing.redaction import redact


_NOTE_CHARACTERS = 500  # what the Hub takes


def make_collection(
    title: str, namespace: str, items: Mapping[str, str], *, private: bool | None, access: Access = AS_USUAL
) -> str:
    """Returns the slug of the collection with this title, made if need be, in which these models are.

    What somebody else put into it stays, and where all is as wanted nothing is sent.

    Args:
        title: What it is called.
        namespace: The user or organisation whose collection it is.
        items: Hub ids of models, in the order wanted, each with a note.
        private: Whether only some may see it; None makes it as private as the first of `items`.
        access: How to reach the Hub.

    Raises:
        HubError: The Hub refuses it or cannot be reached, nobody is logged in, or it exists with the other visibility.
    """
    api = access.connect_to_write()
    with explained(lambda error: explain(error, f"The collection '{title}'", access, PUSH), access.token):
        if private is None:
            first = next(iter(items), None)
            head = None if first is None else find_head(api, first, None)
            private = head is not None and head.private
        collection = _find(api, title, namespace, next(iter(items), None)) or api.insist(
            lambda: api.create_collection(title, namespace=namespace, private=private, exists_ok=True), write_wait
        )
        if bool(getattr(collection, "private", private)) != private:
            raise HubError(
                f"The collection '{title}' exists and is {'public' if private else 'private'}, but the repos are not. "
                f"Change it first: {redact(access.address)}/collections/{collection.slug}"
            )
        for repo, note in items.items():
            _put(api, collection, repo, note[:_NOTE_CHARACTERS])
    return collection.slug


def find_collection(title: str, namespace: str, item: str, *, access: Access = AS_USUAL) -> str | None:
    """Returns the slug of the collection with this title in which the model `item` is, None where there is none.

    Raises:
        HubError: The Hub refuses it or cannot be reached.
    """
    api = access.connect()
    with explained(lambda error: explain(error, f"The collection '{title}'", access, PUSH), access.token):
        collection = _find(api, title, namespace, item)
    return None if collection is None else collection.slug


def _find(api: PatientApi, title: str, namespace: str, item: str | None) -> Collection | None:
    """Returns the collection of this title, whole; a listing shows but a few of its items."""
    wanted = None if item is None else f"models/{item}"
    listed = api.list_collections(owner=namespace, item=wanted)  # which the client tries again by itself
    found = next((collection for collection in listed if collection.title == title), None)
    return None if found is None else api.insist(lambda: api.get_collection(found.slug), look_up_wait)


def _put(api: PatientApi, collection: Collection, repo: str, note: str) -> None:
    there = next((item for item in collection.items if (item.item_type, item.item_id) == ("model", repo)), None)
    if there is None:
        api.insist(
            lambda: api.add_collection_item(collection.slug, repo, "model", note=note, exists_ok=True), write_wait
        )
    elif there.note != note:
        api.insist(lambda: api.update_collection_item(collection.slug, there.item_object_id, note=note), write_wait)
