"""The command line as its user meets it: results on stdout, one clear message for what is wrong, nothing left over."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from hf_merge import __version__
from hf_merge.cli import app
from hf_merge.storing.durable import Journal
from hf_merge.workflow.report import report as measure
from tests.tiny_runs import TinyRun, copied_run, write_recipe


ROOT = Path(__file__).parent.parent
Change = Callable[[Path], object]


def run(*words: object) -> Result:
    """Returns what a command gives, in this process."""
    return CliRunner().invoke(app, [str(word) for word in words])


def refuse(result: Result, *said: str, code: int = 2) -> str:
    """Checks that a command failed with one message that says all of that, and returns the message."""
    message = result.stderr[result.stderr.index("Error: ") :] if "Error: " in result.stderr else result.stderr
    assert result.exit_code == code, (message, result.exception)
    assert result.stdout == ""
    assert message.startswith("Error: ") and message.count("Error: ") == 1
    assert "Traceback" not in result.stderr
    for part in said:
        assert part in message
    return message


def document(result: Result) -> Any:
    """Returns the one JSON document on stdout."""
    assert result.exit_code == 0, (result.stderr, result.exception)
    return json.loads(result.stdout)


# What works


@pytest.fixture(scope="module")
def own_run(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """Returns a copy of the run: a report is written into its folder."""
    return copied_run(tiny_run, tmp_path_factory.mktemp("own"))


def test_results_are_on_stdout_and_messages_on_stderr(tiny_run: TinyRun, tmp_path: Path) -> None:
    out = tmp_path / "run"
    found = run("search", tiny_run.recipe_file, "--out", out, "--json")
    assert [point["id"] for point in document(found)["points"]] == [point.id for point in tiny_run.front.points]
    assert (out / "front.json").read_bytes() == (tiny_run.folder / "front.json").read_bytes()
    events = [json.loads(line) for line in found.stderr.splitlines() if line.startswith("{")]
    assert [event["event"] for event in events] == ["started", "references", *["evaluation"] * 9, "finished"]
    assert events[-1]["hypervolume"] == tiny_run.front.hypervolume
    assert "Info: Range criterion" in found.stderr
    built = run("build", out, "--max-configs", 1, "--json")
    (member,) = document(built)
    assert Path(member).parent == out / "members"
    assert document(run("show", out, "--json"))["hypervolume"] == tiny_run.front.hypervolume
    refuse(run("predict", out, "--budget", 0.01, "the small cat"), "No configuration fits the budget 0.01")


def test_every_command_prints_text_for_people(own_run: TinyRun) -> None:
    for words in (
        ["plan", own_run.recipe_file], ["show", own_run.folder], ["show", own_run.members[0]],
        ["predict", own_run.folder, "the small cat"], ["eval", own_run.folder], ["report", own_run.folder],
    ):  # fmt: skip
        found = run(*words)
        assert found.exit_code == 0, (words, found.stderr, found.exception)
        assert found.stdout.strip()


def test_every_command_prints_one_json_document(own_run: TinyRun) -> None:
    assert document(run("plan", own_run.recipe_file, "--json"))["parameters"] == own_run.front.parameters
    assert document(run("show", own_run.members[0], "--json"))["id"] == own_run.members[0].name
    assert len(document(run("report", own_run.folder, "--json"))["rows"]) == 1 + len(own_run.members)
    assert document(run("eval", own_run.folder, "--budget", "1.0", "--json"))["role"] == "member"


def test_a_search_ends_with_its_front_and_how_it_went(tiny_run: TinyRun, tmp_path: Path) -> None:
    found = run("search", tiny_run.recipe_file, "--out", tmp_path / "run")
    assert found.exit_code == 0
    assert tiny_run.front.points[0].id in found.stdout and "best within 0.5" in found.stdout
    assert "search: 9/9 evaluations" in found.stderr and "\r" not in found.stderr and "{" not in found.stderr


def test_how_a_search_went_is_drawn_without_members_and_without_rows(tiny_run: TinyRun, tmp_path: Path) -> None:
    for name in ("recipe.yaml", "front.json", "journal.jsonl", "timings.jsonl"):
        shutil.copy(tiny_run.folder / name, tmp_path)
    found = document(run("report", tmp_path, "--search", "--json"))
    assert (found["evaluations"], found["timed"], found["pairs_asked"]) == (9, 9, 27)
    assert found["best"]["0.25"] is None and found["best"]["1"]["cost"] <= 1
    assert (tmp_path / "search.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "timings.jsonl").write_bytes(b"damaged\n")
    shown = run("report", tmp_path, "--search")
    assert shown.exit_code == 0 and "evaluations" in shown.stdout and "time " not in shown.stdout
    assert "Warning: No times are shown" in shown.stderr
    (tmp_path / "front.json").unlink()
    refuse(run("report", tmp_path, "--search"), "has not ended", "--resume")


def test_language_models_choose_and_write(speaking_run: Callable[[str], TinyRun], tiny_run: TinyRun) -> None:
    folder = speaking_run("llama").folder
    (cat,) = document(run("predict", folder, "--json", "the small old cat"))
    assert (cat["task"], cat["label"]) == ("animals", "cat")
    words = ["predict", folder, "--generate", "--max-new-tokens", 4]
    (snow,) = document(run(*words, "--json", "today tomorrow cold snow sky"))
    assert snow == {"input": "today tomorrow cold snow sky", "task": "weather", "text": "snow near"}
    assert run(*words, "cold snow sky", "--task", "weather").stdout == "weather\tsnow near\tcold snow sky\n"
    refuse(run("predict", folder, "today cold snow sky"), "answers in words of its own", "generate")
    refuse(run("predict", tiny_run.folder, "--generate", "the cat"), "writes nothing: leave --generate out")


def test_options_that_would_change_nothing_are_refused(tiny_run: TinyRun) -> None:
    refuse(run("predict", tiny_run.folder, "--max-new-tokens", 3, "the cat"), "goes with --generate")
    for words in (["show"], ["predict", "the cat"], ["eval"]):
        found = run(words[0], tiny_run.folder, *words[1:], "--revision", "main")
        refuse(found, "--revision main goes with a Hub repo", "is a folder here: leave --revision out")


def test_predictions_come_in_order_with_their_inputs(tiny_run: TinyRun) -> None:
    texts = ["the small cat sleeps", "bright red wall", "about two metres"]
    answers = document(run("predict", tiny_run.folder, "--json", *texts))
    assert [answer["input"] for answer in answers] == texts
    (cat,) = document(run("predict", tiny_run.folder, "--task", "animals", "--json", texts[0]))
    refuse(run("predict", tiny_run.folder, "--claim", 1.5, texts[0]), "claim is 1.5", "at most 1")
    refuse(run("predict", tiny_run.folder, "caf\udce9 flight"), "Input 0", "holds bytes that are no UTF-8")
    assert (cat["task"], cat["label"] in ("cat", "dog")) == ("animals", True)
    (size,) = document(run("predict", tiny_run.folder, "--task", "sizes", "--json", texts[2]))
    assert size["label"] is None


def test_eval_and_report_agree_about_a_member(own_run: TinyRun) -> None:
    rows = {row.id: row for row in measure(own_run.folder, progress=False).rows}
    scores = document(run("eval", own_run.members[0], "--json"))
    expected = rows[scores["id"]]
    assert scores["oracle_scores"] == pytest.approx(dict(expected.oracle_scores))
    assert scores["routed_scores"] == pytest.approx(dict(expected.routed_scores))


def test_the_version_is_printed() -> None:
    assert run("--version").stdout == f"hf-merge {__version__}\n"


# Checkpoints that cannot be merged


def altered(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Changes the tensors of a checkpoint."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def configured(folder: Path, **settings: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def narrowed(folder: Path) -> None:
    configured(folder, hidden_size=16)
    altered(folder, lambda all_: all_.update({name: value[..., :16].clone() for name, value in all_.items()}))


def shortened(folder: Path) -> None:
    configured(folder, vocab_size=9)
    altered(folder, lambda all_: all_.update({WORDS: all_[WORDS][:9].clone()}))


WORDS = "bert.embeddings.word_embeddings.weight"
QUERY = "bert.encoder.layer.1.attention.self.query.weight"
EXTRA = QUERY.replace("query", "gate")
CLASHES: dict[str, tuple[Change, tuple[str, ...]]] = {
    "architecture": (
        lambda folder: configured(folder, model_type="roberta"),
        ("task 'colours'", "model_type is 'roberta' where the base has 'bert'"),
    ),
    "hidden size": (narrowed, ("hidden_size is 16 where the base has 32", WORDS)),
    "vocabulary": (shortened, ("vocab_size is 9", f"'{WORDS}' has shape [9, 32]")),
    "missing tensor": (
        lambda folder: altered(folder, lambda all_: all_.pop(QUERY)),
        ("the base has and it lacks: encoder.layer.1.attention.self.query.weight",),
    ),
    "extra tensor": (
        lambda folder: altered(
            folder, lambda all_: all_.update({QUERY.replace("query", "gate"): all_[QUERY].clone()})
        ),
        ("it has and the base lacks", "gate"),
    ),
    "only pickles": (pickled, ("pickle", "colours")),
    "no config": (lambda folder: (folder / "config.json").unlink(), ("no config.json",)),
    "nan": (
        lambda folder: altered(folder, lambda all_: all_[QUERY].fill_(torch.nan)),
        ("colours", "NaN"),
    ),
}


def with_changed_task(run: TinyRun, tmp_path: Path, change: Change) -> Path:
    """Returns a recipe whose second task is a changed copy of its checkpoint."""
    folder = tmp_path / "colours"
    shutil.copytree(run.family.tasks["colours"].folder, folder)
    change(folder)
    tasks = [task | ({"model": str(folder)} if task["name"] == "colours" else {}) for task in run.document["tasks"]]
    return write_recipe(tmp_path / "recipe.yaml", run.document | {"tasks": tasks})


@pytest.mark.parametrize("clash", CLASHES)
def test_checkpoints_that_do_not_fit_are_refused(tiny_run: TinyRun, tmp_path: Path, clash: str) -> None:
    change, said = CLASHES[clash]
    recipe = with_changed_task(tiny_run, tmp_path, change)
    refuse(run("search", recipe, "--out", tmp_path / "run"), *said)
    assert not (tmp_path / "run").exists()


def test_every_clash_is_listed_at_once(tiny_run: TinyRun, tmp_path: Path) -> None:
    def change(folder: Path) -> None:
        narrowed(folder)
        altered(folder, lambda all_: all_.pop(QUERY))

    message = refuse(run("plan", with_changed_task(tiny_run, tmp_path, change)), "hidden_size", "query.weight")
    assert len(message.splitlines()) > 3


def test_a_fine_tune_that_is_the_base_is_refused(tiny_run: TinyRun, tmp_path: Path) -> None:
    base = load_file(tiny_run.family.base / "model.safetensors")

    def untrain(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({f"bert.{name}": value for name, value in base.items() if f"bert.{name}" in tensors})

    recipe = with_changed_task(tiny_run, tmp_path, lambda folder: altered(folder, untrain))
    refuse(run("search", recipe, "--out", tmp_path / "run"), "colours", "equals the base, weight for weight")
    assert not (tmp_path / "run").exists()


def test_one_fine_tune_alone_is_searched_built_and_loaded(tiny_run: TinyRun, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "one.yaml", tiny_run.document | {"tasks": tiny_run.document["tasks"][:1]})
    found = run("search", recipe, "--out", tmp_path / "run")
    assert found.exit_code == 0 and "One task only ('animals')" in found.stderr
    assert run("build", tmp_path / "run").exit_code == 0
    assert document(run("predict", tmp_path / "run", "the small cat", "--json"))[0]["task"] == "animals"
    assert document(run("eval", tmp_path / "run", "--json"))["routed"] > 0
    assert document(run("report", tmp_path / "run", "--json"))["rows"]


# Recipes and data that cannot be used


def merged(document: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """Returns a copy of a document with one value at a dotted path replaced."""
    copy: dict[str, Any] = json.loads(json.dumps(document))
    *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place: Any = copy
    for part in way:
        place = place[part] if isinstance(part, int) else place.setdefault(part, {})
    place[last] = value
    return copy


SETTINGS: dict[str, tuple[str, object, tuple[str, ...]]] = {
    "metric": ("tasks.0.metric", "acuracy", ("tasks.0.metric", "Did you mean 'accuracy'?")),
    "column": ("tasks.1.data.text", "txt", ("Task 'colours'", "no column 'txt'", "Did you mean 'text'?")),
    "method": ("merge.methods", ["task_arithmetik"], ("Did you mean 'task_arithmetic'?",)),
    "hyperparameter": ("merge.methods", [{"name": "ties", "densty": 0.2}], ("Did you mean 'density'?",)),
    "codec": ("merge.codecs", ["int9"], ("Did you mean 'int8'?",)),
    "granularity": ("merge.granularity", "typ", ("Did you mean 'type' or 'type-layer'",)),
    "evaluations": ("search.evaluations", 3, ("evaluations (3) below the population (4)",)),
    "key": ("search.evalutions", 3, ("search.evalutions: unknown setting", "Did you mean 'evaluations'?")),
    "base": ("base.model", "./nowhere/base", ("nowhere/base",)),
    "file": ("tasks.0.data.data_files.test", "nowhere.parquet", ("nowhere.parquet",)),
    "head": ("tasks.2.metric", "accuracy", ("sizes", "accuracy")),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_cannot_be_used_are_refused(tiny_run: TinyRun, tmp_path: Path, name: str) -> None:
    path, value, said = SETTINGS[name]
    recipe = write_recipe(tmp_path / "recipe.yaml", merged(tiny_run.document, path, value))
    refuse(run("search", recipe, "--out", tmp_path / "run"), *said)
    assert not (tmp_path / "run").exists()


def test_an_unknown_split_is_refused_with_the_nearest(tiny_run: TinyRun, tmp_path: Path) -> None:
    document = merged(tiny_run.document, "tasks.0.data.splits", {"validation": "validatoin"})
    recipe = write_recipe(tmp_path / "recipe.yaml", document)
    refuse(run("search", recipe, "--out", tmp_path / "run"), "validatoin", "validation")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("rows", "said"),
    [({"text": [], "label": []}, "row"), ({"text": ["the cat"] * 3, "label": [0, 1, 7]}, "7")],
    ids=["empty split", "label outside the head"],
)
def test_rows_that_cannot_be_used_are_refused(
    tiny_run: TinyRun, tmp_path: Path, rows: dict[str, list[Any]], said: str
) -> None:
    schema = pyarrow.schema([("text", pyarrow.string()), ("label", pyarrow.int64())])
    pyarrow.parquet.write_table(pyarrow.table(rows, schema=schema), tmp_path / "test.parquet")
    document = merged(tiny_run.document, "tasks.0.data.data_files.test", str(tmp_path / "test.parquet"))
    recipe = write_recipe(tmp_path / "recipe.yaml", document)
    refuse(run("search", recipe, "--out", tmp_path / "run"), "animals", said)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "Cannot read the recipe"),
        ("a: [", "is no valid YAML"),
        ("base: {model: x}\nbase: {model: y}", "the key 'base' is given twice"),
        ("- 1", "holds a list where a mapping"),
        ("", "holds nothing where a mapping"),
        ("a: x[:5]: y", "Quote values that hold brackets or a colon."),
        ("base: {model: x}", "tasks: is missing"),
    ],
)
def test_files_that_are_no_recipes_are_refused(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "recipe.yaml"
    if text is not None:
        path.write_text(text)
    refuse(run("search", path, "--out", tmp_path / "run"), said)
    refuse(run("plan", path), said)


# Folders


def test_a_run_folder_that_is_not_free_is_left_alone(tiny_run: TinyRun, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    refuse(run("search", tiny_run.recipe_file, "--out", tmp_path / "file"), "is a file")
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "thesis.tex").write_text("mine")
    refuse(run("search", tiny_run.recipe_file, "--out", tmp_path / "ours"), "'thesis.tex'", "no run folder")
    refuse(run("search", tiny_run.recipe_file, "--out", tiny_run.folder), "already holds this run", "--resume")
    refuse(run("search", tiny_run.recipe_file, "--out", tmp_path / "new", "--resume"), "no run to resume")
    assert not (tmp_path / "new").exists()
    assert [path.name for path in (tmp_path / "ours").iterdir()] == ["thesis.tex"]


def test_the_run_of_another_recipe_is_refused_with_the_settings_that_differ(tiny_run: TinyRun, tmp_path: Path) -> None:
    other = merged(merged(tiny_run.document, "search.seed", 7), "merge.granularity", "model")
    recipe = write_recipe(tmp_path / "recipe.yaml", other)
    refuse(
        run("search", recipe, "--out", tiny_run.folder, "--resume"),
        "another recipe", "\n  merge.granularity: type and model\n  search.seed: 0 and 7\n",
    )  # fmt: skip


def damage_byte(folder: Path) -> None:
    path = next(folder.glob("experts-*"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def change_version(folder: Path) -> None:
    path = folder / "chains.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 99'))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damage_byte, "experts-00001-of-00001.safetensors"),
        (lambda folder: next(folder.glob("experts-*")).unlink(), "experts-00001-of-00001.safetensors"),
        (change_version, "format_version is 99"),
        (lambda folder: (folder / "chains.json").unlink(), "chains.json"),
        (lambda folder: (folder / "chains.json").write_text("{}"), "chains.json"),
    ],
    ids=["flipped byte", "missing shard", "format version", "no map", "empty map"],
)
def test_a_damaged_member_is_refused(tiny_run: TinyRun, tmp_path: Path, damage: Change, said: str) -> None:
    folder = tmp_path / "member"
    shutil.copytree(tiny_run.members[0], folder)
    damage(folder)
    refuse(run("predict", folder, "the small cat"), said)
    refuse(run("eval", folder, "--recipe", tiny_run.recipe_file), said)


@pytest.mark.parametrize("budget", ["0", "-1", "nan", "inf", "abc", "12XB", ""])
def test_budgets_that_are_no_sizes_are_refused(tiny_run: TinyRun, budget: str) -> None:
    refuse(run("predict", tiny_run.folder, "--budget", budget, "--", "the small cat"), "budget")


def test_a_budget_below_the_cheapest_names_the_least(tiny_run: TinyRun) -> None:
    cheapest = tiny_run.front.points[0]
    said = (cheapest.id, f"costs {cheapest.cost:.4f}", "0.1")
    refuse(run("predict", tiny_run.folder, "--budget", 0.1, "the small cat"), *said)
    refuse(run("eval", tiny_run.folder, "--budget", 0.1), *said)
    refuse(run("predict", tiny_run.members[0], "--budget", 0.1, "the small cat"), "0.1")


def test_a_budget_above_everything_is_fine(tiny_run: TinyRun) -> None:
    answers = document(run("predict", tiny_run.folder, "--budget", "900GB", "--json", "the small cat"))
    assert answers[0]["input"] == "the small cat"


def test_an_unknown_task_is_refused_with_the_nearest(tiny_run: TinyRun) -> None:
    refuse(run("predict", tiny_run.folder, "--task", "animal", "the cat"), "Unknown task 'animal'", "'animals'?")


def test_folders_that_hold_nothing_of_ours_are_refused(tiny_run: TinyRun, tmp_path: Path) -> None:
    refuse(run("show", tmp_path), "holds neither")
    refuse(run("eval", tmp_path), "holds neither")
    refuse(run("build", tmp_path), "no run folder")
    refuse(run("report", tmp_path), "no run folder")
    refuse(run("predict", tiny_run.family.base, "the cat"), "ordinary model")
    refuse(run("build", tiny_run.folder, "--config", "c0"), "no configuration 'c0'")


def test_a_member_by_itself_needs_a_recipe_to_be_measured(tiny_run: TinyRun, tmp_path: Path) -> None:
    shutil.copytree(tiny_run.members[0], tmp_path / "member")
    refuse(run("eval", tmp_path / "member"), "--recipe")
    found = document(run("eval", tmp_path / "member", "--recipe", tiny_run.recipe_file, "--json"))
    assert found["id"] == tiny_run.members[0].name
    pictures = [task | {"data": {"path": "images", "image": "image"}} for task in tiny_run.document["tasks"]]
    other = write_recipe(tmp_path / "i.yaml", tiny_run.document | {"tasks": pictures})
    refuse(run("eval", tmp_path / "member", "--recipe", other), "image rows", "reads text")
    fewer = write_recipe(tmp_path / "r.yaml", tiny_run.document | {"tasks": tiny_run.document["tasks"][:1]})
    refuse(run("eval", tmp_path / "member", "--recipe", fewer), "no data for task 'colours'")


def test_a_run_whose_members_are_not_built_says_what_to_do(tiny_run: TinyRun, tmp_path: Path) -> None:
    for name in ("recipe.yaml", "front.json", "journal.jsonl"):
        shutil.copy(tiny_run.folder / name, tmp_path)
    refuse(run("predict", tmp_path, "the cat"), f"hf-merge build {tmp_path}")
    refuse(run("report", tmp_path), f"hf-merge build {tmp_path}")
    (tmp_path / "front.json").unlink()
    refuse(run("show", tmp_path), "has not ended", "--resume")


# What no one foresaw


def python(code: str, *words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Returns what a fresh interpreter gives that runs `code` and then the command line."""
    command = [sys.executable, "-c", f"{code}\nfrom hf_merge.cli import main\nmain()", *map(str, words)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.run(command, cwd=ROOT, text=True, check=False, **streams)


DEMO = "import hf_merge.cli.commands as a, hf_merge.workflow.demo as d\ndef run_demo(out): {}\nd.run_demo = run_demo"


def test_an_unforeseen_error_is_one_line_and_exit_1() -> None:
    found = python(DEMO.format("raise ValueError('oh')"), "demo")
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr.splitlines()[0] == "Error: unexpected ValueError: oh"
    assert "Traceback" not in found.stderr


def test_debug_shows_the_traceback() -> None:
    found = python(DEMO.format("raise ValueError('oh')"), "demo", "--debug")
    assert found.returncode == 1 and "Traceback" in found.stderr and "ValueError: oh" in found.stderr


def test_an_interrupt_is_one_line_and_exit_130() -> None:
    found = python(DEMO.format("raise KeyboardInterrupt"), "demo")
    assert (found.returncode, found.stdout) == (130, "")
    assert found.stderr == "Error: Interrupted. The same command again goes on from here; a search with --resume.\n"


def test_an_interrupted_search_goes_on_with_resume(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = Journal.append

    def interrupted(self: Journal, record: dict[str, Any]) -> None:
        if record.get("number") == 4:
            raise KeyboardInterrupt
        append(self, record)

    monkeypatch.setattr(Journal, "append", interrupted)
    out = tmp_path / "run"
    refuse(run("search", tiny_run.recipe_file, "--out", out), "Interrupted", "--resume", code=130)
    assert not (out / "front.json").exists()
    refuse(run("build", out), "has not ended")
    monkeypatch.undo()
    assert run("search", tiny_run.recipe_file, "--out", out, "--resume").exit_code == 0
    assert (out / "front.json").read_bytes() == (tiny_run.folder / "front.json").read_bytes()


def test_a_closed_pipe_ends_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    found = python(DEMO.format("a.print_document('x' * 100_000)"), "demo", stdout=writer)
    os.close(writer)
    assert (found.returncode, found.stderr) == (0, "")
