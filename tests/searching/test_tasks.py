"""Loading a task's data: which rows serve for what, that no content serves twice, and mistakes with their remedies."""

import io
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pyarrow.parquet
import pytest

from hf_merge.errors import DatasetError, HfMergeError, HubError, RecipeError
from hf_merge.recipe import TaskSpec
from hf_merge.searching.rows import Rows
from hf_merge.searching.tasks import TaskData, load_task, load_test


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has a cache of its own; datasets reads HF_HOME only once, on import."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "home" / "datasets"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    path.mkdir()
    return path


def spec(files: Mapping[str, Path] | None = None, metric: str = "accuracy", **data: Any) -> TaskSpec:
    """Makes the task 'a' with the given files; text task unless `image` is named."""
    if files is not None:
        data = {
            "path": next(iter(files.values())).suffix[1:],
            "data_files": {k: str(v) for k, v in files.items()},
        } | data
    if "image" not in data:
        data = {"text": "text"} | data
    return TaskSpec.model_validate({"name": "a", "model": "org/model", "metric": metric, "data": data})


def load(task: TaskSpec, **settings: Any) -> TaskData:
    defaults = {"validation_rows": 512, "router_rows": 1000, "seed": 0, "num_labels": 2, "label_names": None}
    return load_task(task, **(defaults | settings))


def parquet(path: Path, features: datasets.Features | None = None, **columns: Sequence[Any]) -> Path:
    datasets.Dataset.from_dict(columns, features=features).to_parquet(path)
    return path


def text_split(path: Path, prefix: str, rows: int) -> Path:
    labels = [index % 2 for index in range(rows)]
    return parquet(path, text=[f"{prefix} {index}" for index in range(rows)], label=labels)


@pytest.fixture
def three(folder: Path) -> dict[str, Path]:
    """Train (40 rows), validation (30) and test (20), all different."""
    sizes = {"train": 40, "validation": 30, "test": 20}
    return {split: text_split(folder / f"{split}.parquet", split, rows) for split, rows in sizes.items()}


def numbers(rows: Rows) -> list[int]:
    assert rows.texts is not None
    return [int(text.split()[-1]) for text in rows.texts]


def test_the_test_rows_alone_are_those_of_the_task_and_need_no_other_split(three: dict[str, Path]) -> None:
    whole = load(spec(three))
    alone = load_test(spec({"test": three["test"]}), num_labels=2, label_names=None)
    assert alone.texts == whole.test.texts
    assert np.array_equal(alone.labels, whole.test.labels)
    with pytest.raises(DatasetError, match="no split 'test' for the role 'test'"):
        load_test(spec({"train": three["train"]}), num_labels=2, label_names=None)


# Which rows


