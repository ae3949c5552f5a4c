"""One thread for what must have the same bytes anywhere, and as many as before afterwards, whatever happens."""

import pytest
import torch

from hf_merge.merging.threads import one_thread


def test_within_there_is_one_thread_and_afterwards_as_many_as_before() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with pytest.raises(InterruptedError), one_thread():
            assert torch.get_num_threads() == 1
            raise InterruptedError
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
