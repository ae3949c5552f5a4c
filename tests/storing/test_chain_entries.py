from dataclasses import replace

from tests.storing.chain_maps import sample


def test_tasks_stand_in_the_order_of_the_chains() -> None:
    assert sample().tasks == ("sst2", "trec", "qqp")


def test_tasks_need_their_chains_and_what_those_are_differences_from() -> None:
    chain_map = sample()
    assert chain_map.experts_of(["trec"]) == {"attention-a1", "mlp-b2"}
    differing = [
        replace(expert, reference="mlp-b1") if expert.id == "mlp-b2" else expert for expert in chain_map.experts
    ]
    differing_map = replace(chain_map, experts=tuple(differing))
    assert differing_map.references == {"mlp-b2": "mlp-b1"}
    assert differing_map.experts_of(["trec"]) == {"attention-a1", "mlp-b1", "mlp-b2"}
    assert differing_map.experts_of(["sst2"]) == {"attention-a1", "mlp-b1"}
