from tests.storing.chain_maps import sample


def test_tasks_stand_in_the_order_of_the_chains() -> None:
    assert sample().tasks == ("sst2", "trec", "qqp")