def test_whole_splits_are_used_when_they_fit(three: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    data = load(spec(three))
    assert data.name == "a"
    assert data.test.texts == tuple(f"test {index}" for index in range(20))
    assert data.search.texts == tuple(f"validation {index}" for index in range(30))
    assert data.router.texts == tuple(f"train {index}" for index in range(40))
    assert data.test.pairs is None
    assert data.test.images is None
    assert len(data.test) == 20
    assert data.test.labels.dtype == np.int64
    assert data.test.labels.tolist() == [0, 1] * 10
    with pytest.raises(ValueError, match="read-only"):
        data.test.labels[0] = 1
    assert capsys.readouterr() == ("", "")


def test_rows_are_drawn_by_the_seed_and_keep_their_order(three: dict[str, Path]) -> None:
    drawn = load(spec(three), validation_rows=10, router_rows=15)
    assert len(drawn.search) == 10
    assert len(drawn.router) == 15
    assert len(drawn.test) == 20
    for rows in (drawn.search, drawn.router):
        assert numbers(rows) == sorted(numbers(rows))
        assert rows.labels.tolist() == [number % 2 for number in numbers(rows)]
    again = load(spec(three), validation_rows=10, router_rows=15)
    assert (again.search.texts, again.router.texts) == (drawn.search.texts, drawn.router.texts)
    other = load(spec(three), validation_rows=10, router_rows=15, seed=1)
    assert other.search.texts != drawn.search.texts
    assert other.router.texts != drawn.router.texts


def test_without_validation_the_search_draws_from_train(three: dict[str, Path]) -> None:
    del three["validation"]
    data = load(spec(three), validation_rows=10)
    assert len(data.search) == 10
    assert sorted(numbers(data.search) + numbers(data.router)) == list(range(40))
    assert numbers(data.search) == sorted(numbers(data.search)) != list(range(10))
    even = load(spec(three))
    assert len(even.search) == len(even.router) == 20


def test_without_train_the_router_draws_from_validation(three: dict[str, Path]) -> None:
    del three["train"]
    data = load(spec(three), validation_rows=20, router_rows=6)
    assert len(data.search) == 20
    assert len(data.router) == 6
    assert not set(numbers(data.search)) & set(numbers(data.router))
    even = load(spec(three))
    assert len(even.search) == len(even.router) == 15
    assert not set(numbers(even.search)) & set(numbers(even.router))


def test_a_renamed_split_serves_one_role_only(three: dict[str, Path]) -> None:
    data = load(spec(three, splits={"test": "validation"}), validation_rows=10)
    assert data.test.texts == tuple(f"validation {index}" for index in range(30))
    assert data.search.texts is not None
    assert data.router.texts is not None
    assert all(text.startswith("train") for text in data.search.texts + data.router.texts)


def test_a_split_alone_serves_all_roles_in_slices(three: dict[str, Path]) -> None:
    slices = {"train": "train[:50%]", "validation": "train[20:30]", "test": "train[-25%:]"}
    data = load(spec({"train": three["train"]}, splits=slices), validation_rows=10)
    assert numbers(data.router) == list(range(20))
    assert numbers(data.search) == list(range(20, 30))
    assert numbers(data.test) == list(range(30, 40))
    assert data.test.labels.tolist() == [index % 2 for index in range(30, 40)]
    with pytest.raises(DatasetError, match=r"split 'train\[40:\]': it has no rows"):
        load(spec({"train": three["train"]}, splits=slices | {"validation": "train[40:]"}))


def test_pairs_are_read(folder: Path) -> None:
    files = {
        split: parquet(folder / f"{split}.parquet", text=["x", "x"], other=[f"{split}1", f"{split}2"], label=[0, 1])
        for split in ("train", "validation", "test")
    }
    data = load(spec(files, text_pair="other"))
    assert data.test.texts == ("x", "x")
    assert data.test.pairs == ("test1", "test2")
    assert len(data.search) == len(data.router) == 2


@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_csv_and_json_are_read_as_they_stand(folder: Path, suffix: str) -> None:
    """`NA`, `null` and digits are texts, and a column of whole numbers in one split may be broken ones in another."""
    contents = {
        "csv": ("text,label\nNA,1\nnull,2.5\n,3\n", "text,label\none,1\ntwo,2\n"),
        "json": (
            '{"text": "NA", "label": 1}\n{"text": "null", "label": 2.5}\n{"text": "", "label": 3}\n',
            '{"text": "one", "label": 1}\n{"text": "two", "label": 2}\n',
        ),
    }
    files = {"test": folder / f"test.{suffix}", "validation": folder / f"validation.{suffix}"}
    for path, content in zip(files.values(), contents[suffix], strict=True):
        path.write_text(content)
    data = load(spec(files, metric="pearson_spearman"), num_labels=1)
    assert data.test.texts == ("NA", "null", "")
    assert data.test.labels.dtype == np.float32
    assert data.test.labels.tolist() == [1.0, 2.5, 3.0]


def test_a_changed_file_is_read_anew(three: dict[str, Path]) -> None:
    load(spec(three))
    text_split(three["test"], "fresh", 5)
    assert load(spec(three)).test.texts == tuple(f"fresh {index}" for index in range(5))


# No content twice


def test_router_and_search_rows_that_equal_a_test_row_are_left_out(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = {
        "test": parquet(folder / "test.parquet", text=["a", "b"], label=[0, 1]),
        "validation": parquet(folder / "validation.parquet", text=["b", "c", "d", "b"], label=[0, 1, 0, 1]),
        "train": parquet(folder / "train.parquet", text=["a", "e", "c", "f", "e"], label=[0, 1, 0, 1, 1]),
    }
    with caplog.at_level(logging.WARNING, "hf_merge"):
        data = load(spec(files))
    assert data.search.texts == ("c", "d")
    assert data.router.texts == ("e", "f", "e")
    assert [record.message for record in caplog.records] == [
        "Task 'a': left out 2 search rows that equal a test row.",
        "Task 'a': left out 2 router rows that equal a search or test row.",
    ]


def test_pairs_are_equal_only_when_both_texts_are(folder: Path) -> None:
    files = {
        "test": parquet(folder / "test.parquet", text=["a"], other=["b"], label=[0]),
        "validation": parquet(folder / "v.parquet", text=["a", "a", "b"], other=["c", "b", "a"], label=[0, 1, 1]),
        "train": parquet(folder / "t.parquet", text=["a", "z"], other=["c", "b"], label=[0, 1]),
    }
    data = load(spec(files, text_pair="other"))
    assert data.search.texts == ("a", "b")
    assert data.search.pairs == ("c", "a")
    assert data.router.pairs == ("b",)


def test_sets_drawn_from_one_split_share_no_content(folder: Path) -> None:
    texts = [f"text {index % 10}" for index in range(60)]
    files = {
        "train": parquet(folder / "train.parquet", text=texts, label=[0, 1] * 30),
        "test": parquet(folder / "test.parquet", text=["text 0", "text 1"], label=[0, 1]),
    }
    data = load(spec(files), validation_rows=4)
    search, router = set(data.search.texts or ()), set(data.router.texts or ())
    assert not search & router
    assert not (search | router) & {"text 0", "text 1"}


def test_nothing_left_is_an_error(folder: Path) -> None:
    one = text_split(folder / "one.parquet", "row", 4)
    other = text_split(folder / "other.parquet", "other", 4)
    with pytest.raises(
        DatasetError, match=r"no search rows are left \(4 were looked at, and each equals a test row\)"
    ):
        load(spec({"test": one, "validation": one, "train": other}))
    with pytest.raises(DatasetError, match="no router rows are left"):
        load(spec({"test": one, "validation": other, "train": other}))


# Images


def png(shade: int, mode: str = "RGB", size: int = 4) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("L", (size, size), shade).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


def image_split(path: Path, pictures: Sequence[bytes], *, declared: bool = True) -> Path:
    kind = datasets.Image() if declared else {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    features = datasets.Features({"image": kind, "label": datasets.Value("int64")})
    images = [{"bytes": picture, "path": None} for picture in pictures]
    return parquet(path, features, image=images, label=[index % 2 for index in range(len(pictures))])


@pytest.mark.parametrize("declared", [True, False])
def test_images_are_decoded_and_compared_by_pixels(folder: Path, declared: bool) -> None:
    files = {
        "test": image_split(folder / "test.parquet", [png(0), png(10, "L")], declared=declared),
        "validation": image_split(folder / "v.parquet", [png(10), png(20), png(20, size=5)], declared=declared),
        "train": image_split(folder / "t.parquet", [png(20), png(0, "L"), png(30, "P")], declared=declared),
    }
    data = load(spec(files, image="image"))
    assert data.test.texts is None
    assert data.test.images is not None
    assert [image.mode for image in data.test.images] == ["RGB", "L"]
    assert data.search.images is not None
    assert [image.size for image in data.search.images] == [(4, 4), (5, 5)]
    assert data.router.images is not None
    assert [image.mode for image in data.router.images] == ["P"]
    assert data.router.labels.tolist() == [0]


def test_plain_bytes_are_images_too(folder: Path) -> None:
    files = {
        split: parquet(folder / f"{split}.parquet", image=[png(shade), png(shade + 1)], label=[0, 1])
        for shade, split in ((0, "test"), (10, "validation"), (20, "train"))
    }
    assert len(load(spec(files, image="image")).test.images or ()) == 2


def test_damaged_image_is_named_with_its_row(folder: Path) -> None:
    good = image_split(folder / "good.parquet", [png(1), png(2)])
    bad = image_split(folder / "bad.parquet", [png(3), png(4)[:45]])
    with pytest.raises(DatasetError, match=r"'a', split 'test': the image in row 1 cannot be decoded: \w.*\. Remove"):
        load(spec({"test": bad, "validation": good}, image="image"))


def test_a_column_of_no_images_is_refused(three: dict[str, Path], folder: Path) -> None:
    with pytest.raises(DatasetError, match="column 'text' holds string, not images"):
        load(spec(three, image="text"))
    nested = parquet(folder / "nested.parquet", image=[{"width": 1}], label=[0])
    with pytest.raises(DatasetError, match="column 'image' holds a nested type, not images"):
        load(spec({"test": nested, "train": nested}, image="image"))


# Mistakes


def refused(task: TaskSpec, kind: type[HfMergeError] = DatasetError, **settings: Any) -> str:
    with pytest.raises(kind) as caught:
        load(task, **settings)
    message = str(caught.value)
    assert message.startswith("Task 'a'")
    assert message.endswith(".")
    return message


def test_missing_file_is_named(three: dict[str, Path], folder: Path) -> None:
    message = refused(spec(three | {"test": folder / "gone.parquet"}))
    assert f"test file {folder / 'gone.parquet'} does not exist" in message


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("test.parquet", b"nonsense", "Parquet magic bytes"),
        ("test.csv", b"text,label\na,0\nb,1,3,4\n", "Expected 2 fields in line 3, saw 4"),
        ("test.csv", b"text,label\ncaf\xe9,0\n", "'utf-8' codec can't decode"),
        ("test.csv", b"", "No columns to parse"),
        ("test.json", b'{"text": "a", "label": 0}\n{"text": 1', "."),
    ],
)
def test_unreadable_file_is_named_with_the_reason(folder: Path, name: str, content: bytes, reason: str) -> None:
    path = folder / name
    path.write_bytes(content)
    message = refused(spec({"test": path}))
    assert f"cannot read {path} as {path.suffix[1:]}: " in message
    assert reason in message


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_empty_split_is_named(three: dict[str, Path], folder: Path, suffix: str) -> None:
    empty = folder / f"empty.{suffix}"
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.Value("int64")})
    nothing = datasets.Dataset.from_dict({"text": [], "label": []}, features=features)
    nothing.to_parquet(empty) if suffix == "parquet" else nothing.to_csv(empty)
    message = refused(spec({"test": empty}))
    assert str(empty) in message
    assert "no data" in message
    assert "has rows" in message


