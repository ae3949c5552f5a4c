from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    T5Config,
    T5ForSequenceClassification,
)

from hf_merge.errors import CheckpointDamaged, ModelMismatch, UnsupportedArchitecture
from hf_merge.modeling.assembly import Head, Kind, TaskModel, require_kind
from hf_merge.modeling.features import FeatureModel
from hf_merge.storing.checkpoints import Checkpoint
from hf_merge.storing.families import Family, FineTuned, align
from tests.tiny_models import IMAGE_LAYOUTS, IMAGE_SIDE, LAYOUTS, TEXT_LAYOUTS, TinyFamily, vocabulary


PAD = {"bert": 0, "roberta": 1, "distilbert": 0, "gpt2": 0}


def batch_of(layout: str, seed: int = 0) -> dict[str, Tensor]:
    """Six rows of different lengths, padded, or six images."""
    generator = torch.Generator().manual_seed(seed)
    if layout in IMAGE_LAYOUTS:
        return {"pixel_values": torch.randn(6, 3, IMAGE_SIDE, IMAGE_SIDE, generator=generator)}
    ids = torch.randint(5, len(vocabulary(layout)), (6, 8), generator=generator)
    mask = torch.arange(8)[None, :] < torch.tensor([8, 5, 3, 8, 1, 7])[:, None]
    return {"input_ids": ids.masked_fill(~mask, PAD[layout]), "attention_mask": mask.long()}


def opened(family: TinyFamily) -> Family:
    return align(
        Checkpoint(str(family.base), family.base),
        {name: Checkpoint(str(task.folder), task.folder) for name, task in family.tasks.items()},
    )


def skeleton(family: TinyFamily, aligned: Family, task: str) -> TaskModel:
    head = Head.of(aligned.tasks[task].config)
    return TaskModel(aligned.base.config, family.kind, head, pad_token_id=PAD.get(family.layout))  # type: ignore[arg-type]


def head_of(aligned: Family, task: str) -> dict[str, Tensor]:
    tuned = aligned.tasks[task]
    return {name: tuned.read_head(name) for name in tuned.head}


def backbone_of(aligned: Family, task: str) -> dict[str, Tensor]:
    return {name: aligned.tasks[task].read(name) for name in aligned.shapes}


def assembled(family: TinyFamily, aligned: Family, task: str) -> TaskModel:
    model = skeleton(family, aligned, task)
    model.set_head(head_of(aligned, task))
    model.set_backbone(backbone_of(aligned, task), aligned.base.trunk)
    model.require_complete()
    return model


def reference(family: TinyFamily, task: str) -> PreTrainedModel:
    loader = AutoModelForImageClassification if family.kind == "image" else AutoModelForSequenceClassification
    model: PreTrainedModel = loader.from_pretrained(family.tasks[task].folder)
    model.eval()
    # transformers maps the file, and a matrix product may differ in the last bit by where its weights lie in memory.
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


