"""Scores of answer options under a language model: how likely each is after its prompt, per token.

The score of an option is the mean of log p over its tokens, given the prompt and the tokens before: minus the loss
that transformers computes with the option as labels. Dividing by the length keeps long options from losing for their
length alone.

Source: T-Few, arXiv 2205.05638, section 3.2 (length normalisation).
"""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy


IGNORED = -100  # what transformers' losses pass over


def option_scores(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """Returns the score of every option of every row: [rows, options] float32, the mean log-likelihood per token.

    Args:
        model: A language model of transformers.
        inputs: Of a decoder `input_ids` and `attention_mask` [rows, options, length], prompt and option one after the
            other; of an encoder-decoder [rows, length], the prompt. And `labels` [rows, options, positions]: the
            option's tokens, `IGNORED` elsewhere.
    """
    rows, options = inputs["labels"].shape[:2]
    labels = inputs["labels"].flatten(0, 1)
    counted = labels != IGNORED
    if model.config.is_encoder_decoder:
        logits = _decoded(model, inputs, labels, options)[counted]
    else:
        logits = _continued(model, inputs, counted)
    losses = cross_entropy(logits.float(), labels[counted], reduction="none")
    total = losses.new_zeros(len(labels)).index_add(0, counted.nonzero()[:, 0], losses)
    return (-total / counted.sum(dim=1)).view(rows, options)


def _continued(model: Any, inputs: Mapping[str, Tensor], counted: Tensor) -> Tensor:
    """Returns a decoder's logits [tokens, words] for the tokens that are counted [sequences, positions], in order.

    A row of logits is as long as the vocabulary, and all but a few positions are the prompt's: where a model's last
    layer is a module of its own, it is given only the states that a counted token follows.
    """
    sequences, places = counted.nonzero(as_tuple=True)
    given = {name: inputs[name].flatten(0, 1) for name in ("input_ids", "attention_mask")}

    def pick(_head: nn.Module, states: tuple[Any, ...]) -> tuple[Tensor, ...] | None:
        if len(states) != 1 or not isinstance(states[0], Tensor) or states[0].shape[:2] != counted.shape:
            return None
        return (states[0][sequences, places - 1][None],)

    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(pick) if isinstance(head, nn.Module) else None
    try:
        logits: Tensor = model(**given, **_known(model, use_cache=False)).logits
    finally:
        if handle is not None:
            handle.remove()
    return logits[sequences, places - 1] if logits.shape[:2] == counted.shape else logits[0]


def _decoded(model: Any, inputs: Mapping[str, Tensor], labels: Tensor, options: int) -> Tensor:
    """Returns an encoder-decoder's logits [sequences, positions, words]; each prompt is encoded once."""
    encoded = model.get_encoder()(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    encoded.last_hidden_state = encoded.last_hidden_state.repeat_interleave(options, dim=0)
    # What the decoder begins with is the model's own matter: for mBART it is the option's last token, a language.
    logits: Tensor = model(
        encoder_outputs=encoded,
        attention_mask=inputs["attention_mask"].repeat_interleave(options, dim=0),
        labels=labels,
        **_known(model, use_cache=False),
    ).logits
    return logits


def _known(model: Any, **settings: Any) -> dict[str, Any]:
    """Returns the settings that a model's `forward` knows by name; they spare memory and change no result."""
    known = inspect.signature(model.forward).parameters
    return {name: value for name, value in settings.items() if name in known}
