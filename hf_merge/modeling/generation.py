"""Writing on from prompts with transformers' `generate`, in batches, as if each prompt had come alone.

Only options that choose among tokens can be given: transformers' own `generate` takes others too, some of which fetch
code or models.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from threading import RLock
from typing import Any

import torch
from torch import Tensor

from hf_merge.errors import InputError, nearest


OPTIONS: Mapping[str, type] = {
    "do_sample": bool, "early_stopping": bool, "length_penalty": float, "min_new_tokens": int,
    "no_repeat_ngram_size": int, "num_beams": int, "repetition_penalty": float, "temperature": float, "top_k": int,
    "top_p": float,
}  # fmt: skip
_LEAST = {"min_new_tokens": 0, "no_repeat_ngram_size": 0, "num_beams": 1, "top_k": 0}
_LEAST_SEED, _MOST_SEED = -(1 << 63), (1 << 64) - 1  # what torch takes
_CHANCE = RLock()  # torch has one state of chance for a process, whatever the model and the thread


def check_options(options: Mapping[str, Any], seed: int | None) -> None:
    """Refuses options that are none of `OPTIONS`, of another type or out of range, and sampling without a seed.

    Raises:
        InputError: As said; the message names the nearest option.
    """
    for name, value in options.items():
        if name not in OPTIONS:
            raise InputError(f"generate takes no option '{name:.80}'.{nearest(name[:80], OPTIONS)}")
        _check_option(name, value)
    if seed is not None and (type(seed) is not int or not _LEAST_SEED <= seed <= _MOST_SEED):
        raise InputError(f"seed is {seed!r:.80}; give a whole number from -2**63 to 2**64 - 1, like 0.")
    if options.get("do_sample") and seed is None:
        raise InputError("do_sample draws tokens by chance: give seed= as well, so that it can be repeated.")
    if seed is not None and not options.get("do_sample"):
        raise InputError(f"seed is {seed}, but nothing is drawn: give do_sample=True as well, or no seed.")


def _check_option(name: str, value: Any) -> None:
    fits = isinstance(value, OPTIONS[name]) or (OPTIONS[name] is float and isinstance(value, int))
    if not fits or (OPTIONS[name] is not bool and isinstance(value, bool)):
        raise InputError(f"The option {name} is {value!r:.80}; give {OPTIONS[name].__name__}.")
    if isinstance(value, float) and not isfinite(value):
        raise InputError(f"The option {name} is {value}; give a finite number.")
    # transformers looks at some of these nowhere, and beams below one end in a tensor without rows.
    if name in _LEAST and value < _LEAST[name]:
        raise InputError(f"The option {name} is {value}; give {_LEAST[name]} or more.")


@torch.inference_mode()
def written(
    model: Any,
    inputs: Mapping[str, Tensor],
    max_new_tokens: int,
    options: Mapping[str, Any] | None = None,
) -> list[list[int]]:
    """Returns the tokens that a language model writes after each prompt, which is not repeated.

    Args:
        model: A language model of transformers.
        inputs: `input_ids` and `attention_mask` [batch, length]; a decoder's padded on the left.
        max_new_tokens: The most tokens to write.
        options: Some of `OPTIONS`, as `check_options` lets pass; none write the likeliest token each time.

    Raises:
        InputError: transformers refuses the options.
    """
    try:
        ids = model.generate(**inputs, max_new_tokens=max_new_tokens, **{"do_sample": False, **(options or {})})
    except (ValueError, TypeError) as error:
        raise InputError(
            f"transformers refuses to generate so: {' '.join(str(error).split())[:300]} Change the options."
        ) from error
    start = 1 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    tokens: list[list[int]] = ids[:, start:].tolist()
    return tokens


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Begins torch's chance at a seed for a while, None for nowhere; afterwards it goes on as if nothing was drawn.

    One thread of a process draws at a time, the others wait; whoever gives no seed draws nothing and never waits.
    """
    if seed is None:
        yield
        return
    with _CHANCE, torch.random.fork_rng():  # on all devices: the model may run on any
        torch.manual_seed(seed)
        yield
