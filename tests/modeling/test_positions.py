from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModel

from hf_merge.modeling.assembly import Kind
from hf_merge.modeling.positions import UNBOUNDED, positions


@pytest.mark.parametrize(
    ("config", "kind", "expected"),
    [
        ({}, "text", UNBOUNDED),
        ({"model_type": "bert", "max_position_embeddings": 512}, "text", 512),
        ({"model_type": "bert", "max_position_embeddings": -1}, "text", UNBOUNDED),
        ({"model_type": "gpt2", "n_positions": 1024}, "text", 1024),
        ({"model_type": "gpt2", "n_positions": 1024}, "causal", 1024),
        ({"model_type": "t5", "n_positions": 512}, "seq2seq", UNBOUNDED),
        ({"model_type": "t5", "n_positions": 512, "relative_attention_num_buckets": 32}, "text", UNBOUNDED),
        (
            {"model_type": "deberta-v2", "max_position_embeddings": 512, "position_biased_input": False},
            "text",
            UNBOUNDED,
        ),
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, "text", 512),
        ({"model_type": "roberta", "max_position_embeddings": 514}, "text", 512),
    ],
)
def test_positions_are_those_that_a_model_takes(config: dict[str, Any], kind: Kind, expected: int) -> None:
    assert positions(config, kind) == expected


@pytest.mark.parametrize("model_type", ["bert", "roberta", "mpnet", "camembert"])
def test_a_model_takes_as_many_tokens_as_said_and_no_more(model_type: str) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    made: Any = CONFIG_MAPPING[model_type]
    config = made(vocab_size=20, max_position_embeddings=24, **sizes)
    model = AutoModel.from_config(config).eval()
    room = positions(config.to_dict(), "text")
    model(input_ids=torch.full((1, room), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, room + 1), 5))
