"""Of every family: searched, built and loaded, a chain answers as a model that is put together by hand."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoTokenizer, DeiTForImageClassificationWithTeacher
from typer.testing import CliRunner

from hf_merge import MergeModel
from hf_merge.cli import app
from hf_merge.errors import ModelMismatch
from hf_merge.recipe.presets import DEFAULT_PRESET
from hf_merge.storing.library import Member
from hf_merge.workflow.build import build
from hf_merge.workflow.evaluate import evaluate
from hf_merge.workflow.search import search
from tests.families.by_hand import chain_model
from tests.families.catalogue import FAMILIES
from tests.families.making import TASKS, MadeFamily, make_data, make_family
from tests.tiny_models import SAMPLING_RATE, pictures, samples_in
from tests.tiny_runs import evaluated


QUICK = ("mixtral", "resnet", "wav2vec2")  # texts, images, sounds
# WavLM in transformers gives torch a mask and a bias of different types, which torch is going to stop taking.
NOTED = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask and attn_mask")
LEAST = SAMPLING_RATE // 20  # samples of the shortest sound


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], MadeFamily]:
    """Returns a function from a family's name to its base and fine-tunes on disk, not to be changed."""

    @cache
    def data(kind: str) -> dict[str, dict[str, Path]]:
        return make_data(kind, tmp_path_factory.mktemp(f"{kind}-data"))

    @cache
    def make(name: str) -> MadeFamily:
        spec = FAMILIES[name]
        return make_family(spec, tmp_path_factory.mktemp(name), data(spec.kind))

    return make


@NOTED
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILIES]
)
def test_a_chain_answers_as_the_model_put_together_by_hand(
    name: str, made: Callable[[str], MadeFamily], tmp_path: Path
) -> None:
    family = made(name)
    run = tmp_path / "run"
    front = search(family.recipe(), run, progress=False)
    assert front.points
    members = list(build(run, progress=False))
    for member in {members[0], members[-1]}:
        model, packed = (MergeModel.from_pretrained(member, memory=memory) for memory in ("dense", "packed"))
        for task in TASKS:
            inputs = batch_of(family, task)
            by_hand = chain_model(family, member, task, tmp_path / f"{member.name}-{task}")
            with torch.inference_mode():
                expected = by_hand(**inputs).logits
            found = model(task=task, **inputs).logits[:, : expected.shape[1]]
            assert expected.std() > 0
            assert torch.equal(packed(task=task, **inputs).logits[:, : expected.shape[1]], found)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
            with torch.inference_mode():
                ordinary = model.materialize(task)(**inputs).logits
            torch.testing.assert_close(ordinary, expected, rtol=1e-5, atol=1e-6)
    answers = model.predict(rows_of(family, TASKS[0]))
    assert {answer.task for answer in answers} <= set(TASKS)


@NOTED
@pytest.mark.parametrize(
    "name",
    [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in ("albert", "gpt2", "mobilenet_v2", "whisper"))],
)
def test_the_default_preset_stores_and_scores_every_codec(
    name: str, made: Callable[[str], MadeFamily], tmp_path: Path
) -> None:
    recipe = made(name).recipe(preset=DEFAULT_PRESET, population=24, evaluations=24)
    front = search(recipe, tmp_path, progress=False)
    tried = evaluated(tmp_path)
    assert {codec for entry in tried for codec in entry.codecs} == set(range(len(recipe.merge.codecs)))
    assert all(0 <= score <= 1 for entry in tried for score in entry.scores.values())
    assert front.points


def rows_of(family: MadeFamily, task: str) -> list[Any]:
    cells = cells_of(family, task)
    if family.spec.kind == "audio":
        return [{"array": samples_in(cell["bytes"]), "sampling_rate": SAMPLING_RATE} for cell in cells]
    return cells if family.spec.kind == "text" else list(pictures(cells))


def cells_of(family: MadeFamily, task: str) -> list[Any]:
    cells: list[Any] = pyarrow.parquet.read_table(family.data[task]["test"]).to_pydict()[family.spec.kind]
    return cells


