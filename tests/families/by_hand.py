"""A task's chain put together by hand: with safetensors, arithmetic and plain transformers, and nothing of ours."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from tests.families.making import LOADERS, MadeFamily


def chain_model(family: MadeFamily, member: Path, task: str, folder: Path) -> PreTrainedModel:
    """Returns a member's model for a task: the fine-tune's folder, decoded experts in the place of its weights."""
    chains: dict[str, Any] = json.loads((member / "chains.json").read_text())
    stored = {name: held for shard in member.glob("experts-*.safetensors") for name, held in load_file(shard).items()}
    state = load_file(family.tuned[task] / "model.safetensors")
    tensors = {entry["name"]: entry["tensors"] for entry in chains["components"]}
    replaced = set()
    for entry in chains["experts"]:
        if entry["id"] not in chains["chains"][task]:
            continue
        for name in tensors[entry["component"]]:
            own = own_name(name, state)
            decoded = decode(stored, f"{entry['id']}/{name}")
            assert decoded.shape == state[own].shape
            state[own] = decoded
            replaced.add(own)
    assert len(replaced) == sum(map(len, tensors.values()))
    shutil.copytree(family.tuned[task], folder)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    model: PreTrainedModel = LOADERS[family.spec.kind].from_pretrained(folder, dtype=torch.float32)
    model.train(False)
    return model


def own_name(name: str, state: dict[str, Tensor]) -> str:
    """Returns what the fine-tune calls the base's tensor: the shortest name outside its head that ends alike."""
    alike = [own for own in state if own == name or own.endswith(f".{name}") or name.endswith(f".{own}")]
    return min(alike, key=lambda own: (own.startswith("classifier."), len(own)))


def decode(stored: dict[str, Tensor], name: str) -> Tensor:
    """Returns a stored tensor as float32: `scale * (q - zero_point)` where it is quantised."""
    held = stored[name]
    if held.dtype != torch.uint8:
        return held
    return stored[f"{name}.scale"] * (held.int() - stored[f"{name}.zero_point"]).float()
