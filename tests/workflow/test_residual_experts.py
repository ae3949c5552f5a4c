"""Experts stored as differences from shared ones: searched, counted, built, loaded in part, and told."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hf_merge.errors import MalformedChainMap, RecipeError
from hf_merge.merging.task_vectors import measure
from hf_merge.recipe import Recipe
from hf_merge.recipe.presets import DEFAULT_PRESET
from hf_merge.searching.configuration import Configuration
from hf_merge.serving.model import MergeModel
from hf_merge.serving.unclaimed import common_experts
from hf_merge.storing.library import Member
from hf_merge.workflow.build import build
from hf_merge.workflow.configurations import new_builder, proposals
from hf_merge.workflow.project import open_project
from hf_merge.workflow.refine import refine
from hf_merge.workflow.run_folder import read_run
from hf_merge.workflow.search import search
from hf_merge.workflow.show import show
from tests.serving.test_unclaimed import plain_features
from tests.tiny_models import TinyFamily
from tests.tiny_runs import evaluated
from tests.tiny_speakers import SpeakingFamily
from tests.workflow.test_build import require_the_logits_of_the_search


Families = Callable[[str], TinyFamily]
CODECS = ["int8", {"name": "delta", "bits": 4}, "ternary"]
FEW = {"population": 8, "evaluations": 16, "validation_rows": 20, "initial": "ladder"}


def _recipe(family: TinyFamily, **search: object) -> Recipe:
    merge = {"methods": ["average", "task_arithmetic"], "codecs": CODECS}
    return Recipe.parse(family.recipe(merge=merge, search={**FEW, **search}), "test")


def _residual(point: object) -> bool:
    return any(codec["name"] in ("delta", "ternary") for codec in getattr(point, "codecs", None) or ())


@pytest.fixture(scope="module")
def searched(tiny_family: Families, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of a search, of which a test changes a copy."""
    folder = tmp_path_factory.mktemp("residual") / "run"
    search(_recipe(tiny_family("distilbert")), folder, progress=False)
    return folder


@pytest.fixture
def run(searched: Path, tmp_path: Path) -> Path:
    """Returns a copy of the search that is the test's own."""
    return Path(shutil.copytree(searched, tmp_path / "run"))


def test_what_a_search_chose_is_built_and_gives_the_same_logits(tiny_family: Families, run: Path) -> None:
    recipe, front = _recipe(tiny_family("distilbert")), read_run(run)[0]
    chosen = [point for point in front.points if _residual(point)]
    assert chosen
    build(run, progress=False)
    require_the_logits_of_the_search(recipe, front.points, run)
    for point in chosen:
        folder = run / "members" / point.id
        document = json.loads((folder / "chains.json").read_text())
        shared = {expert["reference"] for expert in document["experts"] if "reference" in expert}
        assert shared
        chained = {identifier for chain in document["chains"].values() for identifier in chain}
        assert not shared & chained
        heads = sum(head["bytes"] for head in document["heads"].values())
        stored = sum(expert["bytes"] for expert in document["experts"]) + heads
        assert stored / (4 * front.parameters) == pytest.approx(point.cost, rel=0.01)


def test_one_task_is_loaded_from_its_difference_and_the_shared_expert(run: Path) -> None:
    front = read_run(run)[0]
    point = next(point for point in front.points if _residual(point))
    (folder,) = build(run, configs=[point.id], progress=False)
    task = next(iter(front.tasks))
    whole, alone = MergeModel.from_pretrained(folder), MergeModel.from_pretrained(folder, tasks=[task])
    texts = ["a short text", "another one"]
    first, second = (model.predict(texts, task=task) for model in (whole, alone))
    assert [each.label for each in first] == [each.label for each in second]
    member = Member(folder, [task])
    assert {entry.id for entry in member.experts} == member.chain_map.experts_of([task])


