"""Benchmarks whose numbers stand in the documents: what they compute, on tiny models."""

import argparse
import importlib
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch

from hf_merge.recipe import Recipe
from tests.tiny_models import TinyFamily
from tests.tiny_runs import SEARCH, TinyRun


ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples" / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Returns what imports a benchmark as its own command does: beside the others."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


class NeedsNothing(Exception):
    """A benchmark took an empty command line."""


def test_make_runs_exactly_the_benchmarks_that_need_no_argument(
    benchmark: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parse = argparse.ArgumentParser.parse_args

    def asked(parser: argparse.ArgumentParser, *_: object) -> None:
        parse(parser, [])
        raise NeedsNothing

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", asked)
    ready = set()
    for path in sorted(FOLDER.glob("*.py")):
        with pytest.raises((NeedsNothing, SystemExit)) as ended:
            benchmark(path.stem).main()
        ready |= {path.stem} if ended.type is NeedsNothing else set()
    listed = re.search(r"^BENCHMARKS = (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert listed is not None
    assert set(listed[1].split()) == ready
    assert "required" in capsys.readouterr().err


@pytest.mark.slow
def test_a_mixture_is_told_beside_the_best_method_alone(
    benchmark: Callable[[str], ModuleType], tiny_family: Callable[[str], TinyFamily], tmp_path: Path
) -> None:
    automerge = benchmark("automerge")
    recipe = Recipe.parse(tiny_family("bert").recipe(search=SEARCH), "test")
    varied = automerge.automerging(recipe, "type", 0, 26)
    assert (varied.search.preset, varied.search.validation_rows) == ("automerge", SEARCH["validation_rows"])
    found = automerge.measured(varied, tmp_path, 10)
    plain, alone, mixed = (found["chosen"][name] for name in (automerge.DEFAULT, automerge.ALONE, automerge.MIXED))
    assert plain["validation"] <= alone["validation"] <= mixed["validation"]
    assert found["evaluated"] == 26
    assert len({method["name"] for method in alone["methods"]}) == 1
    assert all(set(column) == {0} for column in mixed["grouping"])
    text = automerge.as_markdown([{"seed": 0} | found, {"seed": 1} | found])
    assert f"{mixed['validation']:.4f} ± 0.0000" in text
    again = automerge.measured(varied, tmp_path, 10)
    assert again == found


def test_calibrated_differences_are_closest_in_their_outputs(benchmark: Callable[[str], ModuleType]) -> None:
    closest = benchmark("calibration").closest_outputs
    generator = torch.Generator().manual_seed(0)
    difference = torch.randn(12, 8, generator=generator)
    inputs = torch.randn(500, 8, generator=generator) * torch.tensor([10.0, 5, 2, 1, 1, 0.5, 0.2, 0.1])
    products = inputs.T @ inputs / len(inputs)
    left, values, right = torch.linalg.svd(difference, full_matrices=False)
    for rank in (1, 3, 7):
        plain = (left[:, :rank] * values[:rank]) @ right[:rank]
        found = closest(difference, products, rank, 1.0)
        assert torch.linalg.matrix_rank(found) == rank
        lost, lost_plainly = ((inputs @ (difference - each).T).square().sum() for each in (found, plain))
        assert lost < lost_plainly
        torch.testing.assert_close(closest(difference, torch.eye(8), rank, 1.0), plain, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(closest(difference, products, 8, 1.0), difference, rtol=1e-4, atol=1e-4)


def test_claims_count_own_rows_and_strangers(
    benchmark: Callable[[str], ModuleType], tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = benchmark("claims")
    (tmp_path / "other").mkdir()
    pyarrow.parquet.write_table(pyarrow.table({"text": ["zz", "qq zz", "0 1"]}), tmp_path / "other" / "test.parquet")
    words = [str(tiny_run.folder), "--strangers", str(tmp_path / "other" / "test.parquet"), "--rows", "12"]
    monkeypatch.setattr("sys.argv", ["claims.py", *words, "--out", str(tmp_path / "claims.json")])
    claims.main()
    text = (tmp_path / "claims.md").read_text()
    found: list[dict[str, Any]] = claims.json.loads((tmp_path / "claims.json").read_text())["claims"]
    assert [row["claim"] for row in found] == [None, 0.5, 0.8, 0.9, 0.95, 0.99]
    assert set(found[0]["claimed"].values()) == {1.0} and found[0]["strangers"] == {"other/test": 1.0}
    for lower, higher in pairwise(found):
        assert all(higher["claimed"][task] <= share for task, share in lower["claimed"].items())
        assert all(higher["right"][task] <= share for task, share in lower["right"].items())
        assert higher["strangers"]["other/test"] <= lower["strangers"]["other/test"]
    assert "| none | 100.0 |" in text


def test_the_recipe_of_the_mergers_is_one(benchmark: Callable[[str], ModuleType], tmp_path: Path) -> None:
    mergers = benchmark("mergers")
    (tmp_path / "recipe.yaml").write_text(mergers.safe_dump(mergers.recipe_of(tmp_path)))
    assert len(Recipe.load(tmp_path / "recipe.yaml").tasks) == mergers.TASKS
