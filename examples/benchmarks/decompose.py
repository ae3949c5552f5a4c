"""Every model type of transformers cut into components by rule; no weights, no network, no table of architectures.

    python examples/benchmarks/decompose.py [--out examples/benchmarks/results/decompose.md] [TYPE ...]

Each type of transformers' AutoModel mapping is built on the meta device from its default configuration (a few defaults
describe no model: `SETTINGS` fills in what they lack), its tensors are named as on disk, and the rule places them by
these names alone. Checked for every one: the partition at each granularity is exact, and tied tensors are in it once.

Two witnesses that the rule does not read are asked as well. The module tree: where the name of a class says what a
tensor does (`BertSelfAttention`, `LlamaMLP`), is that its role, and do depths rise in the order of the tree? And the
names in memory, which differ from those on disk for many types: do they land in the same place?
"""

import argparse
import os
import platform
import re
import sys
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import transformers
from huggingface_hub import constants
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from hf_merge.merging.components import GRANULARITIES, ROLES, Place, cut, places, unplaced
from hf_merge.modeling.assembly import TransformersModel, skeleton_of
from hf_merge.modeling.layouts import Layout, layout_of


NAMED, ENOUGH = 0.97, 0.95
_RESNET = {
    "use_timm_backbone": False,
    "backbone": None,
    "backbone_config": {"model_type": "resnet", "out_features": ["stage4"]},
}
_RESNET_STAGES = _RESNET | {
    "backbone_config": {"model_type": "resnet", "out_features": ["stage2", "stage3", "stage4"]}
}
_ROPE = {kind: {"rope_type": "default", "rope_theta": 1e4} for kind in ("full_attention", "sliding_attention")}
_INDEXER = {
    "indexer_compress_ratio": 4, "indexer_budget": 2048, "indexer_n_heads": 4, "indexer_kv_heads": 1,
    "indexer_head_dim": 256,
}  # fmt: skip
# What the default configuration leaves out. For DETR and its like a ResNet takes the place of a backbone from timm.
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "autoformer": {"prediction_length": 24},
    "aya_vision": {
        "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 1152, "num_attention_heads": 16}
    },
    "chameleon": {"vocabulary_map": {"<image>": 8711}},
    "cohere_compass": {"text_config": {"rope_parameters": _ROPE}},
    "cohere_compass_text": {"rope_parameters": _ROPE},
    "conditional_detr": _RESNET,
    "dab-detr": _RESNET,
    "dbrx": {"attn_config": {"rope_theta": 5e5, "kv_n_heads": 8, "clip_qkv": 8}},
    "deepseek_ocr2": {"text_config": {"mlp_layer_types": ["dense"] + ["sparse"] * 11, "num_hidden_layers": 12}},
    "deformable_detr": _RESNET_STAGES,
    "detr": _RESNET,
    "diffusion_gemma": {"text_config": {"num_experts": 128, "top_k_experts": 8, "moe_intermediate_size": 704}},
    "dots1": {"n_routed_experts": 128, "n_shared_experts": 2},
    "emu3": {"vocabulary_map": {"<image>": 8711}},
    "esm": {"vocab_size": 33},
    "funnel": {"architectures": ["FunnelModel"]},
    "granite4_vision": {"deepstack_layer_map": [[-1, 0]], "downsample_rate": "4/8"},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "hunyuan_vl": {"text_config": {"head_dim": 128}},
    "hunyuan_vl_text": {"head_dim": 128},
    "informer": {"prediction_length": 24},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 48},
    "omdet-turbo": {
        "use_timm_backbone": False,
        "backbone_config": {"model_type": "swin", "out_features": ["stage2", "stage3", "stage4"]},
    },
    "qwen4_exp": {"text_config": _INDEXER},
    "qwen4_exp_text": _INDEXER,
    "table-transformer": _RESNET,
    "time_series_transformer": {"prediction_length": 24},
}

# What a class is for, where its name says so; the innermost class around a tensor counts.
_CLASSES = tuple(
    (role, re.compile(pattern))
    for role, pattern in (
        ("attention", r"(Attention|SelfOutput|Attn|GatedDeltaNet)$"),
        ("mlp", r"Mo[eE]\w*M(LP|lp)$|SharedExpert"),
        ("experts", r"(Experts?|M[oO][eE]|Router)$|M[oO][eE]Block|SparseMoe|TopK"),
        ("mlp", r"(MLP|Mlp|FeedForward|FFN|Intermediate|Output)$|Dense(Gated)?Act"),
        ("mixer", r"Mamba\w*Mixer$|(LSTM|GRU|RecurrentBlock|Modulation)$"),
        ("embedding", r"(Embeddings?|PatchMerger|Projector|Pooler|Connector)$"),
        ("head", r"Head$"),
        ("convolution", r"(ConvolutionModule|ResNet\w*Layer)$"),
    )
)


