"""Members and families of the tiny models, written as a build writes them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet
import torch

from hf_merge.merging.codecs import CodecSpec
from hf_merge.merging.components import decompose
from hf_merge.merging.grouping import Grouping
from hf_merge.merging.identity import configuration_id
from hf_merge.merging.methods import MethodSpec
from hf_merge.modeling.assembly import Head, skeleton_config
from hf_merge.modeling.features import ALL_LAYERS, FeatureExtractor
from hf_merge.modeling.inputs import image_batches, load_image_processor, load_tokenizer, restore, text_batches
from hf_merge.searching.building import ExpertBuilder
from hf_merge.searching.configuration import Configuration
from hf_merge.serving.router import RouterSettings, fit
from hf_merge.serving.router_file import router_tensors
from hf_merge.storing import front as fronts
from hf_merge.storing.chains import BaseRef, ChainMap, ComponentEntry, ModelEntry
from hf_merge.storing.families import Family
from hf_merge.storing.front import Front, FrontPoint
from hf_merge.storing.member_writing import MemberContent, StoredHead, write_member
from hf_merge.storing.tensors import tensor_bytes
from tests.modeling.test_assembly import opened
from tests.tiny_models import TinyFamily, pictures


MERGED, SEPARATE = ((0, 0, 0),) * 4, ((0, 1, 2),) * 4
MIXED = ((0, 0, 1), (0, 0, 0), (0, 1, 2), (0, 1, 0))
SHARED = ((0, 0, 1),) * 4  # two tasks have the same chain


def builder_of(family: Family, *codecs: str) -> ExpertBuilder:
    components, method = decompose(family.shapes, "type"), MethodSpec.resolve("task_arithmetic")
    return ExpertBuilder(
        family, components, [method], [CodecSpec.resolve(name) for name in codecs or ("int8",)], limit_bytes=10**9
    )


def rows_of(tiny: TinyFamily, task: str, split: str = "validation") -> list[Any]:
    """Returns the texts or images of a split."""
    cells = pyarrow.parquet.read_table(tiny.tasks[task].files[split]).to_pydict()[tiny.kind]
    return pictures(cells) if tiny.kind == "image" else cells


def trained_router(tiny: TinyFamily, family: Family) -> bytes:
    """Returns `router.safetensors`, trained on the train rows."""
    base = family.base
    layers = 0 if tiny.kind == "text" else ALL_LAYERS
    eyes = FeatureExtractor.from_base(base.config, list(family.shapes), base.trunk, layers, base)
    features, labels = [], []
    for index, task in enumerate(tiny.tasks):
        rows = rows_of(tiny, task, "train")
        if tiny.kind == "image":
            batches = image_batches(load_image_processor(tiny.base), rows, batch_size=32)
        else:
            batches = text_batches(load_tokenizer(tiny.base), rows, None, batch_size=32)
        features.append(restore(batches, [eyes.pooled(batch.inputs) for batch in batches]))
        labels.append(torch.full((len(rows),), index))
    router = fit(torch.cat(features), torch.cat(labels), len(tiny.tasks), RouterSettings(20, 3e-3))
    return tensor_bytes(router_tensors(router, eyes))


def write(
    tiny: TinyFamily,
    family: Family,
    folder: Path,
    grouping: Grouping = MIXED,
    *,
    router: bytes | None = None,
    codec: str = "int8",
    dtype: str = "float32",
    differences: str | None = None,
) -> FrontPoint:
    """Writes the member of a grouping into `folder` and returns its point on a front.

    `differences` is the residual codec of all components but the last, the norms, of which it quantises nothing.
    """
    builder = builder_of(family, codec, *([differences] if differences else []))
    stored = (*[1] * (len(grouping) - 1), 0) if differences else ()
    configuration = Configuration(grouping, codecs=stored)
    keys = {key.id: key for key in builder.keys(configuration)}
    for key in keys.values():  # whose cost is exact once built
        builder.expert(key)
    heads = {task: Head.of(tuned.config) for task, tuned in family.tasks.items()}
    cost = builder.cost(configuration)
    point = FrontPoint(
        id=configuration_id(builder.components, builder.tasks, grouping, builder.methods[0], builder.codecs[0], cost),
        cost=cost,
        performance=cost / 4,
        normalised=cost / 4,
        scores=dict.fromkeys(family.tasks, cost / 4),
        grouping=grouping,
    )
    chain_map = ChainMap(
        id=point.id,
        library_version="0.1.0",
        base=BaseRef("base", None, family.parameters, 32),
        cost=point.cost,
        performance=point.scores,
        metrics={name: task.metric for name, task in tiny.tasks.items()},
        granularity="type",
        dtype=dtype,
        model=ModelEntry(tiny.kind, None),
        components=tuple(ComponentEntry(component.name, component.tensors) for component in builder.components),
        experts=(),
        chains={task: tuple(key.id for key in builder.chain(configuration, task)) for task in family.tasks},
        heads={},
        files={},
    )
    content = MemberContent(
        chain_map=chain_map,
        experts=lambda identifier: builder.expert(keys[identifier]),
        heads={
            task: StoredHead(
                heads[task].num_labels,
                heads[task].labels,
                {name: tuned.read_head(name) for name in tuned.head},
                heads[task].problem_type,
            )
            for task, tuned in family.tasks.items()
        },
        router=router,
        config=skeleton_config(family.base.config),
        settings=[tiny.base],
        card=lambda _: "# A member\n",
        references={key.id: key.reference.id for key in keys.values() if key.reference is not None},
    )
    write_member(folder, content)
    return point


def write_family(
    tiny: TinyFamily, folder: Path, groupings: Sequence[Grouping], *, routed: bool = False
) -> list[FrontPoint]:
    """Writes a family folder with the members of the groupings, and returns their points by rising cost."""
    with opened(tiny) as family:
        router = trained_router(tiny, family) if routed else None
        builder = builder_of(family)
        ordered = sorted(groupings, key=lambda grouping: builder.cost(Configuration(grouping)))
        points = []
        for grouping in ordered:
            unnamed = folder / "members" / "unnamed"
            points.append(write(tiny, family, unnamed, grouping, router=router))
            unnamed.rename(unnamed.with_name(points[-1].id))
        front = front_of(tiny, family, builder, points)
    (folder / "front.json").write_bytes(fronts.dump(front))
    return points


def front_of(tiny: TinyFamily, family: Family, builder: ExpertBuilder, points: Sequence[FrontPoint]) -> Front:
    scores = dict.fromkeys(tiny.tasks, 0.9)
    return Front(
        base="base",
        revision=None,
        base_sha256="0" * 64,
        task_sha256=dict.fromkeys(tiny.tasks, "0" * 64),
        parameters=family.parameters,
        granularity="type",
        components=tuple(component.name for component in builder.components),
        tasks={name: task.metric for name, task in tiny.tasks.items()},
        method=builder.methods[0].as_json(),
        codec=builder.codecs[0].as_json(),
        dtype="float32",
        individual=scores,
        pretrained=dict.fromkeys(tiny.tasks, 0.1),
        reference=(4.0, 0.1),
        hypervolume=0.5,
        history=((len(points), 0.5),),
        points=tuple(points),
        controls={},
    )
