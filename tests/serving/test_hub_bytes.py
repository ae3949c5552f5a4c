"""How many bytes a load fetches, counted at the Hub, for members with the proportions of real ones.

The shapes are those of MiniLM-L6 with five tasks, the weights random: what a file weighs does not depend on them. The
front has as many points as one of a real search.
"""

from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hf_merge.merging.codecs import CodecSpec
from hf_merge.merging.components import Component, decompose
from hf_merge.merging.cost import normalised
from hf_merge.merging.experts import Expert, ExpertKey, expert_key
from hf_merge.merging.grouping import Grouping, members_of
from hf_merge.merging.methods import MethodSpec
from hf_merge.storing import front as fronts
from hf_merge.storing.chains import BaseRef, ChainMap, ComponentEntry, ModelEntry
from hf_merge.storing.front import Front, FrontPoint
from hf_merge.storing.library import Member
from hf_merge.storing.member_writing import MemberContent, StoredHead, write_member
from hf_merge.storing.tensors import tensor_bytes
from tests.hub_server import HubServer
from tests.serving.published import FAMILY, Visitor, fetched, member_repo, publish_member


WIDTH, ROWS, BLOCKS = 384, 30_522, 6
TASKS = {"banking": 77, "travel": 15, "kitchen": 15, "office": 15, "small_talk": 15}
METHOD, CODEC = MethodSpec.resolve("task_arithmetic"), CodecSpec.resolve("int8")
POINTS = 20
# embedding, attention, mlp, norm: all merged; as a search finds them at half a base; all separate
GROUPINGS: tuple[Grouping, ...] = (
    ((0, 0, 0, 0, 0),) * 4,
    ((0, 0, 0, 0, 0), (0, 1, 2, 2, 3), (0, 1, 0, 0, 0), (0, 0, 1, 0, 0)),
    ((0, 1, 2, 3, 4),) * 4,
)


def shapes() -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (ROWS, WIDTH),
        "embeddings.position_embeddings.weight": (512, WIDTH),
        "embeddings.LayerNorm.weight": (WIDTH,),
    }
    for block in range(BLOCKS):
        inside = f"encoder.layer.{block}"
        parts = {f"attention.self.{name}": (WIDTH, WIDTH) for name in ("query", "key", "value")}
        parts |= {"attention.output.dense": (WIDTH, WIDTH), "intermediate.dense": (4 * WIDTH, WIDTH)}
        parts |= {"output.dense": (WIDTH, 4 * WIDTH)}
        for name, shape in parts.items():
            found |= {f"{inside}.{name}.weight": shape, f"{inside}.{name}.bias": shape[:1]}
        found |= {f"{inside}.output.LayerNorm.{name}": (WIDTH,) for name in ("weight", "bias")}
    return found


def random_expert(key: ExpertKey, component: Component) -> Expert:
    tensors: dict[str, Tensor] = {}
    for name in component.tensors:
        shape = shapes()[name]
        if len(shape) == 1:
            tensors[name] = torch.rand(shape)
        else:
            tensors[name] = torch.randint(256, shape, dtype=torch.uint8)
            tensors |= {
                f"{name}.scale": torch.tensor(0.01),
                f"{name}.zero_point": torch.tensor(128, dtype=torch.int32),
            }
    return Expert(key, tensors, (), (), 0.0)


def write(folder: Path, grouping: Grouping) -> FrontPoint:
    components, tasks = decompose(shapes(), "type"), list(TASKS)
    keys: dict[str, tuple[ExpertKey, Component]] = {}
    chains: dict[str, list[str]] = {task: [] for task in tasks}
    for component, column in zip(components, grouping, strict=True):
        for index, task in enumerate(tasks):
            key = expert_key(component.name, [tasks[member] for member in members_of(column, index)], METHOD, CODEC)
            keys[key.id] = key, component
            chains[task].append(key.id)
    parameters = sum(map(prod, shapes().values()))
    stored = sum(prod(shapes()[name]) / 4 for _, component in keys.values() for name in component.tensors)
    cost = normalised(stored, parameters)
    scores = dict.fromkeys(tasks, cost / 4)
    point = FrontPoint(f"c{round(cost * 1000):04}-abcdef", cost, cost / 4, cost / 4, scores, grouping)
    chain_map = ChainMap(
        id=point.id,
        library_version="0.1.0",
        base=BaseRef("base", None, parameters, 32),
        cost=cost,
        performance=scores,
        metrics=dict.fromkeys(tasks, "accuracy"),
        granularity="type",
        dtype="float32",
        model=ModelEntry("text", None),
        components=tuple(ComponentEntry(component.name, component.tensors) for component in components),
        experts=(),
        chains={task: tuple(chain) for task, chain in chains.items()},
        heads={},
        files={},
    )
    (folder / "settings").mkdir(exist_ok=True)
    (folder / "settings" / "tokenizer.json").write_bytes(b"{}" + b" " * 700_000)
    content = MemberContent(
        chain_map=chain_map,
        experts=lambda identifier: random_expert(*keys[identifier]),
        heads={
            task: StoredHead(labels, None, {"classifier.weight": torch.rand(labels, WIDTH)})
            for task, labels in TASKS.items()
        },
        router=tensor_bytes({"features/words": torch.randint(256, (ROWS, WIDTH), dtype=torch.uint8)}),
        config={"model_type": "bert"},
        settings=[folder / "settings"],
        card=lambda _: "# A member\n" + "words " * 1000,
    )
    write_member(folder / "members" / point.id, content)
    return point


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[FrontPoint]]:
    """Members in one folder, and their points by rising cost."""
    folder = tmp_path_factory.mktemp("realistic")
    return folder, [write(folder, grouping) for grouping in GROUPINGS]