def test_shared_experts_are_what_the_tasks_have_in_common(run: Path) -> None:
    point = next(point for point in read_run(run)[0].points if _residual(point))
    (folder,) = build(run, configs=[point.id], progress=False)
    model, texts = MergeModel.from_pretrained(folder), ["a short text", "another one"]
    member = model._member
    experts = {entry.id: entry for entry in member.experts}
    weights: dict[str, torch.Tensor] = {}
    for component, own in common_experts(member.chain_map, member.tasks).items():
        decoded = [(member.expert(experts[name]), count) for name, count in own.items()]
        if component != "norm":
            assert len(own) == 1, "a shared expert, or one of all tasks"
        for name in decoded[0][0]:
            weights[name] = torch.stack([each[name] for each, count in decoded for _ in range(count)]).mean(dim=0)
    assert set(experts) & set(member.chain_map.references.values())
    trunk = model._parts.trunk
    wanted = plain_features(folder, {name.removeprefix(trunk): tensor for name, tensor in weights.items()}, texts)
    torch.testing.assert_close(model.features(texts), wanted, rtol=1e-4, atol=1e-4)


def test_what_no_codec_quantises_has_no_shared_expert(tiny_family: Families) -> None:
    recipe = _recipe(tiny_family("distilbert"))
    with open_project(recipe) as project:
        keys = new_builder(project).keys(project.space().all_separate(codec=2))
    norms = {key for key in keys if key.component == "norm"}
    assert {key.reference for key in norms} == {None} and {key.codec for key in norms} == {project.codecs[0]}
    assert all(len(key.members) == 1 for key in norms)
    assert any(key.reference is not None for key in keys)


def test_a_difference_is_taken_from_the_shared_expert_as_decoded(tiny_family: Families) -> None:
    with open_project(_recipe(tiny_family("distilbert"))) as project:
        builder, space = new_builder(project), project.space()
        wanted = space.all_separate(codec=1)
        for key in builder.keys(wanted):
            if key.reference is None:
                assert key.members == builder.tasks or key.component == "norm"
                continue
            shared, decoded, expert = builder.decoded(key.reference), builder.decoded(key), builder.expert(key)
            for name, weight in decoded.items():
                own = project.family.tasks[key.members[0]].read(name).view(weight.shape)
                if expert.tensors[name].dtype != torch.uint8:
                    assert torch.equal(weight, own)
                    continue
                step = expert.tensors[f"{name}.scale"].view(-1, *[1] * (weight.ndim - 1))
                difference = own - shared[name]
                assert (own - weight).abs().le(0.5001 * step + difference.abs() * 1e-3).float().mean() > 0.9
                assert (own - weight).square().sum() < 0.1 * difference.square().sum()


def test_a_shared_expert_is_counted_once(tiny_family: Families) -> None:
    with open_project(_recipe(tiny_family("distilbert"))) as project:
        builder, space = new_builder(project), project.space()
        keys = builder.keys(space.all_separate(codec=2))
        shared = [key for key in keys if key.reference is None and key.component != "norm"]
        assert len(shared) == len(space.components) - 1
        assert len(keys) == len(shared) * (1 + len(space.tasks)) + len(space.tasks)
        assert {key.reference for key in keys if key.reference is not None} == set(shared)
        before = builder.cost(space.all_separate(codec=2))
        for key in keys:
            builder.expert(key)
        assert builder.cost(space.all_separate(codec=2)) == pytest.approx(before, rel=1e-12)


def test_the_proposals_lead_from_the_closest_to_the_shared_experts(tiny_family: Families) -> None:
    with open_project(_recipe(tiny_family("distilbert"))) as project:
        family, builder = project.family, new_builder(project)
        geometry = measure(project.components, family.shapes, family.origin, family.tasks)
        proposed = proposals(project, builder, geometry, progress=False)
        costs = [builder.cost(configuration) for configuration in proposed]
        assert costs == sorted(costs, reverse=True)
        assert proposed[-1] == project.space().all_merged()
        assert isinstance(proposed[0], Configuration)


@pytest.mark.slow
def test_a_search_for_one_merged_model_keeps_no_tasks_apart(tiny_family: Families, tmp_path: Path) -> None:
    search(_recipe(tiny_family("distilbert"), grouping="merged"), tmp_path / "run", progress=False)
    tried = evaluated(tmp_path / "run")
    controls = [point.grouping for point in read_run(tmp_path / "run")[0].controls.values()]
    assert len(tried) > 4
    assert all(set(column) == {0} for each in tried if each.grouping not in controls for column in each.grouping)


