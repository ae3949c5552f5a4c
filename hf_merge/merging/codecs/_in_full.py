"""Tensors that a codec stores as they are: what each of them must be."""

from collections.abc import Mapping

import torch
from torch import Tensor


def fault_in_full(name: str, tensors: Mapping[str, Tensor], parts: tuple[str, ...] = ()) -> str | None:
    """Returns what is wrong with a tensor stored in full (the end of a sentence), or None: float32, finite and alone.

    Args:
        name: The tensor's name, which is there.
        tensors: Encoded tensors by stored name.
        parts: What stands beside a tensor that is not stored in full.
    """
    stored = tensors[name]
    if stored.dtype != torch.float32 or any(name + part in tensors for part in parts):
        alone = f" without {' and '.join(part.removeprefix('.') for part in parts)}" if parts else ""
        return f"is {stored.dtype}, where float32{alone} is stored in full"
    return None if bool(torch.isfinite(stored).all()) else "holds NaN or infinity"