@pytest.fixture
def visitor(hub: HubServer, tmp_path: Path) -> Visitor:
    return Visitor(hub, tmp_path / "cache")


@pytest.fixture
def points(hub: HubServer, family: tuple[Path, list[FrontPoint]]) -> list[FrontPoint]:
    """The members on the Hub, and a front that names them among others that are worse."""
    folder, local = family
    real = [publish_member(hub, folder, point) for point in local]
    others = [replace(real[1], id=f"c{number:04}-fedcba", performance=0.0) for number in range(POINTS - len(real))]
    front = front_of([real[0], *others, *real[1:]])
    hub.publish(FAMILY, {"front.json": fronts.dump(front), "pareto.png": bytes(50_000), "recipe.yaml": bytes(5_000)})
    return real


def front_of(points: list[FrontPoint]) -> Front:
    scores = dict.fromkeys(TASKS, 0.9)
    return Front(
        base="base",
        revision=None,
        base_sha256="0" * 64,
        task_sha256=dict.fromkeys(TASKS, "0" * 64),
        parameters=sum(map(prod, shapes().values())),
        granularity="type",
        components=tuple(component.name for component in decompose(shapes(), "type")),
        tasks=dict.fromkeys(TASKS, "accuracy"),
        method=METHOD.as_json(),
        codec=CODEC.as_json(),
        dtype="float32",
        individual=scores,
        pretrained=scores,
        reference=(4.0, 0.1),
        hypervolume=0.5,
        history=((len(points), 0.5),),
        points=tuple(points),
        controls={},
    )


def sizes_of(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.iterdir()}


def test_a_budget_fetches_its_members_files_and_two_percent_more_at_most(
    hub: HubServer, family: tuple[Path, list[FrontPoint]], points: list[FrontPoint], tmp_path: Path
) -> None:
    for point in points:
        hub.log.clear()
        Visitor(hub, tmp_path / point.id).open(budget=point.cost)
        member = sum(sizes_of(family[0] / "members" / point.id).values())
        overhead = sum(fetched(hub).values()) / member - 1
        assert 0 < overhead < 0.001  # 0.02 is what was promised
        assert {name.rpartition("/")[0] for name in fetched(hub)} == {FAMILY, member_repo(point)}


def test_one_task_fetches_what_its_chain_needs_and_two_percent_more_at_most(
    hub: HubServer, family: tuple[Path, list[FrontPoint]], points: list[FrontPoint], tmp_path: Path
) -> None:
    for point in points:
        whole = Member(family[0] / "members" / point.id)
        sizes = sizes_of(whole.folder)
        for task in TASKS:
            hub.log.clear()
            member = Visitor(hub, tmp_path / f"{point.id}-{task}").open(budget=point.cost, tasks=[task])
            needed = sum(entry.bytes for entry in member.experts) + whole.chain_map.heads[task].bytes
            needed += sum(sizes[name] for name in ("chains.json", "config.json", "tokenizer.json"))
            got = sum(fetched(hub).values())
            assert 0 < got / needed - 1 < 0.02


def test_several_tasks_share_what_they_share(
    hub: HubServer, visitor: Visitor, family: tuple[Path, list[FrontPoint]], points: list[FrontPoint]
) -> None:
    member = visitor.open(budget=points[1].cost, tasks=["kitchen", "office"])
    sizes = sizes_of(family[0] / "members" / points[1].id)
    needed = sum(entry.bytes for entry in member.experts) + sizes["router.safetensors"] + sizes["tokenizer.json"]
    got = sum(fetched(hub).values())
    assert 0 < got / needed - 1 < 0.02
    assert got < sum(sizes.values())