@torch.inference_mode()
def logits_of(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    logits: Tensor = model(**batch).logits
    return logits


@pytest.fixture(params=LAYOUTS)
def family(request: pytest.FixtureRequest, tiny_family: Callable[[str], TinyFamily]) -> TinyFamily:
    return tiny_family(request.param)


@pytest.fixture
def bert(tiny_family: Callable[[str], TinyFamily]) -> TinyFamily:
    return tiny_family("bert")


@pytest.fixture
def aligned(bert: TinyFamily) -> Iterator[Family]:
    with opened(bert) as family:
        yield family


def test_an_assembled_model_answers_as_transformers_does(family: TinyFamily) -> None:
    batch = batch_of(family.layout)
    with opened(family) as aligned:
        for task in family.tasks:
            expected = logits_of(reference(family, task), batch)
            assert torch.equal(assembled(family, aligned, task).logits(batch), expected)


def test_names_are_those_of_the_tasks_own_checkpoint(family: TinyFamily) -> None:
    with opened(family) as aligned:
        task = next(iter(family.tasks))
        tuned = aligned.tasks[task]
        assert isinstance(tuned, FineTuned)
        assert set(assembled(family, aligned, task).tensors()) == set(tuned.checkpoint.specs)


def test_experts_are_swapped_without_a_copy(bert: TinyFamily, aligned: Family) -> None:
    model = assembled(bert, aligned, "animals")
    batch = batch_of("bert")
    before = model.logits(batch)
    other = backbone_of(aligned, "colours")
    model.set_backbone(other, aligned.base.trunk)
    held = model.tensors()
    assert all(held[f"bert.{name}"].data_ptr() == tensor.data_ptr() for name, tensor in other.items())
    assert not torch.equal(model.logits(batch), before)
    model.set_backbone(backbone_of(aligned, "animals"), aligned.base.trunk)
    assert torch.equal(model.logits(batch), before)


def test_models_share_what_both_were_given(bert: TinyFamily, aligned: Family) -> None:
    shared = backbone_of(aligned, "colours")
    models = [skeleton(bert, aligned, task) for task in ("animals", "colours")]
    for model in models:
        model.set_backbone(shared, aligned.base.trunk)
    name = "bert.encoder.layer.0.attention.self.query.weight"
    first, second = (model.tensors()[name] for model in models)
    assert first.data_ptr() == second.data_ptr()


def test_clearing_lets_go_of_the_backbone_and_keeps_the_head(bert: TinyFamily, aligned: Family) -> None:
    model = assembled(bert, aligned, "animals")
    model.clear()
    sizes = {name: tensor.numel() for name, tensor in model.tensors().items()}
    assert {name for name, size in sizes.items() if size} == set(aligned.tasks["animals"].head)
    with pytest.raises(ModelMismatch, match=r"lacks 55 tensors: bert\.embeddings"):
        model.require_complete()


def test_a_fresh_skeleton_holds_no_weights(bert: TinyFamily, aligned: Family) -> None:
    assert sum(tensor.numel() for tensor in skeleton(bert, aligned, "animals").tensors().values()) == 0


def test_every_tensor_that_is_missing_is_named(bert: TinyFamily, aligned: Family) -> None:
    model = skeleton(bert, aligned, "animals")
    model.set_backbone(backbone_of(aligned, "animals"), aligned.base.trunk)
    with pytest.raises(ModelMismatch, match=r"lacks 2 tensors: classifier\.bias, classifier\.weight"):
        model.require_complete()


def test_tensors_without_a_place_or_of_another_shape_are_refused(bert: TinyFamily, aligned: Family) -> None:
    model = skeleton(bert, aligned, "animals")
    with pytest.raises(ModelMismatch, match=r"'score\.weight' has no place in BertForSequenceClassification"):
        model.set_head({"score.weight": torch.zeros(2, 2)})
    with pytest.raises(ModelMismatch, match=r"has no place"):
        model.set_backbone({"encoder.layer.7.output.dense.bias": torch.zeros(32)}, "")
    with pytest.raises(ModelMismatch, match=r"'classifier\.bias' has shape \[3\] where .* needs \[2\]"):
        model.set_head({"classifier.bias": torch.zeros(3)})


def test_no_backbone_module_where_the_head_reaches_into_it(bert: TinyFamily, aligned: Family) -> None:
    model = assembled(bert, aligned, "animals")
    assert model.backbone_module() is model.module.get_submodule("bert")
    model.set_head({"bert.pooler.dense.bias": torch.zeros(32)})
    assert model.backbone_module() is None


def test_clip_has_no_backbone_module(tiny_family: Callable[[str], TinyFamily]) -> None:
    clip = tiny_family("clip_vision")
    with opened(clip) as aligned:
        assert assembled(clip, aligned, "animals").backbone_module() is None


def test_building_in_threads_leaves_torch_as_it_was(bert: TinyFamily, aligned: Family) -> None:
    before = torch.nn.init.kaiming_uniform_, torch.nn.init.normal_
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: skeleton(bert, aligned, "animals"), range(24)))
    assert (torch.nn.init.kaiming_uniform_, torch.nn.init.normal_) == before


def test_building_draws_no_random_numbers(bert: TinyFamily, aligned: Family) -> None:
    before = torch.random.get_rng_state()
    skeleton(bert, aligned, "animals")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_decoder_takes_the_padding_token_it_is_told(tiny_family: Callable[[str], TinyFamily]) -> None:
    gpt2 = tiny_family("gpt2")
    with opened(gpt2) as aligned:
        assert aligned.base.config.get("pad_token_id") is None
        head = Head.of(aligned.tasks["animals"].config)
        model = TaskModel(aligned.base.config, "text", head)
        model.set_head(head_of(aligned, "animals"))
        model.set_backbone(backbone_of(aligned, "animals"), aligned.base.trunk)
        with pytest.raises(ValueError, match="padding token"):
            model.logits(batch_of("gpt2"))