def test_what_cannot_be_read_is_told_once(folder: Path) -> None:
    schema = pyarrow.schema([("text", pyarrow.string()), ("label", pyarrow.int64())])
    pyarrow.parquet.write_table(schema.empty_table(), folder / "none.parquet")
    logger, said = logging.getLogger("datasets"), io.StringIO()
    handler = logging.StreamHandler(said)
    logger.addHandler(handler)
    try:
        refused(spec({"test": folder / "none.parquet"}))
        assert said.getvalue() == ""
        logger.error("another")
        assert said.getvalue() == "another\n"
    finally:
        logger.removeHandler(handler)


def test_empty_split_of_a_data_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    full = datasets.Dataset.from_dict({"text": ["a"], "label": [0]})
    splits = {"test": full, "train": full.select([])}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.DatasetDict(splits))
    assert "split 'train': it has no rows" in refused(spec(path="org/data"))


def test_unknown_column_is_named_with_the_nearest(three: dict[str, Path]) -> None:
    message = refused(spec(three, text="txt"))
    assert "split 'test': there is no column 'txt'. Did you mean 'text'? Known: label, text." in message
    assert "there is no column 'labels'. Did you mean 'label'" in refused(spec(three, label="labels"))
    assert "there is no column 'other'" in refused(spec(three, text_pair="other"))


