import json
import random
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification, PreTrainedModel

from hf_merge.errors import (
    BudgetTooSmall,
    CheckpointDamaged,
    DigestMismatch,
    InputError,
    MalformedChainMap,
    ModelMismatch,
    RunFolderError,
)
from hf_merge.searching.configuration import Configuration
from hf_merge.serving.model import MergeModel, MergeOutput
from hf_merge.storing.families import Family
from hf_merge.storing.library import Member
from hf_merge.storing.tensors import sha256_of
from tests.modeling.test_assembly import backbone_of, head_of, logits_of, opened, skeleton
from tests.modeling.test_assembly import batch_of as typed_batch_of
from tests.serving.members import MERGED, MIXED, SEPARATE, SHARED, builder_of, rows_of, trained_router, write
from tests.tiny_models import LAYOUTS, TinyFamily


TASK_IDS = torch.tensor([2, 0, 1, 1, 0, 2])


@pytest.fixture
def damaged(routed_member: Path, tmp_path: Path) -> Path:
    """A copy of the member to damage."""
    shutil.copytree(routed_member, tmp_path / "damaged")
    return tmp_path / "damaged"


def batch_of(layout: str, seed: int = 0) -> dict[str, Any]:
    return typed_batch_of(layout, seed)


def named(model: MergeModel, task_ids: Tensor) -> list[str]:
    return [model.tasks[index] for index in task_ids.tolist()]


def assert_equal(one: MergeOutput, other: MergeOutput) -> None:
    assert torch.equal(one.logits, other.logits)
    assert torch.equal(one.task_ids, other.task_ids)


# Logits


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("codec", ["int8", "full"])
def test_a_member_answers_as_the_search_saw_it(
    tiny_family: Callable[[str], TinyFamily], layout: str, codec: str, tmp_path: Path
) -> None:
    tiny, batch = tiny_family(layout), batch_of(layout)
    with opened(tiny) as family:
        write(tiny, family, tmp_path / "member", MIXED, codec=codec)
        model = MergeModel.from_pretrained(tmp_path / "member")
        builder = builder_of(family, codec)
        for index, task in enumerate(model.tasks):
            seen = skeleton(tiny, family, task)
            seen.set_head(head_of(family, task))
            for key in builder.chain(Configuration(MIXED), task):
                seen.set_backbone(builder.decoded(key), family.base.trunk)
            output = model(task, **batch)
            assert torch.equal(output.logits[:, : seen.num_labels], seen.logits(batch))
            assert torch.isneginf(output.logits[:, seen.num_labels :]).all()
            assert output.task_ids.tolist() == [index] * 6


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fine_tunes_kept_apart_in_full_are_the_fine_tunes(
    tiny_family: Callable[[str], TinyFamily], layout: str, tmp_path: Path
) -> None:
    tiny, batch = tiny_family(layout), batch_of(layout)
    with opened(tiny) as family:
        write(tiny, family, tmp_path / "member", SEPARATE, codec="full")
    model = MergeModel.from_pretrained(tmp_path / "member")
    loader = AutoModelForImageClassification if tiny.kind == "image" else AutoModelForSequenceClassification
    for name, task in tiny.tasks.items():
        expected = logits_of(loader.from_pretrained(task.folder).eval(), batch)
        assert torch.allclose(model(name, **batch).logits[:, : task.num_labels], expected, atol=1e-5)


def test_every_row_may_have_its_own_task(model: MergeModel) -> None:
    batch = batch_of("bert")
    output = model(named(model, TASK_IDS), **batch)
    assert torch.equal(output.task_ids, TASK_IDS)
    for row, task in enumerate(named(model, TASK_IDS)):
        alone = model(task, **{name: value[row : row + 1] for name, value in batch.items()})
        assert torch.allclose(output.logits[row], alone.logits[0], atol=1e-5)


def test_without_a_task_the_router_decides(model: MergeModel, bert: TinyFamily) -> None:
    right = []
    for index, task in enumerate(model.tasks):
        texts = rows_of(bert, task)
        routed = model.outputs(texts)
        right += (routed.task_ids == index).tolist()
        assert_equal(routed, model.outputs(texts, task=named(model, routed.task_ids)))
    assert sum(right) / len(right) > 0.9


