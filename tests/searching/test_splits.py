"""Sources and splits: which split serves for what, and mistakes that are found without asking the Hub."""

from pathlib import Path
from typing import Any

import pytest

from hf_merge.errors import DatasetError
from hf_merge.recipe import TaskSpec
from hf_merge.searching.splits import check_source, data_origin, splits_by_role


def task(**data: Any) -> TaskSpec:
    return TaskSpec.model_validate({"name": "sst2", "model": "org/model", "data": {"text": "text", **data}})


ALL = ("train", "validation", "test")


@pytest.mark.parametrize(
    ("available", "splits", "expected"),
    [
        (ALL, {}, {"test": "test", "validation": "validation", "train": "train"}),
        (("train", "test"), {}, {"test": "test", "train": "train"}),
        (("validation", "test", "extra"), {}, {"test": "test", "validation": "validation"}),
        (ALL, {"test": "validation"}, {"test": "validation", "train": "train"}),
        (("train", "dev", "test"), {"validation": "dev"}, {"test": "test", "validation": "dev", "train": "train"}),
        (
            ALL,
            {"test": "validation", "validation": "test"},
            {"test": "validation", "validation": "test", "train": "train"},
        ),
    ],
)
def test_roles_find_their_splits(available: tuple[str, ...], splits: Any, expected: dict[str, str]) -> None:
    assert splits_by_role(task(path="org/data", splits=splits), available) == expected


@pytest.mark.parametrize(
    ("available", "splits", "message"),
    [
        (
            ("train", "validation"),
            {},
            "no split 'test' for the role 'test': it is not there.*Known: train, validation",
        ),
        (ALL, {"validation": "validaton"}, "no split 'validaton' for.*Did you mean 'validation'"),
        (ALL, {"validation": "test"}, "no split 'test' for the role 'test': data.splits gives it to 'validation'"),
        (ALL, {"train": "extra"}, "no split 'extra' for the role 'train'"),
        (ALL, {"train": "validation", "validation": "validation"}, "no split 'validation' for the role 'validation'"),
        (("test", "dev"), {}, "neither a 'validation' nor a 'train' split to search with.*Known: dev, test"),
    ],
)
def test_splits_that_are_not_there_are_named(available: tuple[str, ...], splits: Any, message: str) -> None:
    with pytest.raises(DatasetError, match=f"(?s)Task 'sst2': .*{message}"):
        splits_by_role(task(path="org/data", splits=splits), available)


def test_missing_file_is_named_with_the_folder_it_was_looked_for_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        DatasetError, match=rf"the test file no/where.csv does not exist.*{tmp_path.name}.*data_files.test"
    ):
        check_source(task(path="csv", data_files={"test": "no/where.csv"}))


def test_addresses_and_patterns_are_left_to_datasets(tmp_path: Path) -> None:
    for file in ("hf://datasets/org/data/test.csv", "https://example.org/test.csv", str(tmp_path / "*.csv")):
        check_source(task(path="csv", data_files={"test": file}))


def test_paths_that_can_be_no_hub_id_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "test.csv"
    file.write_text("text,label\na,0\n")
    check_source(task(path=str(tmp_path)))
    check_source(task(path="org/data"))
    check_source(task(path="imdb"))
    with pytest.raises(DatasetError, match=r"test.csv' is a file.*data_files"):
        check_source(task(path=str(file)))
    for path in ("./gone", "/gone", "some/deep/folder", "~/data"):
        with pytest.raises(DatasetError, match=f"there is no folder '{path}'"):
            check_source(task(path=path))
    with pytest.raises(DatasetError, match="'parquet' reads files; name them"):
        check_source(task(path="parquet"))
    with pytest.raises(DatasetError, match=r"'parque' does not read data_files.*Did you mean 'parquet'"):
        check_source(task(path="parque", data_files={"test": str(file)}))


def test_data_that_were_mended_in_place_are_other_data(tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / f"{name}.csv").write_text("text,label\na,1\n")
    named = task(path="csv", data_files={name: str(tmp_path / f"{name}.csv") for name in ("train", "test")})
    lying = task(path=str(tmp_path))
    before = data_origin(named), data_origin(lying)
    assert before == (data_origin(named), data_origin(lying)) and before[0] != before[1]
    (tmp_path / "train.csv").write_text("text,label\nb,1\nc,0\n")
    assert all(one != other for one, other in zip(before, (data_origin(named), data_origin(lying)), strict=True))
    assert data_origin(task(path="org/data"))["files"] == []
