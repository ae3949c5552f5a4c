"""Sources and splits: which split or slice serves for what, and mistakes that are found without asking the Hub."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_merge.errors import DatasetError
from hf_merge.recipe import TaskSpec
from hf_merge.searching.splits import Part, check_source, data_origin, splits_by_role


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
    found = splits_by_role(task(path="org/data", splits=splits), dict.fromkeys(available, 50))
    assert found == {role: Part(name, name, range(50)) for role, name in expected.items()}


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        ({"train": "train[:80%]", "test": "train[80%:]"}, {"test": range(40, 50), "train": range(40)}),
        (
            {"train": "train[:-20]", "validation": "train[-20:-10]", "test": "train[-10:]"},
            {"test": range(40, 50), "validation": range(30, 40), "train": range(30)},
        ),
        ({"test": "test[:300]"}, {"test": range(7), "train": range(50)}),
        ({"test": "train[10:20]", "train": "train[20:]"}, {"test": range(10, 20), "train": range(20, 50)}),
        ({"test": "train[30:]", "train": "train[5:2]"}, {"test": range(30, 50), "train": range(5, 5)}),
    ],
)
def test_a_slice_is_read_as_datasets_read_it(splits: Any, expected: dict[str, range]) -> None:
    spec = task(path="org/data", splits=splits)
    found = splits_by_role(spec, {"train": 50, "test": 7})
    assert {role: part.rows for role, part in found.items()} == expected
    assert all(found[role].name == name for role, name in splits.items())


@given(st.integers(0, 300), st.integers(0, 100))
def test_two_slices_cut_at_one_place_hold_every_row_once(rows: int, percent: int) -> None:
    spec = task(path="org/data", splits={"train": f"all[:{percent}%]", "test": f"all[{percent}%:]"})
    found = splits_by_role(spec, {"all": rows})
    assert [*found["train"].rows, *found["test"].rows] == list(range(rows))


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"test": "train[:150%]"}, r"data.splits.test is 'train\[:150%\]', which is no slice.*\"train\[80%:\]\""),
        ({"validation": "dev[:5]"}, r"no split 'dev\[:5\]' for the role 'validation': it is not there"),
        (
            {"test": "train[40:]", "train": "train[:42]"},
            r"'train\[40:\]' for 'test' and 'train\[:42\]' for 'train' share rows 40 to 41 of 'train'. Give each role",
        ),
        ({"test": "train[40:]", "validation": "train"}, "and 'train' for 'validation' share rows 40 to 49"),
    ],
)
def test_slices_that_cannot_be_had_are_named(splits: Any, message: str) -> None:
    with pytest.raises(DatasetError, match=f"(?s)Task 'sst2': .*{message}"):
        splits_by_role(task(path="org/data", splits=splits), {"train": 50, "test": 7})


def test_a_split_that_lends_the_test_rows_is_not_searched_with_unasked() -> None:
    spec = task(path="org/data", splits={"test": "train[90%:]"})
    with pytest.raises(DatasetError, match=r"'train\[90%:\]' is there to test with, but neither.*a slice will do"):
        splits_by_role(spec, {"train": 50})
    assert splits_by_role(spec, {"train": 50}, ("test",))["test"].rows == range(45, 50)


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
        splits_by_role(task(path="org/data", splits=splits), dict.fromkeys(available, 50))


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