def test_an_interrupted_search_continues_to_the_same_front(
    tiny_family: Families, searched: Path, tmp_path: Path
) -> None:
    lines = (searched / "journal.jsonl").read_bytes().splitlines(keepends=True)
    cut = tmp_path / "cut"
    cut.mkdir()
    shutil.copy(searched / "recipe.yaml", cut)
    (cut / "journal.jsonl").write_bytes(b"".join(lines[:-5]))
    again = search(_recipe(tiny_family("distilbert")), cut, resume=True, progress=False)
    assert again == read_run(searched)[0]
    assert (cut / "front.json").read_bytes() == (searched / "front.json").read_bytes()


@pytest.mark.parametrize(
    ("layout", "kind"),
    [
        ("bert", "ia3"),
        pytest.param("gpt2", "lora", marks=pytest.mark.slow),
        pytest.param("llama", "speaker", marks=pytest.mark.slow),
    ],
)
def test_the_default_preset_searches_adapters_and_language_models(
    tiny_adapters: Callable[[str, str], TinyFamily],
    tiny_speakers: Callable[[str], SpeakingFamily],
    tmp_path: Path,
    layout: str,
    kind: str,
) -> None:
    family = tiny_speakers(layout) if kind == "speaker" else tiny_adapters(layout, kind)
    settings = {"preset": DEFAULT_PRESET, "population": 24, "evaluations": 24, "validation_rows": 8}
    recipe = Recipe.parse(family.recipe(search=settings), "test")
    front = search(recipe, tmp_path / "run", progress=False)
    tried = evaluated(tmp_path / "run")
    stored = {codec for entry in tried for codec in entry.codecs}
    assert stored == ({0} if kind == "ia3" else set(range(len(recipe.merge.codecs)))), "vectors have no differences"
    (member,) = build(tmp_path / "run", configs=[front.points[-1].id], progress=False)
    dense, packed = (MergeModel.from_pretrained(member, memory=memory) for memory in ("dense", "packed"))
    task = next(iter(front.tasks))
    first, second = (model.outputs(["a short text", "cat"], task=task).logits for model in (dense, packed))
    assert torch.equal(first, second)


def test_refining_passes_differences_over(run: Path) -> None:
    front = read_run(run)[0]
    refined = refine(run, settings={"rows": 4, "epochs": 1}, progress=False)
    notes = {point.id: point.note for point in refined.points}
    assert all(notes[point.id] == "stores differences" for point in front.points if _residual(point))


def test_the_first_codec_must_be_able_to_stand_alone(tiny_family: Families) -> None:
    document = tiny_family("distilbert").recipe(merge={"codecs": ["ternary", "int8"]})
    message = (
        r"merge\.codecs begins with 'ternary', which stores differences .* Put one of these before it: full, int4"
    )
    with pytest.raises(RecipeError, match=message), open_project(Recipe.parse(document, "test")):
        pass


def test_a_codec_that_does_not_fit_its_reference_is_refused(run: Path) -> None:
    point = next(point for point in read_run(run)[0].points if _residual(point))
    (folder,) = build(run, configs=[point.id], progress=False)
    document = json.loads((folder / "chains.json").read_text())
    expert = next(expert for expert in document["experts"] if "reference" in expert)
    expert["codec"], expert["codec_settings"] = "full", {}
    (folder / "chains.json").write_text(json.dumps(document))
    with pytest.raises(MalformedChainMap, match=r"of codec 'full' is said to be a difference from"):
        Member(folder)


def test_a_member_shows_what_is_stored_as_a_difference_from_what(run: Path) -> None:
    point = next(point for point in read_run(run)[0].points if _residual(point))
    (folder,) = build(run, configs=[point.id], progress=False)
    document, text = show(folder)
    differing = next(expert for expert in document["experts"] if expert["reference"] is not None)
    line = next(line for line in text.splitlines() if line.startswith(differing["id"]))
    assert differing["codec"]["name"] in line and differing["reference"] in line
