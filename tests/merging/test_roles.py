"""Roles: by the innermost module in a name, by company where the name says little, and `other` where it is mute."""

import pytest

from hf_merge.merging.roles import ROLES, role_of, roles_of
from tests.merging.families import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_roles_of_families(family: str) -> None:
    placed = FAMILIES[family]
    assert roles_of(placed) == {name: role for name, (_, role, _) in placed.items()}


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("layers.0.self_attn.q_norm.weight", "norm"),
        ("layers.0.post_attention_layernorm.weight", "norm"),
        ("layers.0.cross_attention.mlp.fc2.weight", "mlp"),
        ("layers.0.attention.self.continuous_position_bias_mlp.0.weight", "attention"),
        ("layers.0.self_attn.distance_embedding.weight", "attention"),
        ("layers.0.linear_attn.conv1d.weight", "attention"),
        ("layers.0.mlp.dwconv.dwconv.weight", "mlp"),
        ("layers.0.mlp.experts.3.norm.weight", "norm"),
        ("layers.0.sa_qcontent_proj.weight", "attention"),
        ("layers.0.mixer.conv1d.weight", "mixer"),
        ("encoder.relative_attention_bias.weight", "embedding"),
        ("perceiver.encoder.cross_attention.attention.self.query.weight", "attention"),
        ("neck.fpn.layers.0.weight", "convolution"),
        ("image_newline", "embedding"),
        ("final_logits_bias", "head"),
    ],
)
def test_the_innermost_module_decides(name: str, role: str) -> None:
    assert role_of(name) == role


def test_a_gate_is_a_router_only_beside_experts() -> None:
    gate, expert, dense = "layers.0.mlp.gate.weight", "layers.0.mlp.experts.0.up.weight", "layers.1.mlp.gate.weight"
    assert roles_of([gate, expert, dense]) == {gate: "experts", expert: "experts", dense: "mlp"}
    assert roles_of([gate]) == {gate: "mlp"}


def test_an_mlp_beside_experts_in_a_block_stays_an_mlp() -> None:
    names = ["layers.0.router.proj.weight", "layers.0.experts.gate_up_proj", "layers.0.mlp.up_proj.weight"]
    assert list(roles_of(names).values()) == ["experts", "experts", "mlp"]


@pytest.mark.parametrize(
    "name", ["", ".", "a", "0", "1.2.3", "layers.0", "layers..0.x", "é.0.weight", "layers.0.x.weight"]
)
def test_any_name_has_a_role(name: str) -> None:
    assert role_of(name) in ROLES
    assert roles_of([name]) == {name: role_of(name)}
