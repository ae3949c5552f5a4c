"""`hf-merge plan`: what a search will merge, store and need, from configurations and safetensors headers alone."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import numpy as np

from hf_merge.merging.components import unplaced
from hf_merge.merging.cost import bytes_of
from hf_merge.recipe import Recipe
from hf_merge.searching.building import ExpertBuilder
from hf_merge.storing import hub
from hf_merge.workflow.configurations import kept_bytes
from hf_merge.workflow.project import Project, open_project


# Measured on Linux with the versions of pyproject.toml: Python with torch, transformers, datasets, sklearn and pymoo.
_IMPORTS_BYTES = 900 * 10**6
_POSITIONS = {"image": 256, "audio": 500}  # patches; frames of ten seconds
_TOKENS = 32
_PROBE = 768


@dataclass(frozen=True)
class ComponentPlan:
    """One component: its size, and what roles its tensors have."""

    name: str
    tensors: int
    parameters: int
    roles: Mapping[str, int]


@dataclass(frozen=True)
class Plan:
    """What a search will do.

    Attributes:
        base: The base's source.
        model_type: The base's architecture.
        parameters: d, the parameters of the base backbone as saved.
        blocks: How many blocks it has.
        tasks: The heads' parameters, by task.
        components: The partition of the backbone.
        configurations: How many configurations there are.
        evaluations: How many of them will really be evaluated, at most.
        left_out: Backbone tensors of the base that no fine-tune has.
        unplaced: Backbone tensors whose role the rule cannot tell; they make components called `other`.
        cost_all_merged: C of one expert per component, if every tensor passes the range criterion.
        cost_all_separate: C of one expert per component and task.
        cost_by_codec: The same stored by each codec of the recipe, shared experts counted in where it stores
            differences, and by the first where there are none to store; pairs of codec and C.
        saved_bits: Bits in which most of the base's weights are saved.
        member_bytes: What the cheapest and the dearest configuration take on disk.
        memory_bytes: Peak memory: imports, one assembled model, experts kept, one component in work.
        forward_seconds: The time of the forward passes, estimated from a timed matrix product on this machine.
        assumed_positions: Positions per row that the time assumes.
    """

    base: str
    model_type: str
    parameters: int
    blocks: int
    tasks: Mapping[str, int]
    components: tuple[ComponentPlan, ...]
    configurations: int
    evaluations: int
    left_out: tuple[str, ...]
    unplaced: tuple[str, ...]
    cost_all_merged: float
    cost_all_separate: float
    cost_by_codec: tuple[tuple[Mapping[str, Any], float], ...]
    saved_bits: int
    member_bytes: tuple[int, int]
    memory_bytes: int
    forward_seconds: float
    assumed_positions: int


def plan(recipe: Recipe, *, access: hub.Access = hub.AS_USUAL) -> Plan:
    """Returns what a search of the recipe will merge, store and need; no weight is read, nor fetched.

    Raises:
        ModelMismatch: The checkpoints cannot be merged; every clash is listed.
        RecipeError: A setting is unknown or impossible.
    """
    with open_project(recipe, headers_only=True, access=access) as project:
        return _plan(project)


def as_json(found: Plan) -> dict[str, Any]:
    """Returns a plan as one JSON document."""
    return asdict(found)


def _plan(project: Project) -> Plan:
    family, recipe = project.family, project.recipe
    placed = project.places()
    space = project.space()
    # Nothing is built by it, so every tensor counts as if it passed the range criterion.
    builder = ExpertBuilder(family, project.components, project.methods, project.codecs, limit_bytes=0)
    merged = builder.cost(space.all_merged())
    costs = [builder.cost(space.all_separate(codec)) for codec in range(space.codecs)]
    positions = recipe.search.max_length or _POSITIONS.get(project.kind, _TOKENS)
    return Plan(
        base=family.base.source,
        model_type=family.base.config["model_type"],
        parameters=family.parameters,
        blocks=len({(place.tower, place.depth) for place in placed.values() if place.depth is not None}),
        tasks={task: tuned.head_parameters() for task, tuned in family.tasks.items()},
        components=tuple(
            ComponentPlan(
                component.name,
                len(component.tensors),
                sum(prod(family.shapes[name]) for name in component.tensors),
                dict(Counter(placed[name].role for name in component.tensors)),
            )
            for component in project.components
        ),
        configurations=space.size,
        evaluations=min(recipe.search.evaluations, space.size),
        left_out=tuple(name for name in family.base.backbone().values() if name not in family.shapes),
        unplaced=unplaced(placed),
        cost_all_merged=merged,
        cost_all_separate=costs[0],
        cost_by_codec=tuple(zip([codec.as_json() for codec in project.codecs], costs, strict=True)),
        saved_bits=_saved_bits(project),
        member_bytes=(bytes_of(merged, family.parameters), bytes_of(costs[0], family.parameters)),
        memory_bytes=_memory(project),
        forward_seconds=_forward_seconds(project, positions),
        assumed_positions=positions,
    )


def _saved_bits(project: Project) -> int:
    """Returns the bits in which most of the base's backbone is saved."""
    held: Counter[int] = Counter()
    base = project.family.base
    for name in base.backbone().values():
        spec = base.specs[name]
        elements = prod(spec.shape)
        held[8 * (spec.end - spec.start) // max(1, elements)] += elements
    return held.most_common(1)[0][0]


def _memory(project: Project) -> int:
    """Returns the peak: one assembled model, encoded experts, and one component's base and accumulators.

    Where differences are stored, the shared experts that they are added to are there as well, decoded.
    """
    largest = max(
        sum(prod(project.family.shapes[name]) for name in component.tensors) for component in project.components
    )
    task_vectors = len(project.family.tasks) * max(map(prod, project.family.shapes.values()))
    working = max(6 * largest, task_vectors + largest)
    experts = max(4 * project.family.parameters, kept_bytes(project))
    experts += 4 * project.family.parameters if project.space().residual else 0
    return _IMPORTS_BYTES + 4 * (project.family.parameters + working) + experts


def _forward_seconds(project: Project, positions: int) -> float:
    """Returns 2 * parameters in blocks * positions * rows * tasks * evaluations over the speed of matrix products.

    A language model's row counts once for each of its options.
    """
    search = project.recipe.search
    shapes = project.family.shapes
    inside = sum(prod(shapes[name]) for name, place in project.places().items() if place.depth is not None)
    worded = [head.num_labels if head.wording is not None else 1 for head in project.heads.values()]
    rows = search.validation_rows * sum(max(1, options) for options in worded) * search.evaluations
    return 2.0 * inside * positions * rows / _flops_per_second()


def _flops_per_second() -> float:
    """Returns the speed that models reach here: about half that of a float32 matrix product, which is timed."""
    matrix = np.ones((_PROBE, _PROBE), dtype=np.float32)
    matrix @ matrix
    start = time.perf_counter()
    rounds = 10
    for _ in range(rounds):
        matrix @ matrix
    return 0.5 * rounds * 2.0 * _PROBE**3 / (time.perf_counter() - start)