def test_pixels_are_converted_to_the_type_of_the_weights(tiny_family: Callable[[str], TinyFamily]) -> None:
    vit = tiny_family("vit")
    batch = batch_of("vit")
    with opened(vit) as aligned:
        model = assembled(vit, aligned, "animals")
        full = model.logits(batch)
        for name, tensor in model.tensors().items():
            model.put(name, tensor.bfloat16())
        half = model.logits(batch)
    assert half.dtype == torch.bfloat16
    assert torch.allclose(half.float(), full, atol=1.0)


@pytest.mark.parametrize(
    "harmful",
    [
        {"auto_map": {"AutoModelForSequenceClassification": "evil.Model"}},
        {"_attn_implementation": "someone/kernel"},
        {"attn_implementation": "someone/kernel"},
        {"_attn_implementation_internal": "someone/kernel"},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
        {"dtype": "float16"},
        {"torch_dtype": "bfloat16"},
        {"return_dict": False},
        {"output_hidden_states": True},
        {"architectures": ["Evil"], "id2label": {"0": "a"}, "num_labels": 9, "problem_type": "regression"},
    ],
)
def test_keys_that_choose_code_precision_or_labels_are_dropped(
    bert: TinyFamily, aligned: Family, harmful: dict[str, Any]
) -> None:
    aligned.base.config.update(harmful)
    batch = batch_of("bert")
    model = assembled(bert, aligned, "animals")
    assert torch.equal(model.logits(batch), logits_of(reference(bert, "animals"), batch))
    assert model.module.config._attn_implementation == "sdpa"
    assert not hasattr(model.module.config, "auto_map")


def test_keys_inside_inner_configurations_are_dropped_as_well(tiny_family: Callable[[str], TinyFamily]) -> None:
    clip = tiny_family("clip_vision")
    batch = batch_of("clip_vision")
    with opened(clip) as aligned:
        aligned.base.config["vision_config"] |= {"dtype": "bfloat16", "_attn_implementation": "someone/kernel"}
        model = assembled(clip, aligned, "animals")
    assert torch.equal(model.logits(batch), logits_of(reference(clip, "animals"), batch))


def test_unknown_model_types_are_named() -> None:
    with pytest.raises(UnsupportedArchitecture, match="does not know the model type 'bert9000'"):
        TaskModel({"model_type": "bert9000"}, "text", Head(2))
    with pytest.raises(UnsupportedArchitecture, match="does not know the model type 'bert9000'"):
        FeatureModel({"model_type": "bert9000"}, [], "", None)
    with pytest.raises(UnsupportedArchitecture, match="model type 'None'"):
        TaskModel({}, "text", Head(2))


def test_code_that_comes_with_a_checkpoint_is_refused_with_the_reason() -> None:
    config = {"model_type": "inhouse", "auto_map": {"AutoModel": "modeling_inhouse.Model"}}
    with pytest.raises(UnsupportedArchitecture, match=r"'inhouse' is code .*auto_map.* never runs code from a repo"):
        require_kind(config, "text")


def test_a_known_type_with_code_beside_it_is_run_by_transformers_own(caplog: pytest.LogCaptureFixture) -> None:
    require_kind({"model_type": "bert", "auto_map": {"AutoModel": "modeling_evil.Evil"}}, "text")
    assert "never run: transformers' own 'bert' is" in caplog.text


@pytest.mark.parametrize(
    ("model_type", "kind", "column"), [("bert", "image", "text"), ("vit", "text", "image"), ("t5", "image", "text")]
)
def test_columns_of_the_wrong_kind_are_told_the_right_one(model_type: str, kind: Kind, column: str) -> None:
    with pytest.raises(
        UnsupportedArchitecture,
        match=rf"no {kind} classification model for the model type '{model_type}'\. .* name the '{column}' column",
    ):
        require_kind({"model_type": model_type}, kind)


def test_model_types_without_a_head_of_any_kind_are_refused() -> None:
    with pytest.raises(UnsupportedArchitecture, match=r"no text classification model for the model type 'sam'\.$"):
        require_kind({"model_type": "sam"}, "text")


def test_model_types_without_a_head_of_the_kind_are_refused(aligned: Family) -> None:
    with pytest.raises(UnsupportedArchitecture, match="no image classification model for the model type 'bert'"):
        TaskModel(aligned.base.config, "image", Head(2))


@pytest.mark.parametrize(
    "damage",
    [
        {"hidden_size": "wide"},
        {"hidden_size": -3},
        {"hidden_size": 33},
        {"hidden_act": "nothing"},
        {"vocab_size": 10**12},
        {"num_hidden_layers": [1]},
    ],
)
def test_impossible_configurations_are_one_error(aligned: Family, damage: dict[str, Any]) -> None:
    with pytest.raises(CheckpointDamaged, match="describes no 'bert' model that transformers can build"):
        TaskModel(aligned.base.config | damage, "text", Head(2))