def batch_of(family: MadeFamily, task: str) -> dict[str, Tensor]:
    """Returns the test rows of a task as one batch, as transformers alone makes it."""
    rows = rows_of(family, task)
    if family.spec.kind == "text":
        return dict(AutoTokenizer.from_pretrained(family.base)(rows, padding=True, return_tensors="pt"))
    if family.spec.kind == "audio":
        extractor = AutoFeatureExtractor.from_pretrained(family.base)
        samples = [row["array"][:LEAST] for row in rows]  # of one length: where there is no mask nothing is padded
        return dict(extractor(samples, sampling_rate=SAMPLING_RATE, return_tensors="pt"))
    return dict(AutoImageProcessor.from_pretrained(family.base, backend="pil")(images=rows, return_tensors="pt"))


def test_a_distilled_head_of_two_parts_is_refused_by_its_name(
    made: Callable[[str], MadeFamily], tmp_path: Path
) -> None:
    whole = made("deit")
    model = DeiTForImageClassificationWithTeacher.from_pretrained(whole.base, num_labels=2)
    model.save_pretrained(tmp_path / "distilled")
    family = MadeFamily(whole.spec, whole.base, {TASKS[0]: tmp_path / "distilled"}, whole.data)
    with pytest.raises(
        ModelMismatch, match=r"'cls_classifier\.\w+' has no place in DeiTForImageClassification\. Name"
    ):
        search(family.recipe(), tmp_path / "run", progress=False)


# Sounds


@NOTED
def test_sounds_of_several_tasks_and_lengths_are_answered_as_if_each_came_alone(
    made: Callable[[str], MadeFamily], tmp_path: Path
) -> None:
    family = made("wavlm")  # whose heads weigh the states of all layers
    search(family.recipe(), tmp_path / "run", progress=False)
    cheapest = min(build(tmp_path / "run", progress=False), key=lambda folder: Member(folder).chain_map.cost)
    model = MergeModel.from_pretrained(cheapest)
    rows = [row for task in TASKS for row in rows_of(family, task)]
    tasks = [task for task in TASKS for _ in rows_of(family, task)]
    together = model.outputs(rows, task=tasks, batch_size=5).logits
    alone = torch.cat([model.outputs([row], task=task).logits for row, task in zip(rows, tasks, strict=True)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert len(set(map(model.chain, TASKS))) == 1, "the tasks share their run"


def test_weights_normalised_as_of_old_are_those_of_today(made: Callable[[str], MadeFamily], tmp_path: Path) -> None:
    today = made("wav2vec2")
    old = MadeFamily(today.spec, tmp_path / "base", {task: today.tuned[task] for task in TASKS}, today.data)
    shutil.copytree(today.base, old.base)
    state = load_file(old.base / "model.safetensors")
    renamed = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): held
        for name, held in state.items()
    }
    assert renamed.keys() != state.keys()
    save_file(renamed, old.base / "model.safetensors", metadata={"format": "pt"})
    answers = []
    for number, family in enumerate((today, old)):
        search(family.recipe(), tmp_path / f"run{number}", progress=False)
        (member, *_) = build(tmp_path / f"run{number}", progress=False)
        answers.append(MergeModel.from_pretrained(member).outputs(rows_of(family, TASKS[0]), task=TASKS[0]).logits)
    assert torch.equal(*answers)


def test_words_are_wav_files_where_the_model_hears(made: Callable[[str], MadeFamily], tmp_path: Path) -> None:
    family = made("wav2vec2")
    search(family.recipe(), tmp_path / "run", progress=False)
    (member,) = build(tmp_path / "run", progress=False, max_configs=1)
    (tmp_path / "a.wav").write_bytes(cells_of(family, TASKS[0])[0]["bytes"])
    (tmp_path / "b.flac").write_bytes(b"fLaC")
    answered = CliRunner().invoke(app, ["predict", str(member), str(tmp_path / "a.wav"), "--json"])
    assert answered.exit_code == 0
    (answer,) = json.loads(answered.stdout)
    assert answer["input"].endswith("a.wav")
    assert answer["task"] in TASKS
    refused = CliRunner().invoke(app, ["predict", str(member), str(tmp_path / "b.flac")])
    assert refused.exit_code == 2
    assert "convert it to WAV" in refused.stderr
    assert evaluate(member, progress=False).scores.oracle_scores.keys() == set(TASKS)
