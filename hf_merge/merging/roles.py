"""Roles: what a tensor does in its model, read off the words of its name on disk.

Some words name a whole module (`self_attn`, `mlp`, `experts`, `mamba`), and the innermost of these decides. Others
name a layer (`q_proj`, `fc1`, `A_log`) and decide where no module does. What is left inside a block goes by vaguer
words, and a name without any is `other`: the rule says so rather than guess. Outside every block stand heads, and what
turns input into the width of the blocks: tables, patches, projections, poolers, all of them `embedding`.

Source: docs/adr/0009-roles-by-rule.md.
"""

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TypeAlias

from hf_merge.merging.blocks import Path, path_of


ROLES = ("embedding", "attention", "mixer", "mlp", "experts", "convolution", "norm", "head", "other")

# A model's names are many, but they consist of few segments and few patterns.
_REMEMBERED = 2**14
_Words: TypeAlias = Callable[[str], tuple[int, str] | None]


def _words(*rules: tuple[str, str]) -> _Words:
    """Returns what tells the rank and role of the first rule whose pattern fits a segment."""
    compiled = [(rank, role, re.compile(pattern)) for rank, (role, pattern) in enumerate(rules)]

    @lru_cache(maxsize=_REMEMBERED)
    def says(segment: str) -> tuple[int, str] | None:
        return next(((rank, role) for rank, role, pattern in compiled if pattern.search(segment)), None)

    return says


_MODULES = _words(
    (
        "norm",
        r"norm(?!al_|er)|^ada_?ln|^ln(_|\d|$)|_ln$|(^|_)bn\d*$|(^|_)rms$|layer_?scale|^ls\d|^(rbr_)?identity$|^grn$",
    ),
    ("norm", r"^(gamma|lambda|alpha|beta)s?(_?\d.*)?$|^running_(mean|var)$"),
    ("experts", r"experts?(_|\d|$)|(^|_)moe(_|$)|(^|_)router(_|$)|^e_score"),
    ("attention", r"bias_mlp|attn|attention|(^|_)att(_|$)|(^|_)attends?$"),
    ("mlp", r"(^|_)mlps?(_|\d|$)|(^|_)ff(n|ns|w)?(_|\d|$)|feed_?forward|densereludense"),
    ("mixer", r"mamba|(^|_)ssm(_|$)|rg_lru|lstm|^(rnn|gru)s?$|fourier"),
)
_LAYERS = _words(
    ("mlp", r"^(intermediate|output)_(query|dense)$"),
    (
        "attention",
        r"qkv|^(quer(y|ies)|keys?|values?)(_|$)|_query$|^w?[qkv](_|$)|^w[qkvo]$|^o(_proj)?$|^to_([qkv]|out)$",
    ),
    ("attention", r"^[cs]a_|(^|_)kv(_|$)|receptance|sampling_offsets|^relative_k"),
    ("mixer", r"^(a_log|d|dt_bias|dt_proj|x_proj)$"),
    ("mlp", r"(gate|up|down)_proj|proj_(up|down)|gate_up|up_gate|^fc(_|\d|$)|_fc(\d|$)|^w_?[123]$|^w[io](_|$)"),
    ("mlp", r"(^|_)(intermediate|output)(_|$)|^lin(ear)?_?[123]$|h_to_\d*h|pwconv|^dense_?\d|inner_dense"),
)
_VAGUE = _words(
    ("norm", r"^(layer_)?scal(e|ar)$"),
    ("mixer", r"mixer|temporal_block|focal|^modulation$"),
    ("convolution", r"conv|sampl|reduc|aggregation|shortcut|squeeze|excit|kernel|lateral|resblock|rbr_|stem|wavenet"),
    ("embedding", r"embed|(^|_)(pos|position|token|codebook|patch)(_|s|$)|latents?"),
    ("mlp", r"dense|linear|(^|_)lin(_|$)|proj|(^|_)out(put)?(_|$)|(^|_)gate$|transform(ation)?$"),
)
# What every token passes beside the experts is an ordinary mlp.
_SHARED = re.compile(r"shared?_?(expert|mlp)")
_OUT = re.compile(r"^(out|output)(_proj|_projection|_linear)?$")
# A name's last segments speak of the tensor; what stands before may be a model's name (`roberta_prelayernorm`).
_OWN = 3
_HEADS = re.compile(
    r"(^|_)(?<!multi_)heads?\d*(_|$)|classifiers?$|^scores?$|^qa_outputs$|^cls$|predictions?$|^predict_|_pred$|"
    r"^logits|_logits(_bias)?$|^unembed$|^vocab_|^embed_out$|(bbox|box|class)_(embed|predictor)$|^output_(layer|projection)$|"
    r"seq_relationship"
)
_NECKS = re.compile(r"fpn|(^|_)pan(_|$)|(^|_)neck$")
_BIAS_TABLES = re.compile(r"(attention|attn|relative|rel)_?(\w+_)?(bias|pos|embedding)")
_STEMS = re.compile(
    r"embed|_emb$|(^|_)w[tp]e(_|$)|^shared$|patch|codebook|quantiz|posit|(^|_)pos(_|$)|tok|vocab|rotary|latent|"
    r"^conv[12]$|feature_extractor|subsampl|stem|pool|project|(^|_)proj(_|$)|merger|connector|adapter|aligner|resampler|"
    r"logit_(scale|bias)|newline|prompt|^w$"
)