def test_tied_tensors_are_set_together(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"vocab_size": 20, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    config = T5Config(**sizes, eos_token_id=1, pad_token_id=0)
    config.decoder_start_token_id = 0
    T5ForSequenceClassification(config).save_pretrained(tmp_path)
    with Checkpoint("t5", tmp_path) as checkpoint:
        model = TaskModel(checkpoint.config, "text", Head(2))
        for name in checkpoint.specs:
            model.put(name, checkpoint.read(name))
    model.require_complete()
    batch = {"input_ids": torch.tensor([[5, 6, 1], [7, 1, 0]]), "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
    assert torch.equal(
        model.logits(batch), logits_of(T5ForSequenceClassification.from_pretrained(tmp_path).eval(), batch)
    )


# The feature model


@pytest.mark.parametrize("layers", [None, 0, 1, 2, 99])
def test_feature_models_stop_after_the_blocks_asked_for(family: TinyFamily, layers: int | None) -> None:
    batch = batch_of(family.layout)
    with opened(family) as aligned:
        model = FeatureModel(aligned.base.config, list(aligned.shapes), aligned.base.trunk, layers)
        model.set_tensors({name: aligned.base.read(name) for name in model.names})
    states = model.hidden_states(batch)
    assert torch.allclose(states, _pretrained_states(family, batch, layers), atol=1e-6)


@torch.inference_mode()
def _pretrained_states(family: TinyFamily, batch: dict[str, Tensor], layers: int | None) -> Tensor:
    """What transformers gives: the state after so many blocks, through the last norm where the layout has one."""
    if family.layout == "clip_vision":
        whole = reference_base(family)
        model, last = whole.vision_model, nn.Identity()
    else:
        model = AutoModel.from_pretrained(family.base).eval()
        norms = {"gpt2": "ln_f", "vit": "layernorm", "dinov2": "layernorm"}
        last = getattr(model, norms[family.layout]) if family.layout in norms else nn.Identity()
    given = model(**batch, output_hidden_states=True)
    states: Tensor = given.last_hidden_state if layers is None or layers >= 3 else last(given.hidden_states[layers])
    return states


def reference_base(family: TinyFamily) -> Any:
    return AutoModelForImageClassification.from_pretrained(family.base).eval()


def test_feature_models_name_only_what_they_run(bert: TinyFamily, aligned: Family) -> None:
    names = FeatureModel(aligned.base.config, list(aligned.shapes), aligned.base.trunk, 0).names
    assert set(names) == {name for name in aligned.shapes if name.startswith("embeddings.")}


def test_feature_models_need_every_tensor_but_a_pooler(aligned: Family) -> None:
    names = [name for name in aligned.shapes if "pooler" not in name]
    FeatureModel(aligned.base.config, names, "", 1)
    names.remove("embeddings.LayerNorm.bias")
    with pytest.raises(ModelMismatch, match=r"needs tensors that the base lacks: embeddings\.LayerNorm\.bias"):
        FeatureModel(aligned.base.config, names, "", 1)


@pytest.mark.parametrize("layout", ["bert", "vit"])
def test_what_a_feature_model_throws_away_lies_where_the_rest_does(
    tiny_family: Callable[[str], TinyFamily], layout: str
) -> None:
    with opened(tiny_family(layout)) as family:
        model = FeatureModel(family.base.config, list(family.shapes), family.base.trunk, None)
        meta = {name: family.base.read(name).to("meta", torch.bfloat16) for name in model.names}
    model.set_tensors(meta)
    model.move_buffers(torch.device("meta"))
    held = {name: (tensor.device.type, tensor.dtype) for name, tensor in model._module.named_parameters()}
    assert set(held.values()) == {("meta", torch.bfloat16)}, "a pooler's zeros, too"
    assert {buffer.device.type for buffer in model._module.buffers()} <= {"meta"}


def test_feature_tensors_of_another_shape_are_refused(aligned: Family) -> None:
    model = FeatureModel(aligned.base.config, list(aligned.shapes), "", 0)
    tensors = {name: aligned.base.read(name) for name in model.names}
    tensors["embeddings.LayerNorm.bias"] = torch.zeros(7)
    with pytest.raises(ModelMismatch, match=r"'embeddings\.LayerNorm\.bias' has shape \[7\]"):
        model.set_tensors(tensors)


def test_layouts_cover_both_kinds() -> None:
    assert set(LAYOUTS) == set(TEXT_LAYOUTS) | set(IMAGE_LAYOUTS)