def test_missing_split_is_named_with_those_there_are(three: dict[str, Path]) -> None:
    only = {"train": three["train"], "validation": three["validation"]}
    assert "Known: train, validation." in refused(spec(only))
    assert "neither a 'validation' nor a 'train' split" in refused(spec({"test": three["test"]}))


def test_a_column_of_no_texts_is_refused(three: dict[str, Path]) -> None:
    assert "split 'test': column 'label' holds int64, not texts" in refused(spec(three, text="label"))


@pytest.mark.parametrize("column", ["text", "label"])
def test_gaps_are_counted_and_the_first_is_named(three: dict[str, Path], folder: Path, column: str) -> None:
    columns: dict[str, list[Any]] = {"text": ["a", "b", "c", "d"], "label": [0, 1, 0, 1]}
    columns[column][1:3] = [None, None]
    gappy = parquet(folder / "gappy.parquet", **columns)
    message = refused(spec(three | {"train": gappy}))
    assert f"split 'train': 2 of 4 rows have nothing in column '{column}', the first is row 1." in message


def test_labels_are_checked_in_every_split(three: dict[str, Path], folder: Path) -> None:
    odd = parquet(folder / "odd.parquet", text=["a", "b", "c"], label=[0, 1, 5])
    for split in three:
        message = refused(spec(three | {split: odd}))
        assert f"split '{split}', column 'label': label 5 in row 2 is outside 0 to 1" in message


