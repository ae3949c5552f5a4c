"""What the headers of a checkpoint's weights say, fetched by range request: kilobytes instead of gigabytes."""

import os
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import get_cached_repo_tree
from huggingface_hub.errors import SafetensorsParsingError

from hf_merge.errors import CheckpointDamaged
from hf_merge.storing import disk
from hf_merge.storing.hub.access import AS_USUAL, Access, explained, look_up_wait
from hf_merge.storing.hub.pulling import Repo, Resolved, pull_checkpoint
from hf_merge.storing.hub.refusals import PULL, explain
from hf_merge.storing.repo_files import SETTINGS_FILES, WEIGHT_FILES, check_weights, matching
from hf_merge.storing.sources import local_folder
from hf_merge.storing.strict_json import dumps, quote


_INDEX_FILES = ("*.index.json",)


def pull_headers(
    source: str | os.PathLike[str], revision: str | None, into: Path, *, access: Access = AS_USUAL
) -> Resolved:
    """Returns a folder like that of `pull_checkpoint`, in which the weights are holes: headers and lengths are real.

    Args:
        source: A local folder, which passes through as it is, or a Hub id.
        revision: A branch, a tag or a commit, None for the default branch.
        into: An empty folder for the checkpoint; it takes no more room than settings and headers.
        access: How to reach the Hub. Offline, the whole checkpoint has to be in the cache.

    Raises:
        InputError, PickleRefused, CheckpointDamaged, HubError, ResourceError: As `pull_checkpoint`.
    """
    name = os.fspath(source)
    if access.offline or local_folder(name) is not None:
        return pull_checkpoint(name, revision, access=access)
    repo = Repo(name, revision, access)
    settings = repo.pull((*SETTINGS_FILES, *_INDEX_FILES))
    tree = get_cached_repo_tree(name, revision=repo.revision, cache_dir=access.cache_dir)
    sizes = {file.path: file.size for file in tree}
    check_weights(list(sizes), f"'{name}' (revision {repo.revision})")
    with disk.naming(into):  # beside the settings may lie whatever else of this commit was ever pulled
        into.mkdir(parents=True, exist_ok=True)
        for file in matching([path.name for path in settings.iterdir()], (*SETTINGS_FILES, *_INDEX_FILES)):
            shutil.copyfile(settings / file, into / file)
    for file in matching(sizes, WEIGHT_FILES):
        if file.endswith(".safetensors"):
            _write_holes(into / file, _read_header(repo, file, access))
    return Resolved(name, into, repo.revision)


def _read_header(repo: Repo, file: str, access: Access) -> dict[str, dict[str, Any]]:
    """Returns dtype, shape and place of every tensor of a file, as its header says them."""
    api = access.connect()
    with explained(lambda error: explain(error, f"'{repo.name}'", access, PULL), access.token):
        try:
            header = api.insist(
                lambda: api.parse_safetensors_file_metadata(repo.name, file, revision=repo.revision), look_up_wait
            )
        except SafetensorsParsingError as error:
            raise CheckpointDamaged(
                f"'{repo.name}': {quote(file)} is no safetensors file: it has no header."
            ) from error
    return {
        name: {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": tensor.data_offsets}
        for name, tensor in header.tensors.items()
    }


def _write_holes(path: Path, tensors: dict[str, dict[str, Any]]) -> None:
    """Writes a file with this header whose tensors are holes in the file, which read as zeros and take no room."""
    raw = dumps(tensors)
    end = max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
    with disk.naming(path), path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + end)