def test_routing_is_what_route_says(model: MergeModel) -> None:
    batch = batch_of("bert", 3)
    assert torch.equal(model(**batch).task_ids, model.route(**batch))


def test_without_a_router_tasks_must_be_named(bert: TinyFamily, aligned: Family, tmp_path: Path) -> None:
    write(bert, aligned, tmp_path / "member")
    model = MergeModel.from_pretrained(tmp_path / "member")
    with pytest.raises(InputError, match=r"holds no router: name the task of every input with task="):
        model(**batch_of("bert"))
    assert model("animals", **batch_of("bert")).logits.shape == (6, 3)


def test_a_single_task_needs_no_router(bert: TinyFamily, tmp_path: Path) -> None:
    alone = TinyFamily("bert", "text", bert.base, {"colours": bert.tasks["colours"]})
    with opened(alone) as family:
        write(alone, family, tmp_path / "member", ((0,),) * 4)
    model = MergeModel.from_pretrained(tmp_path / "member")
    batch = batch_of("bert")
    assert_equal(model(**batch), model("colours", **batch))
    assert [answer.task for answer in model.predict(["red wall", "a blue sky"])] == ["colours", "colours"]


def test_the_recorded_type_is_the_default(bert: TinyFamily, aligned: Family, tmp_path: Path) -> None:
    write(bert, aligned, tmp_path / "member", dtype="bfloat16")
    batch = batch_of("bert")
    recorded = MergeModel.from_pretrained(tmp_path / "member")
    asked = MergeModel.from_pretrained(tmp_path / "member", dtype=torch.float32)
    assert recorded("animals", **batch).logits.dtype == recorded.dtype == torch.bfloat16
    assert asked("animals", **batch).logits.dtype == asked.dtype == torch.float32
    assert recorded.outputs(["the cat"], task="animals").logits.dtype == torch.float32