def test_class_names_of_the_data_must_agree_with_the_checkpoint(folder: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    files = {
        split: parquet(folder / f"{split}.parquet", features, text=[f"{split} 1", f"{split} 2"], label=[0, 1])
        for split in ("test", "train", "validation")
    }
    assert load(spec(files), label_names=("no", "yes")).test.labels.tolist() == [0, 1]
    message = refused(spec(files), label_names=("yes", "no"))
    assert "the data name the classes no, yes; the checkpoint names them yes, no." in message


def test_texts_as_labels_are_looked_up(folder: Path) -> None:
    path = folder / "data.csv"
    path.write_text("text,label\na,yes\nb,no\nc,yes\nd,no\n")
    other = folder / "other.csv"
    other.write_text("text,label\ne,yes\nf,no\n")
    files = {"test": path, "validation": other}
    assert load(spec(files), label_names=("no", "yes")).test.labels.tolist() == [1, 0, 1, 0]
    assert "names no labels to look them up in" in refused(spec(files))
    assert "label 'yes' in row 0 (and 2 of 4 in all)" in refused(spec(files), label_names=("no", "maybe"))


def test_metric_for_classes_does_not_fit_a_regression(three: dict[str, Path]) -> None:
    message = refused(spec(three, metric="f1"), RecipeError, num_labels=1)
    assert "metric 'f1' compares classes, but the checkpoint org/model has one output" in message


@pytest.mark.parametrize(("metric", "warned"), [("matthews", True), ("accuracy", False)])
def test_one_class_only_is_warned_of(
    three: dict[str, Path], folder: Path, metric: str, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    one = parquet(folder / "one.parquet", text=["a", "b"], label=[1, 1])
    load(spec(three | {"validation": one}, metric=metric))
    messages = [record.message for record in caplog.records if "undefined" in record.message]
    assert bool(messages) == warned
    if warned:
        assert messages[0].startswith(
            "Task 'a': all 2 search rows have the label 1, for which 'matthews' is undefined"
        )


def test_unreachable_hub_is_told_from_damaged_data() -> None:
    message = refused(spec(path="nobody/nothing"), HubError)
    assert "cannot get the data set 'nobody/nothing' from the Hub" in message


def test_folder_without_data_is_named(folder: Path) -> None:
    assert f"cannot read the data set '{folder}'" in refused(spec(path=str(folder)))


def test_folder_of_data_is_read(three: dict[str, Path], folder: Path) -> None:
    assert len(load(spec(path=str(folder))).test) == 20


@pytest.mark.parametrize("shown", [True, False])
def test_no_progress_bars_are_drawn_and_their_setting_survives(
    three: dict[str, Path],
    folder: Path,
    shown: bool,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    bars = sys.modules["datasets.utils.tqdm"]  # the attribute of this name is a class
    monkeypatch.setattr(bars, "HF_DATASETS_DISABLE_PROGRESS_BARS", None)
    monkeypatch.setattr(bars, "_hf_datasets_progress_bars_disabled", not shown)
    load(spec(three))
    (folder / "broken.csv").write_text("")
    refused(spec({"test": folder / "broken.csv"}))
    assert datasets.utils.are_progress_bars_disabled() is not shown
    assert "Generating" not in "".join(capfd.readouterr())