@dataclass
class Row:
    """What is known of one model type.

    Attributes:
        reason: Why it cannot be built, or None.
        parameters: Of all tensors on disk, tied ones once.
        shares: Of the parameters, by role.
        towers: By name: its share of the parameters, and how many blocks it has.
        other: The names without a role, the largest first.
        fused: How many tensors on disk have no single counterpart in memory.
        renamed: Of the tensors with a counterpart, whether some are called otherwise in memory, and which of these
            land in another place by their name in memory.
        witness: The share of the parameters whose class says a role, and the share where it is the rule's.
        rises: Whether depths rise in the order of the module tree.
    """

    model_type: str
    reason: str | None = None
    parameters: int = 0
    shares: Mapping[str, float] = field(default_factory=dict)
    towers: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    other: Sequence[str] = ()
    fused: int = 0
    renamed: bool = False
    moved: float = 0.0
    witness: tuple[float, float] = (0.0, 0.0)
    rises: bool = True


def main() -> None:
    """Surveys the types, prints a summary, and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", metavar="TYPE", help="only these model types")
    parser.add_argument("--out", type=Path, help="write the report here")
    arguments = parser.parse_args()
    constants.HF_HUB_OFFLINE = True
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    start = time.perf_counter(), time.process_time()
    rows = [survey(model_type) for model_type in arguments.types or sorted(MODEL_MAPPING_NAMES)]
    seconds = time.perf_counter() - start[0], time.process_time() - start[1]
    text = "\n".join(summary(rows, seconds))
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(report(rows, text), encoding="utf-8")
    built = [row for row in rows if row.reason is None]
    good = sum(row.shares.get("other", 0.0) <= 1 - NAMED for row in built)
    if good < ENOUGH * len(built):
        sys.exit(f"{good} of {len(built)} types have {NAMED:.0%} of their parameters in a named role; too few.")


def survey(model_type: str) -> Row:
    """Returns what is known of one model type; whatever stops transformers from building it becomes the reason."""
    try:
        model = skeleton_of(CONFIG_MAPPING[model_type](**SETTINGS.get(model_type, {})))
    except (AttributeError, ImportError, KeyError, TypeError, ValueError) as error:
        return Row(model_type, f"{type(error).__name__}: {' '.join(str(error).split())}")
    layout = layout_of(model)
    placed = places(layout.shapes)
    for granularity in GRANULARITIES:
        tensors = sorted(name for component in cut(placed, granularity) for name in component.tensors)
        if tensors != sorted(layout.shapes):
            raise RuntimeError(f"{model_type}: the components at granularity {granularity} are no partition.")
    return row_of(model_type, model, layout, placed)


def row_of(model_type: str, model: TransformersModel, layout: Layout, placed: Mapping[str, Place]) -> Row:
    """Returns the figures of a model that was built."""
    sizes = {name: prod(shape) for name, shape in layout.shapes.items()}
    total = sum(sizes.values())
    roles: Counter[str] = Counter()
    owned: Counter[str] = Counter()
    blocks: defaultdict[str, set[int]] = defaultdict(set)
    for name, place in placed.items():
        roles[place.role] += sizes[name]
        owned[place.tower] += sizes[name]
        blocks[place.tower] |= {place.depth} - {None}  # type: ignore[arg-type]
    other = sorted(unplaced(placed), key=lambda name: -sizes[name])
    in_memory = places(name for name, held in model.state_dict().items() if held.is_floating_point())
    moved = sum(sizes[name] for name, held in layout.memory.items() if in_memory[held] != placed[name])
    return Row(
        model_type,
        parameters=total,
        shares={role: roles[role] / total for role in ROLES},
        towers={tower: (size / total, len(blocks[tower])) for tower, size in owned.most_common()},
        other=other,
        fused=len(layout.fused),
        renamed=any(name != held for name, held in layout.memory.items()),
        moved=moved / total,
        witness=witness(model, layout, placed, sizes),
        rises=rises(model, layout, placed),
    )


def witness(
    model: TransformersModel, layout: Layout, placed: Mapping[str, Place], sizes: Mapping[str, int]
) -> tuple[float, float]:
    """Returns the share of the parameters whose class says what it is for, and the share where the rule agrees."""
    classes = {path: type(module).__name__ for path, module in model.named_modules()}
    said = agreed = 0
    for name, held in layout.memory.items():
        role = said_by(held.rpartition(".")[0], classes)
        said += sizes[name] if role else 0
        agreed += sizes[name] if role == placed[name].role else 0
    total = sum(sizes.values())
    return said / total, agreed / total


def said_by(path: str, classes: Mapping[str, str]) -> str | None:
    """Returns the role that the innermost telling class around a module's tensors names, or None."""
    own = classes[path]
    if "Norm" in own or own == "Embedding":
        return "embedding" if own == "Embedding" else "norm"
    while path:
        found = next((role for role, pattern in _CLASSES if pattern.search(classes[path])), None)
        if found is not None:
            return found
        path = path.rpartition(".")[0]
    return "convolution" if re.match(r"Conv(Transpose)?\dd$", own) else None