def role_of(name: str) -> str:
    """Returns the role of a tensor, one of `ROLES`, read off its name on disk alone."""
    return _role_of(re.sub(r"(?<=\.)\d+(?=\.)", "0", name))


def roles_of(names: Iterable[str]) -> dict[str, str]:
    """Returns the roles of a model's tensors, where names that say little alone go by the company they keep.

    A module with a router holds experts, whatever they are called; a gate beside experts is their router; and what
    leads out of a module with queries and keys is attention.

    Args:
        names: The names on disk.
    """
    found = {name: role_of(name) for name in names}
    routed, attending = set(), set()
    for name, role in found.items():
        before, routes, _ = name.partition(".router." if ".router." in name else ".experts.")
        if routes:
            routed.add(before)
        elif role == "attention":
            attending.add(_module_of(name)[0])
    for name, role in found.items():
        if role in ("mlp", "mixer"):
            module, layer = _module_of(name)
            gated, gate, _ = name.partition(".gate.")
            if (module in routed and not _SHARED.search(layer)) or (gate and gated in routed):
                found[name] = "experts"
            elif module in attending and _OUT.search(layer) and not module[-1].isdecimal():
                found[name] = "attention"
    return found


@lru_cache(maxsize=_REMEMBERED)
def _role_of(name: str) -> str:
    path = path_of(name)
    return _inside(path) if path.in_block else _outside(path.segments)


def _inside(path: Path) -> str:
    """Returns the role of a tensor in a block."""
    modules = _all(path.inside, _MODULES)
    if modules and modules[-1] != "norm" and _any(path.inside, _SHARED):
        return "mlp"
    if modules:
        return "experts" if modules[-1] != "norm" and "experts" in modules else modules[-1]
    said = _first(path.inside, _LAYERS) or _first(path.stack, _MODULES) or _first(path.inside, _VAGUE)
    return said or ("convolution" if _first((*path.before[-2:], *path.stack), _VAGUE) == "convolution" else "other")


def _outside(segments: tuple[str, ...]) -> str:
    """Returns the role of a tensor outside every block."""
    if _all(segments[-_OWN:], _MODULES)[-1:] == ["norm"]:
        return "norm"
    if _any(segments, _HEADS):
        return "head"
    if _any(segments, _NECKS):
        return "convolution"
    modules = [role for role in _all(segments[-_OWN - 1 :], _MODULES) if role != "norm"]
    if _any(segments, _BIAS_TABLES):
        return "embedding"
    if modules[-1:] == ["attention"] or "experts" in modules:
        return "experts" if "experts" in modules else "attention"
    if _any(segments, _STEMS):
        return "embedding"
    said = _first(segments, _LAYERS) or _first(segments, _VAGUE) or "other"
    return modules[-1] if modules else "embedding" if said == "mlp" else said


def _module_of(name: str) -> tuple[str, str]:
    """Returns the module around a tensor's own layer, and the layer: `layers.0.mixer` and `out_proj`."""
    module, _, layer = name.rpartition(".")[0].rpartition(".")
    return module, layer


def _any(segments: tuple[str, ...], pattern: re.Pattern[str]) -> bool:
    return any(pattern.search(segment) for segment in segments)


def _all(segments: tuple[str, ...], words: _Words) -> list[str]:
    """Returns what the segments say, from the outermost in; those that say nothing are left out."""
    return [said[1] for segment in segments if (said := words(segment)) is not None]


def _first(segments: tuple[str, ...], words: _Words) -> str | None:
    """Returns the role of the first rule that fits any of the segments."""
    said = [found for segment in segments if (found := words(segment)) is not None]
    return min(said)[1] if said else None
