"""The worked example in CONTRIBUTING.md is code that runs."""

import importlib.util
import re
from pathlib import Path

import torch

from hf_merge.merging.methods import Member, MergeMethod


GUIDE = Path(__file__).parent.parent / "CONTRIBUTING.md"


def test_the_example_of_a_merge_method_is_a_merge_method(tmp_path: Path) -> None:
    block = re.search(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    file = tmp_path / "magmax.py"
    file.write_text(block[1], encoding="utf-8")
    spec = importlib.util.spec_from_file_location("magmax", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    method = module.METHOD
    assert isinstance(method, MergeMethod)
    assert method.name == file.stem

    base = torch.tensor([1.0, 1.0, 1.0])
    members = [
        Member("a", torch.tensor([2.0, 0.0, 1.5]), seed=0),
        Member("b", torch.tensor([1.5, 3.0, 0.0]), seed=1),
    ]
    merged = method.merge(base, members, {"scale": 0.5})
    torch.testing.assert_close(merged, torch.tensor([1.5, 2.0, 0.5]))
    torch.testing.assert_close(base, torch.ones(3))