def test_threads_may_share_a_model(bert: TinyFamily, aligned: Family, tmp_path: Path) -> None:
    write(bert, aligned, tmp_path / "member", SHARED)
    model = MergeModel.from_pretrained(tmp_path / "member")
    texts = [rows_of(bert, task)[start : start + 5] for task in model.tasks for start in range(0, 20, 5)]
    chosen = [random.Random(index).choices(model.tasks, k=5) for index in range(len(texts))]
    expected = [model.outputs(one, task=tasks) for one, tasks in zip(texts, chosen, strict=True)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            found = pool.map(lambda one, tasks: model.outputs(one, task=tasks), texts, chosen)
            for one, other in zip(found, expected, strict=True):
                assert_equal(one, other)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("animal", r"Unknown task 'animal'\. Did you mean 'animals'\?"),
        (
            ["animals", "colors", "sizes", "sizes", "sizes", "sizes"],
            r"Unknown task 'colors'\. Did you mean 'colours'\?",
        ),
        (["animals"], r"1 tasks for 6 rows"),
    ],
)
def test_unknown_tasks_are_named(model: MergeModel, task: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        model(task, **batch_of("bert"))


def test_batches_that_are_none_are_refused(model: MergeModel) -> None:
    empties: list[dict[str, Any]] = [{}, {"input_ids": torch.zeros(0, 3, dtype=torch.int64)}]
    for empty in empties:
        for call in (model, model.route):
            with pytest.raises(InputError, match="batch is empty"):
                call(**empty)
    with pytest.raises(InputError, match=r"'input_ids' is no tensor .* return_tensors='pt'"):
        model(input_ids=[[1, 2]])  # type: ignore[arg-type]
    several = torch.ones(3, 4, dtype=torch.int64)
    for call in (model, model.route):
        with pytest.raises(InputError, match="'input_ids' has 3, 'attention_mask' has 1"):
            call(input_ids=several, attention_mask=several[:1])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"claim": "0.9"}, "claim is '0.9'"), ({"batch_size": "2"}, "batch_size is '2'; give a whole number"),
        ({"task": [0]}, "task of row 0 is int 0"),
    ],
)  # fmt: skip
def test_settings_of_another_type_are_refused(model: MergeModel, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        model.predict(["the small cat"], **given)


def test_types_may_be_named_and_devices_must_be_there(routed_member: Path) -> None:
    assert MergeModel.from_pretrained(routed_member, dtype="bfloat16").dtype == torch.bfloat16
    strange: list[tuple[dict[str, Any], str]] = [
        ({"dtype": "bf16"}, "dtype is 'bf16'; give one of"), ({"device": "auto"}, "device is 'auto', which cannot be"),
    ]  # fmt: skip
    for given, message in strange:
        with pytest.raises(InputError, match=message):
            MergeModel.from_pretrained(routed_member, **given)


@pytest.mark.parametrize("name", ["special_tokens_map.json", "chat_template.json", "preprocessor_config.json"])
def test_a_file_that_no_digest_covers_is_refused_where_a_tokenizer_would_read_it(damaged: Path, name: str) -> None:
    (damaged / "notes.txt").write_text("which nobody reads")
    MergeModel.from_pretrained(damaged)
    (damaged / name).write_text("{}")
    with pytest.raises(DigestMismatch, match=f"{name} is not in chains.json, and a tokenizer or processor would read"):
        MergeModel.from_pretrained(damaged, tasks=["sizes"])


# Some of the tasks


def test_a_model_of_some_tasks_answers_as_the_whole_one(model: MergeModel, routed_member: Path) -> None:
    part = MergeModel.from_pretrained(routed_member, tasks=["sizes", "animals"])
    assert part.tasks == ("animals", "sizes")
    assert part.cost == model.cost
    assert part.heads == {task: model.heads[task] for task in part.tasks}
    batch = batch_of("bert")
    for index, task in enumerate(part.tasks):
        output = part(task, **batch)
        width = part.heads[task].num_labels
        assert torch.equal(output.logits[:, :width], model(task, **batch).logits[:, :width])
        assert output.task_ids.tolist() == [index] * 6
        assert part.chain(task) == model.chain(task)


def test_a_model_of_some_tasks_routes_among_them(model: MergeModel, routed_member: Path, bert: TinyFamily) -> None:
    part = MergeModel.from_pretrained(routed_member, tasks=["sizes", "animals"])
    texts = [text for task in model.tasks for text in rows_of(bert, task)]
    chosen, free = part.outputs(texts).task_ids, model.outputs(texts).task_ids
    assert set(chosen.tolist()) == {0, 1}
    kept = free != 1  # what goes to a task that was loaded goes there still
    assert torch.equal(chosen[kept] * 2, free[kept])


def test_a_single_task_is_loaded_without_a_router(routed_member: Path, damaged: Path) -> None:
    (damaged / "router.safetensors").unlink()
    part = MergeModel.from_pretrained(damaged, tasks=["colours"])
    batch = batch_of("bert")
    assert part.route(**batch).tolist() == [0] * 6
    whole = MergeModel.from_pretrained(routed_member)
    assert torch.equal(part(**batch).logits, whole("colours", **batch).logits)
    assert len({entry.id for entry in part._member.experts}) == len(whole.chain("colours"))


def test_tasks_that_were_not_loaded_are_said_to_be_so(routed_member: Path) -> None:
    part = MergeModel.from_pretrained(routed_member, tasks=["colours"])
    with pytest.raises(InputError, match=r"'animals' was not loaded: name it in tasks="):
        part("animals", **batch_of("bert"))
    with pytest.raises(InputError, match=r"Unknown task 'colour'\. Did you mean 'colours'\? Known: colours\."):
        part("colour", **batch_of("bert"))
    with pytest.raises(InputError, match=r"Unknown task 'colour'\. Did you mean 'colours'\? Known: animals, colours"):
        MergeModel.from_pretrained(routed_member, tasks=["colour"])


def test_a_model_of_some_tasks_is_not_saved(routed_member: Path, tmp_path: Path) -> None:
    part = MergeModel.from_pretrained(routed_member, tasks=["colours"])
    for save in (part.save_pretrained, part.push_to_hub):
        with pytest.raises(InputError, match=r"only what colours need is loaded.*Load it without tasks= to save it"):
            save(str(tmp_path / "copy"))
    assert not (tmp_path / "copy").exists()


# Predictions


def test_predictions_keep_the_order_of_mixed_inputs(model: MergeModel) -> None:
    inputs: list[str | tuple[str, str]] = [
        "the small cat",
        ("red", "wall paint"),
        "a dog runs",
        ("box of", "two metres"),
        "friendly cat",
    ]
    together = model.predict(inputs, task="colours", batch_size=2)
    assert [answer.task for answer in together] == ["colours"] * 5
    for item, answer in zip(inputs, together, strict=True):
        alone = model.predict([item], task="colours")[0]
        assert (answer.task, answer.label) == (alone.task, alone.label)
        assert answer.score == pytest.approx(alone.score, abs=1e-4)


def test_columns_and_generators_are_answered_as_lists_are(model: MergeModel) -> None:
    texts = ["the small cat", "bright red wall", "two metres long"]
    calls: list[Callable[[Any], Any]] = [
        model.predict, lambda inputs: model.predict(inputs, task="animals"),
        lambda inputs: model.outputs(inputs).logits.tolist(), lambda inputs: model.routes(inputs).tolist(),
        lambda inputs: model.features(inputs).tolist(),
    ]  # fmt: skip
    for call in calls:
        expected = call(texts)
        # A column that was sorted or cut keeps its labels: asked by labels, it answers for other rows.
        assert call(pd.Series(texts, index=[2, 0, 1])) == expected
        assert call(text for text in texts) == expected


def test_tasks_may_differ_between_mixed_inputs(model: MergeModel) -> None:
    inputs: list[str | tuple[str, str]] = ["the small cat", ("red", "wall"), "two metres", ("a", "dog")]
    tasks = ["animals", "colours", "sizes", "animals"]
    found = model.predict(inputs, task=tasks, batch_size=1)
    assert found == [model.predict([item], task=task)[0] for item, task in zip(inputs, tasks, strict=True)]


def test_predictions_are_right_most_of_the_time(model: MergeModel, bert: TinyFamily) -> None:
    texts = rows_of(bert, "animals", "test")
    answers = model.predict(texts)
    right = [
        answer.task == "animals" and str(answer.label) in text for answer, text in zip(answers, texts, strict=True)
    ]
    assert sum(right) / len(right) > 0.6
    assert all(0 <= answer.score <= 1 for answer in answers if answer.label is not None)


def test_a_regression_has_a_value_and_no_label(model: MergeModel) -> None:
    batch = batch_of("bert")
    answer = model.predict(["about two metres"], task="sizes")[0]
    assert answer.label is None
    value = model.outputs(["about two metres"], task="sizes").logits[0]
    assert answer.score == float(value[0])
    assert model("sizes", **batch).logits[:, 1:].isneginf().all()


@pytest.mark.parametrize("layout", ["vit", "clip_vision"])
def test_images_are_answered_too(tiny_family: Callable[[str], TinyFamily], layout: str, tmp_path: Path) -> None:
    tiny = tiny_family(layout)
    with opened(tiny) as family:
        write(tiny, family, tmp_path / "member", MIXED, router=trained_router(tiny, family))
    model = MergeModel.from_pretrained(tmp_path / "member")
    images = rows_of(tiny, "animals")[:7] + rows_of(tiny, "weather")[:6]
    answers = model.predict(images, batch_size=4)
    assert len(answers) == 13
    assert sum(answer.task == "animals" for answer in answers[:7]) >= 5
    assert model.predict(images[::-1], batch_size=13)[0].label == answers[-1].label
    with pytest.raises(InputError, match="Input 1 is str 'a cat'; this model reads images"):
        model.predict([images[0], "a cat"])


def test_nothing_gives_nothing(model: MergeModel) -> None:
    assert model.predict([]) == []
    assert model.outputs([]).logits.shape == (0, 3)


# Chains and materialised models


def test_a_chain_is_one_expert_per_component(model: MergeModel) -> None:
    for task in model.tasks:
        assert model.chain(task) == model.chain_map.chains[task]
        assert len(model.chain(task)) == len(model.chain_map.components)
    with pytest.raises(InputError, match="Unknown task 'nobody'"):
        model.chain("nobody")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_materialised_model_is_an_ordinary_one(
    tiny_family: Callable[[str], TinyFamily], layout: str, tmp_path: Path
) -> None:
    tiny, batch = tiny_family(layout), batch_of(layout)
    with opened(tiny) as family:
        write(tiny, family, tmp_path / "member")
    model = MergeModel.from_pretrained(tmp_path / "member")
    loader = AutoModelForImageClassification if tiny.kind == "image" else AutoModelForSequenceClassification
    for name, task in tiny.tasks.items():
        expected = model(name, **batch).logits[:, : task.num_labels]
        made = model.materialize(name)
        assert torch.equal(logits_of(made, batch), expected)
        made.save_pretrained(tmp_path / name)
        loaded: PreTrainedModel = loader.from_pretrained(tmp_path / name).eval()
        assert all(torch.equal(one, other) for one, other in zip(made.parameters(), loaded.parameters(), strict=True))
        assert torch.allclose(logits_of(loaded, batch), expected, atol=1e-5)
        assert loaded.config.num_labels == task.num_labels
        if task.labels is not None:
            assert loaded.config.id2label == dict(enumerate(task.labels))
        kind = "regression" if task.labels is None else "single_label_classification"
        assert loaded.config.problem_type == kind


def test_materialised_weights_are_its_own(model: MergeModel) -> None:
    batch = batch_of("bert")
    before = model("animals", **batch).logits
    made = model.materialize("animals")
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
    assert torch.equal(model("animals", **batch).logits, before)
    assert not torch.equal(logits_of(made, batch), before[:, :2])


def test_a_materialised_model_can_be_trained(model: MergeModel) -> None:
    made = model.materialize("colours")
    assert all(parameter.requires_grad for parameter in made.parameters())
    loss = made(**batch_of("bert"), labels=torch.tensor([0, 1, 2, 0, 1, 2])).loss
    torch.autograd.backward(loss)
    assert all(parameter.grad is not None for parameter in made.parameters())
    assert not made.training


# Saving and loading


def test_a_saved_model_is_the_same_model(model: MergeModel, routed_member: Path, tmp_path: Path) -> None:
    assert model.save_pretrained(tmp_path / "copy") is None
    again = MergeModel.from_pretrained(tmp_path / "copy")
    batch = batch_of("bert")
    assert_equal(again(**batch), model(**batch))
    assert again.chain_map == model.chain_map
    names = {path.name for path in routed_member.iterdir()}
    assert {path.name for path in (tmp_path / "copy").iterdir()} == names
    assert all((tmp_path / "copy" / name).read_bytes() == (routed_member / name).read_bytes() for name in names)


def test_saving_where_it_was_loaded_from_changes_nothing(damaged: Path) -> None:
    before = {path.name: path.read_bytes() for path in damaged.iterdir()}
    MergeModel.from_pretrained(damaged).save_pretrained(damaged)
    assert {path.name: path.read_bytes() for path in damaged.iterdir()} == before


def test_a_folder_of_something_else_is_left_alone(model: MergeModel, bert: TinyFamily, tmp_path: Path) -> None:
    shutil.copytree(bert.tasks["animals"].folder, tmp_path / "other")
    before = {path.name: path.read_bytes() for path in (tmp_path / "other").iterdir()}
    with pytest.raises(RunFolderError, match="which hf-merge did not write"):
        model.save_pretrained(tmp_path / "other")
    assert {path.name: path.read_bytes() for path in (tmp_path / "other").iterdir()} == before


def test_what_was_damaged_since_loading_is_not_saved(damaged: Path, tmp_path: Path) -> None:
    model = MergeModel.from_pretrained(damaged)
    flip(damaged / "config.json", 20)
    with pytest.raises(DigestMismatch, match=r"config\.json"):
        model.save_pretrained(tmp_path / "copy")
    assert not (tmp_path / "copy" / "chains.json").exists()


def test_what_was_written_over_since_loading_is_not_saved(
    damaged: Path, bert: TinyFamily, aligned: Family, tmp_path: Path
) -> None:
    model = MergeModel.from_pretrained(damaged)
    write(bert, aligned, damaged, SEPARATE)
    with pytest.raises(DigestMismatch, match=r"was written over since it was loaded\. Load it again\."):
        model.save_pretrained(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("pattern", ["experts-*", "router.safetensors", "config.json", "tokenizer.json"])
def test_a_flipped_bit_in_any_file_is_refused(damaged: Path, pattern: str) -> None:
    path = next(damaged.glob(pattern))
    for position in (0, path.stat().st_size // 2, path.stat().st_size - 1):
        flip(path, position)
        with pytest.raises(DigestMismatch, match=path.name):
            MergeModel.from_pretrained(damaged)
        flip(path, position)
    assert MergeModel.from_pretrained(damaged).tasks


def test_a_missing_file_is_named(damaged: Path) -> None:
    (damaged / "router.safetensors").unlink()
    with pytest.raises(DigestMismatch, match=r"router\.safetensors"):
        MergeModel.from_pretrained(damaged)


def rewrite(folder: Path, name: str, content: bytes) -> None:
    """Exchanges a file and makes the map vouch for it, as one who means harm would."""
    (folder / name).write_bytes(content)
    chain_map = json.loads((folder / "chains.json").read_bytes())
    chain_map["files"][name] = {"sha256": sha256_of(folder / name), "bytes": len(content)}
    (folder / "chains.json").write_text(json.dumps(chain_map))


def test_tensors_of_another_shape_are_refused_before_they_run(damaged: Path) -> None:
    shard = next(damaged.glob("experts-*"))
    tensors = load_file(shard)
    name = next(name for name in tensors if name.endswith("attention.self.query.weight"))
    tensors[name] = tensors[name].reshape(16, 64)
    save_file(tensors, shard)
    rewrite(damaged, shard.name, shard.read_bytes())
    model = MergeModel.from_pretrained(damaged)
    with pytest.raises(ModelMismatch, match=r"has shape \[16, 64\]"):
        for task in model.tasks:
            model.predict(["a cat"], task=task)


def test_a_file_that_is_written_over_between_loading_and_first_use_is_refused(damaged: Path) -> None:
    model = MergeModel.from_pretrained(damaged)
    for shard in damaged.glob("experts-*"):
        shard.write_bytes(shard.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(DigestMismatch, match="experts-"):
        for task in model.tasks:
            model.predict(["a cat"], task=task)


def test_a_router_of_other_tasks_is_refused(damaged: Path) -> None:
    tensors = load_file(damaged / "router.safetensors")
    for name in ("router/net.8.weight", "router/net.8.bias"):
        tensors[name] = tensors[name][:2].clone()
    save_file(tensors, damaged / "router.safetensors")
    rewrite(damaged, "router.safetensors", (damaged / "router.safetensors").read_bytes())
    model = MergeModel.from_pretrained(damaged)
    assert model.predict(["a text"], task="animals"), "who names the task needs no router"
    with pytest.raises(MalformedChainMap, match="the router knows 2 tasks where there are 3"):
        model.predict(["a text"])


@pytest.mark.parametrize("content", [b"[]", b"{}", b'{"model_type": 3}'])
def test_a_configuration_without_a_model_type_is_refused(damaged: Path, content: bytes) -> None:
    rewrite(damaged, "config.json", content)
    with pytest.raises(CheckpointDamaged, match=r"config\.json names no model_type"):
        MergeModel.from_pretrained(damaged)


def test_code_that_a_folder_brings_is_never_run(damaged: Path) -> None:
    (damaged / "modeling_evil.py").write_text("raise SystemExit('run')")
    config = json.loads((damaged / "config.json").read_bytes())
    config["auto_map"] = {"AutoModelForSequenceClassification": "modeling_evil.Evil"}
    rewrite(damaged, "config.json", json.dumps(config).encode())
    assert MergeModel.from_pretrained(damaged).materialize("animals").config.model_type == "bert"


def test_a_budget_below_the_member_is_refused(routed_member: Path) -> None:
    cost = Member(routed_member).chain_map.cost
    assert MergeModel.from_pretrained(routed_member, budget=cost).cost == cost
    with pytest.raises(BudgetTooSmall, match=f"costs {cost:.4f}"):
        MergeModel.from_pretrained(routed_member, budget=cost - 1e-6)


def test_the_mixins_registry_knows_the_library() -> None:
    assert MergeModel._hub_mixin_info.model_card_data.library_name == "hf-merge"


def test_merged_tasks_share_their_weights(bert: TinyFamily, aligned: Family, tmp_path: Path) -> None:
    write(bert, aligned, tmp_path / "member", MERGED)
    model = MergeModel.from_pretrained(tmp_path / "member")
    names = {f"bert.{name}" for name in backbone_of(aligned, "animals")}
    first, *others = (task.tensors() for task in model._recombiner.models)
    for other in others:
        assert all(first[name].data_ptr() == other[name].data_ptr() for name in names)
