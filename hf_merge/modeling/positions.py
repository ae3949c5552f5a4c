"""For how many positions a model is made: what its configuration says, and tokenizers often do not."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from hf_merge.modeling.assembly import Kind

UNBOUNDED = 1 << 30
# These count positions from behind the padding token's number, so that their first positions are never used.
_BEHIND_PADDING = frozenset(
    {
        "camembert", "data2vec-text", "esm", "ibert", "layoutlmv3", "lilt", "longformer", "luke", "mpnet", "roberta",
        "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
    }
)  # fmt: skip


def positions(config: Mapping[str, Any], kind: "Kind") -> int:
    """Returns how many tokens a model takes, as far as its configuration says; `UNBOUNDED` where it does not.

    Args:
        config: The base's `config.json`.
        kind: What the model reads, and how it answers.
    """
    # DeBERTa and T5 state numbers too, but look at distances between tokens alone.
    if config.get("position_biased_input") is False:
        return UNBOUNDED
    distances = kind == "seq2seq" or config.get("relative_attention_num_buckets") is not None
    names = ("max_position_embeddings",) if distances else ("max_position_embeddings", "n_positions")
    found = next((config[name] for name in names if isinstance(config.get(name), int)), None)
    if found is None or found < 1:
        return UNBOUNDED
    padding = config.get("pad_token_id", 1)
    unused = padding + 1 if config.get("model_type") in _BEHIND_PADDING and isinstance(padding, int) else 0
    return max(1, int(found) - unused)
