"""Adapters aligned with their base: every tensor finds its place, and what does not fit is named."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_merge.errors import ModelMismatch
from hf_merge.merging.components import Shape
from hf_merge.storing.adapted import align_adapted
from hf_merge.storing.adapters import Adapter
from hf_merge.storing.checkpoints import Checkpoint
from hf_merge.storing.families import Family
from tests.storing.test_adapters import edited
from tests.tiny_adapters import load_adapter, save_adapter
from tests.tiny_models import LABELS, TinyFamily


Build = Callable[[str, str], TinyFamily]
WORDS = "embeddings.word_embeddings.weight"
KEY = "encoder.layer.0.attention.self.key"


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def aligned(
    stack: ExitStack,
    base: Path,
    folders: Mapping[str, Path],
    *,
    renamed: Mapping[str, str] | None = None,
    source: str | None = None,
) -> Family:
    """Returns a family of what lies in folders; `source` is what the base is called."""
    opened = stack.enter_context(Checkpoint(source or str(base), base))
    tuned: dict[str, Checkpoint | Adapter] = {}
    for task, folder in folders.items():
        loader: Any = Adapter if (folder / "adapter_config.json").is_file() else Checkpoint
        tuned[task] = stack.enter_context(loader(str(folder), folder))
    return align_adapted(opened, tuned, list(opened.specs), renamed or {})


def folders_of(family: TinyFamily) -> dict[str, Path]:
    return {task: tiny.folder for task, tiny in family.tasks.items()}


def product(family: Family, task: str, module: str) -> Tensor:
    a, b = (family.tasks[task].read(f"{module}.lora_{side}.weight") for side in "AB")
    shapes = family.shapes
    return b.view(shapes[f"{module}.lora_B.weight"]) @ a.view(shapes[f"{module}.lora_A.weight"])


def test_a_family_of_adapters_holds_the_base_once_and_the_adapters_beside(
    stack: ExitStack, tiny_adapters: Build
) -> None:
    tiny = tiny_adapters("bert", "lora")
    family = aligned(stack, tiny.base, folders_of(tiny))
    saved = load_file(tiny.base / "model.safetensors")
    assert family.parameters == sum(tensor.numel() for tensor in saved.values())
    assert set(family.of_base) == saved.keys()
    assert family.adapted[f"{KEY}.lora_A.weight"] == f"{KEY}.weight"
    assert family.shapes[f"{KEY}.lora_B.weight"] == (32, 3)
    assert family.head_parameters() == sum(33 * len(LABELS[task]) for task in tiny.tasks)
    assert family.tasks["colours"].config == {"num_labels": 3}
    for task, tuned in family.tasks.items():
        assert torch.equal(tuned.read(f"{KEY}.weight"), saved[f"{KEY}.weight"])
        own = load_file(tiny.tasks[task].folder / "adapter_model.safetensors")
        a, b = (own[f"base_model.model.bert.{KEY}.lora_{side}.weight"] for side in "AB")
        torch.testing.assert_close(product(family, task, KEY), 2.0 * (b @ a))
        assert torch.equal(tuned.read_head("classifier.bias"), own["base_model.model.classifier.bias"])


def test_a_task_without_a_module_has_there_what_an_adapter_is_before_training(
    stack: ExitStack, tiny_adapters: Build, tmp_path: Path
) -> None:
    for kind, name, start in (("ia3", f"{KEY}.ia3_l", 1.0), ("lora", f"{KEY}.lora_B.weight", 0.0)):
        tiny = tiny_adapters("bert", kind)
        folders = folders_of(tiny)
        folders["weather"] = tmp_path / kind
        shutil.copytree(tiny.tasks["weather"].folder, folders["weather"])
        path = folders["weather"] / "adapter_model.safetensors"
        kept = {key: tensor for key, tensor in load_file(path).items() if f".{KEY}." not in key}
        save_file(kept, path)
        family = aligned(stack, tiny.base, folders)
        assert bool((family.tasks["weather"].read(name) == start).all())
        assert not bool((family.tasks["animals"].read(name) == start).all())
        assert bool((family.origin.read(name, torch.empty(family.shapes[name])) == start).all())


def test_smaller_ranks_are_filled_up_and_other_scales_multiplied_in(
    stack: ExitStack, tiny_adapters: Build, tmp_path: Path
) -> None:
    tiny = tiny_adapters("bert", "lora")
    data = tiny.tasks["weather"].files["train"]
    changes = {"r": 2, "lora_alpha": 5, "use_rslora": True}
    save_adapter("bert", "lora", tiny.base, tmp_path / "small", LABELS["weather"], data, **changes)
    family = aligned(stack, tiny.base, folders_of(tiny) | {"weather": tmp_path / "small"})
    own = load_file(tmp_path / "small" / "adapter_model.safetensors")
    a, b = (own[f"base_model.model.bert.{KEY}.lora_{side}.weight"] for side in "AB")
    torch.testing.assert_close(product(family, "weather", KEY), (5 / 2**0.5) * (b @ a))


def test_a_trained_bias_is_the_adapters_own(stack: ExitStack, tiny_adapters: Build, tmp_path: Path) -> None:
    tiny = tiny_adapters("bert", "lora")
    data = tiny.tasks["weather"].files["train"]
    save_adapter("bert", "lora", tiny.base, tmp_path / "biased", LABELS["weather"], data, bias="lora_only")
    family = aligned(stack, tiny.base, folders_of(tiny) | {"weather": tmp_path / "biased"})
    own = load_file(tmp_path / "biased" / "adapter_model.safetensors")
    saved = load_file(tiny.base / "model.safetensors")
    assert family.adapted[f"{KEY}.bias"] == f"{KEY}.bias"
    assert torch.equal(
        family.tasks["weather"].read(f"{KEY}.bias"), own[f"base_model.model.bert.{KEY}.base_layer.bias"]
    )
    assert torch.equal(family.tasks["animals"].read(f"{KEY}.bias"), saved[f"{KEY}.bias"])


def test_adapters_of_transformers_4_find_their_place_on_renamed_models(
    stack: ExitStack, tiny_adapters: Build, tmp_path: Path
) -> None:
    tiny = tiny_adapters("vit", "ia3")
    memory = {
        f"layers.{layer}.{new}.{what}": f"encoder.layer.{layer}.{old}.{what}"
        for layer in range(3)
        for new, old in (
            ("attention.k_proj", "attention.attention.key"),
            ("attention.v_proj", "attention.attention.value"),
            ("mlp.fc2", "output.dense"),
        )
        for what in ("weight", "bias")
    }
    found = aligned(stack, tiny.base, folders_of(tiny), renamed=memory)
    folders = {}
    for task, folder in folders_of(tiny).items():
        held = load_file(folder / "adapter_model.safetensors")
        for before, after in memory.items():
            module, old = before.removesuffix(".weight"), after.removesuffix(".weight")
            held = {key.replace(f".{module}.", f".{old}."): tensor for key, tensor in held.items()}
        folders[task] = edited(folder, tmp_path / task)
        save_file(held, folders[task] / "adapter_model.safetensors")
    again = aligned(stack, tiny.base, folders)
    assert again.shapes == found.shapes and again.adapted == found.adapted
    assert any("attention.attention.key.ia3_l" in name for name in again.shapes)
    for name in again.adapted:
        assert torch.equal(again.tasks["animals"].read(name), found.tasks["animals"].read(name))


@pytest.mark.parametrize(
    ("layout", "kind"), [("bert", "ia3"), ("bert", "lora"), ("gpt2", "ia3"), ("gpt2", "lora"), ("distilbert", "ia3")]
)
def test_beside_a_whole_fine_tune_an_adapter_becomes_one(
    stack: ExitStack,
    tiny_adapters: Build,
    tiny_family: Callable[[str], TinyFamily],
    layout: str,
    kind: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tiny, whole = tiny_adapters(layout, kind), tiny_family(layout)
    family = aligned(
        stack, tiny.base, {"whole": whole.tasks["animals"].folder, "adapter": tiny.tasks["colours"].folder}
    )
    merged: Any = load_adapter(tiny, "colours")
    assert isinstance(merged, PeftModel)
    wanted = merged.merge_and_unload().base_model.state_dict()
    assert not family.adapted and "'adapter' become whole fine-tunes here" in caplog.text
    assert family.shapes
    for name in family.shapes:
        if name in wanted:
            read = family.tasks["adapter"].read(name, torch.empty(family.shapes[name]))
            torch.testing.assert_close(read, wanted[name], atol=1e-6, rtol=1e-5)


def test_adapters_of_both_kinds_become_whole_fine_tunes(
    stack: ExitStack, tiny_adapters: Build, caplog: pytest.LogCaptureFixture
) -> None:
    vectors, updates = tiny_adapters("bert", "ia3"), tiny_adapters("bert", "lora")
    folders = {"a": vectors.tasks["animals"].folder, "b": updates.tasks["animals"].folder}
    family = aligned(stack, vectors.base, folders)
    assert not family.adapted and "beside adapters of another kind" in caplog.text
    saved = load_file(vectors.base / "model.safetensors")
    for task in folders:
        assert not torch.equal(family.tasks[task].read(f"{KEY}.weight"), saved[f"{KEY}.weight"])
        assert torch.equal(family.tasks[task].read(WORDS), saved[WORDS])


def test_an_adapter_of_another_base_is_named_with_both(stack: ExitStack, tiny_adapters: Build, tmp_path: Path) -> None:
    tiny = tiny_adapters("bert", "ia3")
    folder = edited(tiny.tasks["animals"].folder, tmp_path / "x", settings={"base_model_name_or_path": "org/other"})
    with pytest.raises(ModelMismatch, match="an adapter of 'org/other', where the base is 'me/base'"):
        aligned(stack, tiny.base, {"animals": folder}, source="me/base")


@pytest.mark.parametrize("named", ["org/Base", "./models/other", None])
def test_a_mirror_or_a_path_of_its_author_is_no_other_base(
    stack: ExitStack, tiny_adapters: Build, tmp_path: Path, named: str | None
) -> None:
    tiny = tiny_adapters("bert", "ia3")
    folder = edited(tiny.tasks["animals"].folder, tmp_path / "x", settings={"base_model_name_or_path": named})
    assert aligned(stack, tiny.base, {"animals": folder}, source="me/base").adapted


def test_modules_that_the_base_lacks_are_named(stack: ExitStack, tiny_adapters: Build) -> None:
    other, tiny = tiny_adapters("gpt2", "ia3"), tiny_adapters("bert", "ia3")
    with pytest.raises(ModelMismatch, match=r"target module 'transformer\.h\.0\.attn\.c_attn' and \d+ more is not"):
        aligned(stack, tiny.base, {"animals": other.tasks["animals"].folder})


@pytest.mark.parametrize("shape", [(31, 1), (1, 33), (32, 2)])
def test_vectors_of_another_width_are_named_with_both_shapes(
    stack: ExitStack, tiny_adapters: Build, tmp_path: Path, shape: Shape
) -> None:
    tiny = tiny_adapters("bert", "ia3")
    name = f"base_model.model.bert.{KEY}.ia3_l"
    folder = edited(tiny.tasks["animals"].folder, tmp_path / "x", tensors={name: torch.ones(shape)})
    with pytest.raises(
        ModelMismatch, match=rf"has shape \[{shape[0]}, {shape[1]}\], which does not act on .*\[32, 32\]"
    ):
        aligned(stack, tiny.base, {"animals": folder})


def test_a_trained_bias_beside_a_whole_fine_tune_is_the_adapters(
    stack: ExitStack, tiny_adapters: Build, tiny_family: Callable[[str], TinyFamily], tmp_path: Path
) -> None:
    tiny, data = tiny_adapters("bert", "lora"), tiny_adapters("bert", "lora").tasks["weather"].files["train"]
    save_adapter("bert", "lora", tiny.base, tmp_path / "biased", LABELS["weather"], data, bias="all")
    folders = {"whole": tiny_family("bert").tasks["animals"].folder, "biased": tmp_path / "biased"}
    family = aligned(stack, tiny.base, folders)
    own = load_file(tmp_path / "biased" / "adapter_model.safetensors")
    for name in (f"{KEY}.bias", "embeddings.LayerNorm.bias"):
        short = f"base_model.model.bert.{name}"
        trained = own[short] if short in own else own[short.replace(".bias", ".base_layer.bias")]
        assert torch.equal(family.tasks["biased"].read(name), trained)


@pytest.mark.parametrize(
    ("layer", "width", "labels"),
    [
        ("classifier.dense", 32, 150),
        ("classifier.dense", 32, 32),  # as many as the layer before is wide
        ("projector", 16, 150),  # Wav2Vec2's and Whisper's, which narrows
        ("projector", 16, 3),
        ("projector", 64, 150),
    ],
)
def test_the_labels_of_a_head_of_two_layers_are_counted_at_its_end(
    stack: ExitStack, tiny_adapters: Build, tmp_path: Path, layer: str, width: int, labels: int
) -> None:
    tiny = tiny_adapters("bert", "ia3")
    tensors = {
        f"base_model.model.{layer}.weight": torch.zeros(width, 32),
        "base_model.model.classifier.weight": torch.zeros(labels, width),
        "base_model.model.classifier.bias": torch.zeros(labels),
    }
    folder = edited(tiny.tasks["animals"].folder, tmp_path / "wide", tensors=tensors)
    assert aligned(stack, tiny.base, {"animals": folder}).tasks["animals"].config == {"num_labels": labels}