def rises(model: TransformersModel, layout: Layout, placed: Mapping[str, Place]) -> bool:
    """Returns whether the depths of every tower rise in the order in which the module tree holds its tensors."""
    disk = {held: name for name, held in layout.memory.items()}
    deepest: dict[str, int] = {}
    for place in (placed[disk[held]] for held in model.state_dict() if held in disk):
        if place.depth is not None and place.depth < deepest.get(place.tower, 0):
            return False
        deepest[place.tower] = place.depth or deepest.get(place.tower, 0)
    return True


def summary(rows: Sequence[Row], seconds: tuple[float, float]) -> list[str]:
    """Returns the lines that sum up a survey; `seconds` are on the clock and of the processor."""
    built = [row for row in rows if row.reason is None]
    good = sum(row.shares["other"] <= 1 - NAMED for row in built)
    renamed = [row for row in built if row.renamed]
    still = sum(row.moved == 0 for row in renamed)
    said, agreed = (mean(row.witness[index] for row in built) for index in (0, 1))
    whole, helped = sum(not row.other for row in built), [row for row in built if row.model_type in SETTINGS]
    others = mean(1 - row.moved for row in renamed if row.moved) if still < len(renamed) else 1.0
    return [
        f"* {len(rows)} model types, of which {len(built)} can be built, {len(helped)} of them with a setting that "
        "the default leaves out. Every one is cut into an exact partition at every granularity, tied tensors in it "
        f"once: {sum(row.parameters for row in built) / 1e12:.2f} T parameters.",
        f"* {NAMED:.0%} of the parameters and more in a named role: {good} types ({good / len(built):.1%} of those "
        f"built); all parameters: {whole} types.",
        f"* Fused or split in memory, separate on disk: {sum(row.fused > 0 for row in built)} types.",
        f"* Called otherwise in memory: {len(renamed)} types. In {still} of them every tensor has the same tower, "
        f"role and depth by either name; in the others {others:.1%} of the parameters have (mean over types).",
        f"* The class of a module says what it is for, for {said:.1%} of the parameters (mean over types). The rule, "
        f"which reads no class, says the same for {agreed / said:.1%} of these.",
        f"* Depths rise with the module tree in {sum(row.rises for row in built)} types.",
        f"* {seconds[0]:.0f} s on the clock, {seconds[1]:.0f} s of one core: {machine()}.",
    ]


def machine() -> str:
    """Returns what the survey ran on."""
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}"


def report(rows: Sequence[Row], text: str) -> str:
    """Returns the report: summary, what cannot be built, and a table of every model type."""
    built, failed = [row for row in rows if row.reason is None], [row for row in rows if row.reason is not None]
    roles = [role for role in ROLES if role != "other"]
    parts = [
        "# Every model type of transformers, decomposed",
        "    OMP_NUM_THREADS=1 python examples/benchmarks/decompose.py --out examples/benchmarks/results/decompose.md",
        text,
        "Shares are per cent of the parameters on disk. Under *blocks*, a tower is given with its number of blocks; a "
        "model of one stack has no towers but only that number. *fused*: disk and memory differ by more than names. "
        "*parallel*: several stacks of one tower count alongside each other, or the module tree holds blocks in "
        "another order than their numbers say. *moved*: the share of the parameters that have another tower, role or "
        "depth by their name in memory.",
        table(["model type", "parameters", *roles, "other", "blocks", "remarks"], map(cells, built)),
        "## What is `other`",
        table(
            ["model type", "%", "tensors"],
            ([row.model_type, f"{100 * row.shares['other']:.2f}", shown(row.other)] for row in built if row.other),
        ),
        f"## What cannot be built ({len(failed)})",
        "By their default configuration, in this environment, without a network.",
        table(["model type", "reason"], ([row.model_type, f"{row.reason:.110}"] for row in failed)),
    ]
    return "\n\n".join(parts) + "\n"


def cells(row: Row) -> list[str]:
    """Returns a row of the table."""
    shares = [f"{100 * row.shares[role]:.1f}" if row.shares[role] else "" for role in ROLES]
    towers = [f"{tower} {depth}".strip() for tower, (_, depth) in row.towers.items() if depth]
    moved = f"moved {100 * row.moved:.2f} %"
    remarks = [
        name for name, holds in (("fused", row.fused), ("parallel", not row.rises), (moved, row.moved)) if holds
    ]
    return [row.model_type, f"{row.parameters:,}", *shares, ", ".join(towers), ", ".join(remarks)]


def shown(names: Sequence[str]) -> str:
    """Returns the largest of the names, their numbers left out, and how many more there are."""
    kinds = list(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.)", "N", name) for name in names))
    more = f" and {len(kinds) - 3} more kinds" if len(kinds) > 3 else ""
    return ", ".join(f"`{kind}`" for kind in kinds[:3]) + more


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


if __name__ == "__main__":
    main()
