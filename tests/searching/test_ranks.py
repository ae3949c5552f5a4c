"""Ranks: one alone needs no one, several find each other and exchange objects, and nobody waits for ever."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_merge.errors import InputError
from hf_merge.searching.ranks import Ranks, device_of, of_launcher


ROOT = Path(__file__).parents[2]
MEETING = """
from hf_merge.searching.ranks import Ranks
ranks = Ranks.join(60.0)
if ranks.leads:
    ranks.share({"word": ("a", 1)})
    word = {"word": ("a", 1)}
else:
    word = ranks.receive()
print(ranks.index, ranks.count, word, ranks.gather([f"from {ranks.index}"] * (1 + ranks.index)), flush=True)
ranks.leave()
"""


def started(script: str, port: int, rank: int, count: int = 2) -> "subprocess.Popen[str]":
    place = {"RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count)}
    return subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, **place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def test_one_alone_leads_and_hears_itself() -> None:
    ranks = Ranks()
    assert ranks.leads
    ranks.share("word")
    assert ranks.gather([1, 2]) == [1, 2]
    ranks.leave()


def test_what_rank_0_shares_all_receive_and_what_all_have_is_gathered_in_order(free_port: int) -> None:
    processes = [started(MEETING, free_port, rank) for rank in range(2)]
    said = [process.communicate(timeout=120) for process in processes]
    for index, (out, errors) in enumerate(said):
        expected = f"{index} 2 {{'word': ('a', 1)}} ['from 0', 'from 1', 'from 1']"
        assert out.strip() == expected, errors


SLOW_START = """
import time
from hf_merge.errors import WorkerError
from hf_merge.searching.ranks import Ranks
ranks = Ranks.join(1.0)
if ranks.leads:
    time.sleep(3.0)  # pulls, longer than the deadline
    ranks.share("pairs")
else:
    print(ranks.receive(), flush=True)
    time.sleep(3.0)  # and now this one
print(ranks.gather([ranks.index]), flush=True)
if ranks.leads:
    time.sleep(30.0)  # hangs
else:
    try:
        ranks.receive()
    except WorkerError as error:
        print(error, flush=True)
"""


@pytest.mark.slow
def test_preparing_may_take_longer_than_the_deadline_which_holds_from_the_first_exchange_on(free_port: int) -> None:
    lead, worker = (started(SLOW_START, free_port, rank) for rank in range(2))
    try:
        out, errors = worker.communicate(timeout=120)
        assert out.startswith("pairs\n[0, 1]\n"), (out, errors)
        assert "Rank 1 waited for the others in vain" in out and "within 1 s" in out and "--deadline" in out
        assert lead.poll() is None
    finally:
        lead.kill()
        lead.communicate()


def test_ranks_that_do_not_come_are_not_waited_for_for_ever() -> None:
    script = (
        "from hf_merge.searching.ranks import Ranks\nfrom hf_merge.errors import WorkerError\n"
        "try:\n    Ranks.join(2.0, start_seconds=2.0)\nexcept WorkerError as error:\n    print(error)\n"
    )
    out, errors = started(script, 1, 1).communicate(timeout=120)
    assert "did not find each other within 2 s" in out, errors


def test_without_an_accelerator_the_processors_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of("auto") == device_of("cpu") == torch.device("cpu")
    with pytest.raises(InputError, match="'cuda' is asked for, and torch finds none"):
        device_of("cuda")


@pytest.mark.parametrize(("local_rank", "index"), [(None, 0), ("1", 1), ("5", 1)])
def test_every_rank_of_a_machine_has_an_accelerator_of_its_own(
    monkeypatch: pytest.MonkeyPatch, local_rank: str | None, index: int
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert device_of("auto") == device_of("cuda") == torch.device("cuda", index)
    assert device_of("cpu") == torch.device("cpu")


def test_what_a_launcher_did_not_put_there_is_refused_and_nothing_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "")
    assert of_launcher("WORLD_SIZE", 1) == 1
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(InputError, match="WORLD_SIZE is 'many' in the environment"):
        of_launcher("WORLD_SIZE", 1)


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(InputError, match=r"Unknown device 'cudda'.*cuda"):
        device_of("cudda")
