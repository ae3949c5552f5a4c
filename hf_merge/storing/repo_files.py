"""Which files of a repo travel: lists of what is wanted, so that what nobody thought of stays where it is."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatch

from hf_merge.errors import CheckpointDamaged, PickleRefused
from hf_merge.storing import chain_entries
from hf_merge.storing.chain_entries import CONFIG_FILE
from hf_merge.storing.strict_json import quote


# What a member folder may hold is what a checkpoint's settings are: one list for copying, reading and pulling.
TOKENIZER_FILES = tuple(sorted(chain_entries.TOKENIZER_FILES | chain_entries.SETTINGS_FILES - {CONFIG_FILE}))
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SETTINGS_FILES = (CONFIG_FILE, ADAPTER_CONFIG, *TOKENIZER_FILES)
WEIGHT_FILES = ("*.safetensors", "model.safetensors.index.json")
MEMBER_FILES = (
    *("chains.json", "front.json", "recipe.yaml", "README.md", CONFIG_FILE, *TOKENIZER_FILES),
    *("experts-*.safetensors", "router.safetensors"),
)
PICKLE_FILES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.npz", "*.h5")

# Exports and training states lie in folders below; `consolidated` is the same weights once more, under other names.
IGNORED = ("*/*", "consolidated*.safetensors")


def matching(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """Returns the names that a pull with these patterns brings, of all the names in a repo."""

    def fits(name: str, any_of: Sequence[str]) -> bool:
        return any(fnmatch(name, pattern) for pattern in any_of)

    return [name for name in names if fits(name, patterns) and not fits(name, IGNORED)]


def check_weights(names: Sequence[str], where: str) -> None:
    """Refuses a checkpoint whose weights we would not open.

    Args:
        names: All the files of its repo.
        where: The repo, for the message.

    Raises:
        PickleRefused: Its weights are in files that can run code.
        CheckpointDamaged: It holds no weights, or those of a merged model.
    """
    merged = next((name for name in ("chains.json", "front.json") if name in names), None)
    if merged is not None:
        raise CheckpointDamaged(
            f"{where} holds {merged}: it is a merged model of ours, and no checkpoint. Take one of its tasks out "
            "first: MergeModel.from_pretrained(...).materialize(task).save_pretrained(folder)."
        )
    if matching(names, ("*.safetensors",)):
        return
    pickles = [quote(name) for name in matching(names, PICKLE_FILES)]
    if not pickles:
        raise CheckpointDamaged(f"{where} holds no *.safetensors file beside its config.json. Is it a model?")
    raise PickleRefused(
        f"{where} holds weights only in files that can run code ({', '.join(pickles[:3])}); these are never opened. "
        "Convert them: https://huggingface.co/spaces/safetensors/convert opens a pull request, whose revision is "
        "'refs/pr/N'; or load the model where you trust it, and save it again with save_pretrained()."
    )
