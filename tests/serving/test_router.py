import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from hf_merge.errors import InputError, MalformedChainMap
from hf_merge.serving.router import Router, RouterSettings, _batches, accuracy_per_task, fit


QUICK = RouterSettings(epochs=3)


def clouds(rows: int = 200, width: int = 12, tasks: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """One cloud of points per task, well apart, on very different scales."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % tasks
    # The centres are those of every seed: only the points around them differ.
    centres = torch.randn(tasks, width, generator=torch.Generator().manual_seed(99)) * 2
    scales = torch.logspace(-3, 3, width)
    return (centres[labels] + torch.randn(rows, width, generator=generator)) * scales + 5, labels


def equal(first: Router, second: Router) -> bool:
    one, other = first.tensors(), second.tensors()
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def test_tasks_that_lie_apart_are_told_apart() -> None:
    router = fit(*clouds(), 3, RouterSettings(epochs=15))
    features, labels = clouds(seed=1)
    assert (router.route(features) == labels).float().mean() > 0.95


def test_one_seed_decides_all() -> None:
    features, labels = clouds(70)
    assert equal(fit(features, labels, 3, QUICK), fit(features, labels, 3, QUICK))
    assert not equal(fit(features, labels, 3, QUICK), fit(features, labels, 3, RouterSettings(epochs=3, seed=1)))


def test_torchs_random_state_neither_enters_nor_changes() -> None:
    features, labels = clouds(70)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = fit(features, labels, 3, QUICK)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert equal(first, fit(features, labels, 3, QUICK))


def test_loading_draws_no_random_numbers() -> None:
    tensors = fit(*clouds(20), 3, QUICK).tensors()
    before = torch.random.get_rng_state()
    Router(tensors)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_router_comes_back_from_its_tensors_bit_for_bit() -> None:
    features, labels = clouds(70)
    router = fit(features, labels, 3, QUICK)
    loaded = Router(load(save({name: tensor.contiguous() for name, tensor in router.tensors().items()})))
    assert equal(router, Router(loaded.tensors()))
    assert torch.equal(router.scores(features), loaded.scores(features))
    assert (loaded.width, loaded.tasks) == (12, 3)


def test_rows_are_routed_one_by_one_as_in_a_batch() -> None:
    features, labels = clouds(50)
    router = fit(features, labels, 3, QUICK)
    alone = torch.cat([router.route(row[None]) for row in features])
    assert torch.equal(alone, router.route(features))


def test_some_tasks_alone_can_be_chosen_from() -> None:
    features, _ = clouds(seed=2)
    router = fit(*clouds(70), 3, QUICK)
    scores = router.scores(features)
    for among in ([0, 1], [1, 2], [2], [0, 1, 2]):
        chosen = router.route(features, among)
        assert torch.equal(chosen, scores[:, among].argmax(dim=1))
        assert int(chosen.max()) < len(among)
    assert torch.equal(router.route(features, [0, 1, 2]), router.route(features))


def test_one_task_needs_no_choice() -> None:
    features, _ = clouds(10, tasks=1)
    router = fit(features, torch.zeros(10, dtype=torch.int64), 1, QUICK)
    assert torch.equal(router.route(features), torch.zeros(10, dtype=torch.int64))


@pytest.mark.parametrize("rows", [2, 64, 65, 129])
def test_no_batch_holds_a_single_row(rows: int) -> None:
    losses: list[float] = []
    features, labels = clouds(rows)
    fit(features, labels, 3, QUICK, losses.append)
    assert len(losses) == QUICK.epochs
    assert all(loss > 0 for loss in losses)


@given(st.integers(2, 400))
@settings(max_examples=60, deadline=None)
def test_batches_hold_each_row_once_and_never_one_alone(rows: int) -> None:
    order = torch.randperm(rows)
    batches = list(_batches(order))
    assert torch.equal(torch.cat(batches), order)
    assert all(2 <= len(batch) <= 65 for batch in batches)


@pytest.mark.parametrize("rows", [0, 1])
def test_too_few_rows_are_refused(rows: int) -> None:
    with pytest.raises(InputError, match=f"cannot be trained on {rows} rows"):
        fit(torch.zeros(rows, 4), torch.zeros(rows, dtype=torch.int64), 2, QUICK)


def test_features_that_never_change_do_no_harm() -> None:
    features, labels = clouds(70)
    features[:, 3] = 7.0
    assert torch.isfinite(fit(features, labels, 3, QUICK).scores(features)).all()


@pytest.mark.parametrize("shape", [(4, 11), (4, 13), (12,), (1, 2, 12)])
def test_features_of_another_width_are_refused(shape: tuple[int, ...]) -> None:
    router = fit(*clouds(20), 3, QUICK)
    with pytest.raises(InputError, match=r"features of width 12, not on \["):
        router.scores(torch.zeros(shape))


@pytest.mark.parametrize(
    ("name", "damaged"),
    [
        ("mean", None),
        ("mean", torch.zeros(12, 1)),
        ("mean", torch.zeros(11)),
        ("mean", torch.full((12,), torch.nan)),
        ("mean", torch.zeros(12, dtype=torch.float64)),
        ("deviation", None),
        ("deviation", torch.zeros(12)),
        ("net.0.weight", torch.zeros(12, 24)),
        ("net.0.weight", torch.full((24, 12), torch.inf)),
        ("net.1.running_var", torch.full((24,), -1.0)),
        ("net.1.num_batches_tracked", torch.tensor(1.0)),
        ("net.8.bias", None),
        ("net.8.bias", torch.zeros(4)),
        ("net.8.bias", torch.tensor(1.0)),
        ("net.9.bias", torch.zeros(3)),
        ("other", torch.zeros(3)),
    ],
)
def test_damaged_tensors_are_refused(name: str, damaged: Tensor | None) -> None:
    tensors = fit(*clouds(20), 3, QUICK).tensors()
    if damaged is None:
        del tensors[name]
    else:
        tensors[name] = damaged
    with pytest.raises(MalformedChainMap, match="router"):
        Router(tensors)


def test_a_width_that_is_a_lie_takes_no_memory() -> None:
    tensors = fit(*clouds(20), 3, QUICK).tensors()
    tensors["mean"] = tensors["deviation"] = torch.ones(10_000_000)  # its second layer would take 1.6 petabytes
    with pytest.raises(MalformedChainMap, match=r"'net\.0\.weight' is torch\.float32 \[24, 12\]"):
        Router(tensors)


def test_accuracy_counts_each_tasks_own_rows() -> None:
    labels = torch.tensor([0, 0, 0, 0, 2, 2])
    predicted = torch.tensor([0, 0, 0, 1, 2, 0])
    assert accuracy_per_task(predicted, labels, ["a", "b", "c"]) == {"a": 0.75, "c": 0.5}
