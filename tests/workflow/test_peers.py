"""Dynamic peers run on tasks: as plain transformers with the same weights answers, else refused."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from hf_merge.errors import InputError, UnsupportedArchitecture
from hf_merge.merging.methods import MethodSpec
from hf_merge.merging.peers.twin import Twin, twin_merge
from hf_merge.recipe import Recipe
from hf_merge.searching.running import TaskRun
from hf_merge.workflow.peers import answers, emr, routed_rows, twin
from hf_merge.workflow.project import Project, Reader, open_project, task_runs
from hf_merge.workflow.rows import load_rows
from tests.families.catalogue import FAMILIES
from tests.families.making import make_data, make_family
from tests.tiny_models import TinyFamily


Families = Callable[[str], TinyFamily]
ROWS = 40
# Of the families tried, those whose rows can be mixed in a batch.
MIXED = {"convnext", "wav2vec2"}


@pytest.fixture
def project(tiny_family: Families) -> Iterator[Project]:
    recipe = Recipe.parse(tiny_family("bert").recipe(search={"batch_size": 8}), "test")
    with open_project(recipe) as opened:
        yield opened


def _runs(project: Project) -> dict[str, TaskRun]:
    rows = {name: data.test.first(ROWS) for name, data in load_rows(project.recipe, project.heads).items()}
    return task_runs(project, rows, Reader(project))


def _twin(project: Project) -> Twin:
    family = project.family
    return twin_merge(family.shapes, family.origin, family.tasks, MethodSpec.resolve("task_arithmetic"), 0.2)


def test_emr_answers_as_transformers_with_its_weights(project: Project, tiny_family: Families) -> None:
    family, peer = tiny_family("bert"), emr(project, progress=False)
    base = load_file(family.base / "model.safetensors")
    tuned = {task: load_file(found.folder / "model.safetensors") for task, found in family.tasks.items()}
    for task, run in _runs(project).items():
        weights = peer.weights(task)
        model: Any = AutoModelForSequenceClassification.from_pretrained(family.tasks[task].folder).eval()
        vectors = {
            name: np.stack([(own[f"bert.{name}"] - base[name]).double().numpy() for own in tuned.values()])
            for name in weights
        }
        index = list(family.tasks).index(task)
        kept = {name: np.sign(part[index]) == np.sign(part.mean(axis=0)) for name, part in vectors.items()}
        for name, tensor in weights.items():  # what is not kept is the base's, to the bit
            assert torch.equal(tensor[~torch.from_numpy(kept[name])], base[name][~torch.from_numpy(kept[name])])
        model.load_state_dict({f"bert.{name}": tensor for name, tensor in weights.items()}, strict=False)
        found = answers(project, run, weights)
        for batch in run.batches:
            with torch.inference_mode():
                expected = model(**batch.inputs).logits
            torch.testing.assert_close(found[torch.from_numpy(batch.rows)], expected, rtol=1e-4, atol=1e-4)


def test_routed_rows_are_those_of_a_model_merged_for_each(project: Project) -> None:
    found = _twin(project)
    run = _runs(project)["colours"]
    assert len(run.batches) > 2
    generator = torch.Generator().manual_seed(1)
    shares = torch.softmax(3 * torch.randn(len(run.labels), 3, generator=generator), dim=1)
    batched = routed_rows(project, found, run, shares, progress=False)
    for batch in run.batches[::2]:
        for place, row in enumerate(batch.rows.tolist()[:3]):
            one = {name: value[place : place + 1] for name, value in batch.inputs.items()}
            run.model.set_backbone(found.weights(shares[row].tolist()), project.family.base.trunk)
            torch.testing.assert_close(batched[row], run.model.logits(one)[0], rtol=1e-4, atol=1e-4)


def test_rows_sure_of_their_task_are_answered_as_if_it_were_known(project: Project) -> None:
    peer = twin(project, progress=False)
    assert peer.routed is not None
    for index, (task, run) in enumerate(_runs(project).items()):
        sure = torch.zeros(len(run.labels), 3)
        sure[:, index] = 1.0
        known = answers(project, run, peer.weights(task))
        torch.testing.assert_close(peer.routed(run, sure), known, rtol=1e-4, atol=1e-4)


def test_the_shared_expert_takes_the_recipes_scale(tiny_family: Families) -> None:
    merging = {"methods": [{"name": "task_arithmetic", "scale": 0.7}]}
    with open_project(Recipe.parse(tiny_family("bert").recipe(merge=merging), "test")) as project:
        assert twin(project, progress=False).settings == {"scale": 0.7, "keep": 0.1}
    with open_project(Recipe.parse(tiny_family("bert").recipe(merge={"methods": ["ties"]}), "test")) as project:
        assert twin(project, progress=False).settings["scale"] == 0.4


def test_a_model_that_mixes_its_rows_is_found_out(project: Project) -> None:
    class Turned(nn.Module):
        """Hands rows on in another order: layers behind it see row 1 where they expect row 0."""

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, states: Tensor, *rest: Any, **named: Any) -> Any:
            given: Any = self.inner(states.flip(0), *rest, **named)
            return given.flip(0) if isinstance(given, Tensor) else tuple(part.flip(0) for part in given)

    found = _twin(project)
    run = _runs(project)["colours"]
    layers: Any = run.model.module.get_submodule("bert.encoder.layer")
    shares = torch.full((len(run.labels), 3), 1 / 3)
    routed_rows(project, found, run, shares, progress=False)
    layers[1].intermediate = Turned(layers[1].intermediate)
    with pytest.raises(UnsupportedArchitecture, match="answers rows mixed in one batch otherwise than alone"):
        routed_rows(project, found, run, shares, progress=False)


@pytest.mark.parametrize("name", ["swin", "opt", "xlnet", "mixtral", "t5", "deberta-v2", "convnext", "wav2vec2"])
def test_rows_of_any_family_are_mixed_exactly_or_refused(tmp_path: Path, name: str) -> None:
    spec = FAMILIES[name]
    family = make_family(spec, tmp_path, make_data(spec.kind, tmp_path / "data"))
    with open_project(family.recipe()) as project:
        run, found = _runs(project)["animals"], _twin(project)
        shares = torch.softmax(torch.randn(len(run.labels), 2, generator=torch.Generator().manual_seed(0)), dim=1)
        try:
            batched = routed_rows(project, found, run, shares, progress=False)
        except UnsupportedArchitecture:
            assert name not in MIXED
            return
        assert name in MIXED
        for batch in run.batches:
            for place, row in enumerate(batch.rows.tolist()):
                one = {key: value[place : place + 1] for key, value in batch.inputs.items()}
                run.model.set_backbone(found.weights(shares[row].tolist()), project.family.base.trunk)
                torch.testing.assert_close(batched[row], run.model.logits(one)[0], rtol=1e-3, atol=1e-3)


def test_statistics_of_batch_normalisation_are_refused(tmp_path: Path) -> None:
    spec = FAMILIES["resnet"]
    family = make_family(spec, tmp_path, make_data(spec.kind, tmp_path / "data"))
    with open_project(family.recipe()) as project:
        with pytest.raises(InputError, match=r"EMR-Merging knows weights alone, and '.*running_.*' is a statistic"):
            emr(project, progress=False)
        with pytest.raises(InputError, match="Twin-Merging knows weights alone"):
            twin(project, progress=False)
