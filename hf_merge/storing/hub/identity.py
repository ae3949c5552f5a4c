"""Who is logged in, and hence what a repo's whole name is."""

from hf_merge.errors import HubError
from hf_merge.storing.hub.access import AS_USUAL, Access, explained, look_up_wait
from hf_merge.storing.hub.refusals import LOGIN, explain
from hf_merge.storing.redaction import redact
from hf_merge.storing.sources import FULL_HUB_ID, check_hub_id
from hf_merge.storing.strict_json import quote


def whoami(access: Access = AS_USUAL) -> str:
    """Returns the name of the user whose token is used.

    Raises:
        HubError: Nobody is logged in, the token is not known, or the Hub cannot be reached.
    """
    api = access.connect_to_write()
    with explained(lambda error: explain(error, "Your login", access, LOGIN), access.token):
        name = api.insist(api.whoami, look_up_wait).get("name")
    if not FULL_HUB_ID.fullmatch(f"{name}/repo"):
        raise HubError(f"{redact(access.address)} says that you are {quote(name)}. Is it a Hub?")
    return str(name)


def full_name(repo: str, access: Access = AS_USUAL) -> str:
    """Returns a repo's Hub id with its namespace: `name` is the user's own, `org/name` is asked of nobody.

    Raises:
        InputError: It can be no repo's name.
        HubError: It has no namespace, and nobody is logged in or the Hub cannot be reached.
    """
    check_hub_id(repo)
    return repo if "/" in repo else f"{whoami(access)}/{repo}"
