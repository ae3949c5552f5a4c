"""`hf-merge show` and the inputs of `hf-merge predict`: what a folder holds, and what words stand for."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_merge.errors import InputError, RunFolderError
from hf_merge.merging.settings import described
from hf_merge.serving.model import MergeModel
from hf_merge.serving.reading import as_sound
from hf_merge.storing import front as fronts
from hf_merge.storing import hub
from hf_merge.storing.chains import ChainMap
from hf_merge.storing.library import MAP_FILE, Member
from hf_merge.workflow.run_folder import FRONT_FILE, RECIPE_FILE, unfinished
from hf_merge.workflow.tables import front_json, front_table, text_table


def show(
    source: str | Path, revision: str | None = None, *, access: hub.Access = hub.AS_USUAL
) -> tuple[dict[str, Any], str]:
    """Returns what a run, family or member holds, as a document and as text; of a repo only its map is fetched.

    Args:
        source: A folder, or a repo on the Hub.
        revision: Of a repo: branch, tag or commit.
        access: How to reach the Hub.

    Raises:
        RunFolderError: It is none of these.
        HubError: The Hub does not have it, refuses it or cannot be reached.
    """
    pulled = hub.pull_files(source, (MAP_FILE, FRONT_FILE), revision, access=access)
    path = pulled.folder
    if (path / MAP_FILE).is_file():
        chain_map = Member(path).chain_map
        return _member_json(chain_map), _member_table(chain_map)
    if (path / FRONT_FILE).is_file():
        front = fronts.read(path / FRONT_FILE)
        return front_json(front), front_table(front)
    if (path / RECIPE_FILE).is_file() and pulled.revision is None:
        raise RunFolderError(unfinished(path))
    place = path if pulled.revision is None else f"'{source}' (revision {pulled.revision})"
    raise RunFolderError(f"{place} holds neither {FRONT_FILE} nor {MAP_FILE}. Give a run, a family or a member.")


def read_inputs(model: MergeModel, words: Sequence[str]) -> list[Any]:
    """Returns the inputs that words stand for: texts as they are (`A ||| B` is a pair of texts), files opened.

    Raises:
        InputError: A file is no image, or no WAV file.
    """
    if model.chain_map.model.type == "audio":
        return [as_sound(word, word) for word in words]
    if model.chain_map.model.type != "image":
        return [tuple(word.split(" ||| ", 1)) if " ||| " in word else word for word in words]
    from PIL import Image, UnidentifiedImageError

    images = []
    for word in words:
        try:
            with Image.open(word) as image:
                images.append(image.copy())
        except (OSError, UnidentifiedImageError) as error:
            raise InputError(
                f"'{word}' cannot be read as an image ({error}). This model reads images: give image files."
            ) from error
    return images


def _member_json(chain_map: ChainMap) -> dict[str, Any]:
    return {
        "id": chain_map.id,
        "base": vars(chain_map.base),
        "cost": chain_map.cost,
        "performance": dict(chain_map.performance),
        "metrics": dict(chain_map.metrics),
        "granularity": chain_map.granularity,
        "components": [component.name for component in chain_map.components],
        "experts": [
            {
                "id": expert.id,
                "component": expert.component,
                "members": list(expert.members),
                "codec": dict(expert.codec),
                "reference": expert.reference,
                "bytes": expert.bytes,
            }
            for expert in chain_map.experts
        ],
        "chains": {task: list(chain) for task, chain in chain_map.chains.items()},
        "bytes": chain_map.file_bytes(),
        "shard_bytes": chain_map.file_bytes("experts-"),
        "router_bytes": chain_map.file_bytes("router."),
    }


def _member_table(chain_map: ChainMap) -> str:
    rows = [
        [
            expert.id,
            ", ".join(expert.members) or "(the base)",
            described(expert.codec),
            expert.reference or "",
            f"{expert.bytes:,}",
        ]
        for expert in chain_map.experts
    ]
    weights = sum(expert.bytes for expert in chain_map.experts) + sum(head.bytes for head in chain_map.heads.values())
    scores = ", ".join(f"{task} {score:.4f}" for task, score in chain_map.performance.items())
    return (
        f"{chain_map.id}: {len(chain_map.chains)} tasks on {chain_map.base.repo}, C = {chain_map.cost:.4f}\n"
        f"on disk: {weights:,} bytes of experts and heads, which C counts, in shards of "
        f"{chain_map.file_bytes('experts-'):,} with their headers; "
        f"{chain_map.file_bytes('router.'):,} bytes of router\n"
        f"validation scores: {scores}\n\n"
        + text_table(("expert", "members", "stored as", "difference from", "bytes"), rows)
    )
