"""The only package that talks to the Hub: what is pulled is pinned to one commit, what is pushed appears whole or not.

Access                                   which Hub, as whom, with which cache
Repo, pull_checkpoint, pull_files        files of a repo at one commit
pull_headers                             the same as `pull_checkpoint`, with holes for weights
read_file, pin_dataset                   one file's bytes; the commit that a data set is at
push_files, claim_repo                   files into a repo in one commit; the repo itself
make_collection, find_collection         a page that groups repos
whoami, full_name                        the user, and hence a repo's whole name
"""

from hf_merge.storing.hub.access import AS_USUAL, Access
from hf_merge.storing.hub.claiming import claim_repo
from hf_merge.storing.hub.collecting import find_collection, make_collection
from hf_merge.storing.hub.identity import full_name, whoami
from hf_merge.storing.hub.pulling import Repo, Resolved, pin_dataset, pull_checkpoint, pull_files, read_file
from hf_merge.storing.hub.pushing import Pushed, push_files
from hf_merge.storing.hub.weight_headers import pull_headers
from hf_merge.storing.repo_files import MEMBER_FILES


__all__ = [
    "AS_USUAL",
    "MEMBER_FILES",
    "Access",
    "Pushed",
    "Repo",
    "Resolved",
    "claim_repo",
    "find_collection",
    "full_name",
    "make_collection",
    "pin_dataset",
    "pull_checkpoint",
    "pull_files",
    "pull_headers",
    "push_files",
    "read_file",
    "whoami",
]
