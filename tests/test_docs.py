"""The documents say what is there: commands, recipe keys, targets, files, and examples that the readers take."""

import ast
import hashlib
import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
import typer
import yaml
from pydantic import BaseModel

from hf_merge.cli import app
from hf_merge.recipe import Recipe
from hf_merge.recipe.presets import DEFAULT_PRESET, PRESETS
from hf_merge.searching.configuration import Configuration
from hf_merge.searching.evaluation import Evaluation
from hf_merge.searching.search import Measured
from hf_merge.storing import chains, front
from hf_merge.storing.chain_entries import ROUTER_FILE, SETTINGS_FILES, TOKENIZER_FILES
from hf_merge.storing.durable import Journal
from hf_merge.storing.front import FrontPoint
from hf_merge.storing.timings import Timing, read_timings
from hf_merge.workflow.progress import followed


ROOT = Path(__file__).parent.parent
README, FORMAT = ROOT / "README.md", ROOT / "docs" / "format.md"
PAGES = sorted([README, ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
GROUP: Any = typer.main.get_command(app)
COMMANDS: Mapping[str, Any] = GROUP.commands


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


def blocks(page: Path, language: str) -> list[str]:
    """Returns the fenced blocks of a language in a page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def code(page: Path) -> Iterator[str]:
    """Yields every line of code of a page: in fences, indented by four, or between backticks."""
    fenced = False
    for line in page.read_text(encoding="utf-8").splitlines():
        fenced ^= line.startswith("```")
        if fenced or line.startswith("    "):
            yield line.strip()
        else:
            yield from re.findall(r"`([^`]+)`", line)


def section(title: str) -> str:
    """Returns the part of the format's specification under a heading."""
    text = FORMAT.read_text(encoding="utf-8")
    found = re.search(rf"^## \d+\. {re.escape(title)}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found is not None, f"docs/format.md has no section '{title}'"
    return found[1]


def first_cells(text: str) -> set[str]:
    """Returns what stands between backticks in the first column of the tables of a text."""
    rows = re.findall(r"^\| (`[^|]*)\|", text, re.MULTILINE)
    return {span for row in rows for span in re.findall(r"`([^`]+)`", row)}


def json_example(title: str) -> bytes:
    block = re.search(r"^```json\n(.*?)^```$", section(title), re.DOTALL | re.MULTILINE)
    assert block is not None
    return block[1].encode()


# Commands


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_cli", ROOT / "docs" / "generate_cli.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_on_the_command_line_is_what_the_commands_say() -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert page == generator().render(), "docs/cli.md is stale; run: python docs/generate_cli.py"


def test_the_page_on_the_command_line_shows_values_as_the_options_call_them() -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    named = ("--set NAME=VALUE", "--set METHOD.NAME=VALUE", "--head TASK", "--claim P", "--with RUN", "--out OUT")
    for shown in named:
        assert f"| `{shown}` |" in page


@every_page
def test_commands_and_options_that_a_page_names_exist(page: Path) -> None:
    for line in code(page):
        for name, rest in re.findall(r"hf-merge ([a-z]\S*)([^#|&;]*)", line):
            assert name in COMMANDS, f"'{line}': there is no command '{name}'"
            known = {option for parameter in COMMANDS[name].params for option in parameter.opts} | {"--help"}
            unknown = set(re.findall(r"--[a-z][a-z-]*", rest)) - known
            assert not unknown, f"'{line}': hf-merge {name} has no {', '.join(sorted(unknown))}"


def test_the_quick_start_shows_every_command() -> None:
    shown = {name for line in code(README) for name in re.findall(r"hf-merge ([a-z]+)", line)}
    assert shown | {"demo"} == set(COMMANDS)  # the demo is shown as `make demo`


@every_page
def test_targets_that_a_page_names_exist(page: Path) -> None:
    known = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {target for line in code(page) for target in re.findall(r"^(?:\S+/)?make ([a-z]+)\b", line)}
    assert named <= known


@every_page
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    headings = {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)$", text, re.M)
    }
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in headings, f"there is no heading for {target}"
        elif "://" not in target:
            assert (page.parent / target.partition("#")[0]).exists(), f"there is no {target}"


def test_python_in_the_readme_calls_what_there_is() -> None:
    source = (ROOT / "hf_merge" / "serving" / "model.py").read_text(encoding="utf-8")
    model = next(
        node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == "MergeModel"
    )
    methods = {node.name for node in model.body if isinstance(node, ast.FunctionDef)} | {"save_pretrained"}
    code_of_readme = "\n".join(blocks(README, "python"))
    ast.parse(code_of_readme)
    called = set(re.findall(r"\b[mM](?:odel|ergeModel)\.(\w+)\(", code_of_readme))
    assert {"from_pretrained", "predict", "route", "materialize"} <= called <= methods


# The recipe


def recipe_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yields the dotted name of every setting; what is repeated has `[]` behind it."""
    for name, field in model.model_fields.items():
        parts: list[Any] = [field.annotation, *get_args(field.annotation)]
        inner = next((part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)), None)
        if inner is None:
            yield f"{prefix}{name}"
        else:
            yield from recipe_keys(inner, f"{prefix}{name}{'' if inner is field.annotation else '[]'}.")


def test_the_specification_lists_exactly_the_settings_of_a_recipe() -> None:
    assert first_cells(section("recipe.yaml")) == set(recipe_keys(Recipe))


@every_page
def test_settings_that_a_page_names_exist(page: Path) -> None:
    known = set(recipe_keys(Recipe))
    for span in code(page):
        found = re.fullmatch(r"(base|merge|search|router)\.([a-z_]+)(?::.*)?", span)
        if found and found[2] not in ("safetensors", "json", "png", "py", "md"):
            key = f"{found[1]}.{found[2]}"
            in_map = key in first_cells(section("chains.json")) and page == FORMAT
            assert key in known or in_map, f"'{span}' is no setting of a recipe"


@every_page
def test_recipes_on_a_page_are_recipes(page: Path) -> None:
    for block in blocks(page, "yaml"):
        Recipe.parse(yaml.safe_load(block), name_of(page))


def test_the_readme_shows_a_recipe() -> None:
    assert blocks(README, "yaml")


def test_defaults_of_the_recipe_are_those_of_the_specification() -> None:
    (first, *_) = blocks(README, "yaml")
    document = yaml.safe_load(first)
    minimal = Recipe.parse({key: document[key] for key in ("base", "tasks")}, "the README").model_dump(mode="json")
    for key, default in re.findall(
        r"^\| `((?:merge|search|router)\.\w+)` \| ([^|]*) \| [^|]* \|$", section("recipe.yaml"), re.MULTILINE
    ):
        group, name = key.split(".")
        assert yaml.safe_load(default) == minimal[group][name], key


def test_defaults_of_other_presets_are_those_of_the_specification() -> None:
    (first, *_) = blocks(README, "yaml")
    document = {key: value for key, value in yaml.safe_load(first).items() if key in ("base", "tasks")}
    given = {
        preset: Recipe.parse(document | {"search": {"preset": preset}}, "the README").model_dump(mode="json")
        for preset in PRESETS
    }
    rows = re.findall(r"^\| `(\w+)\.(\w+)` \| ([^|]*) \| ([^|]*) \| ([^|]*) \|$", section("recipe.yaml"), re.MULTILINE)
    said = {
        (group, name): dict(zip(("paper", "fast", "automerge"), cells, strict=True)) for group, name, *cells in rows
    }
    for (group, name), cells in said.items():
        for preset, cell in cells.items():
            if "ADR 16" not in cell:
                assert yaml.safe_load(cell) == given[preset][group][name], (preset, name)
    assert len(given["automerge"]["merge"]["methods"]) == 24
    differing = {
        (group, name)
        for group in ("merge", "search")
        for name, default in given[DEFAULT_PRESET][group].items()
        if name != "preset" and any(other[group][name] != default for other in given.values())
    }
    assert differing == said.keys()


# Files


def keys_of(document: Any) -> set[str]:
    """Returns every key of a document whose keys are ours, not names of tasks, components or files."""
    if is_dataclass(document):
        return {field.name for field in fields(document)}
    return set(document)


def test_the_example_of_a_chain_map_is_one_and_every_key_is_explained() -> None:
    data = json_example("chains.json")
    chain_map = chains.parse(data)
    explained = first_cells(section("chains.json"))
    entries = {
        "": chain_map,
        "base.": chain_map.base,
        "model.": chain_map.model,
        "components[].": chain_map.components[0],
        "experts[].": json.loads(data)["experts"][0],
        "heads.<task>.": chain_map.heads["sst2"],
        "files.<name>.": chain_map.files["config.json"],
    }
    keys = {prefix + key for prefix, entry in entries.items() for key in keys_of(entry)}
    keys -= {"wordings"}  # which stand under heads in JSON
    assert explained == keys | {"experts[].reference"}, "which only differences have"


def test_the_example_of_words_is_taken_where_heads_stand() -> None:
    read = json.loads(json_example("chains.json"))
    words = json.loads(re.findall(r"^```json\n(.*?)^```$", section("chains.json"), re.DOTALL | re.MULTILINE)[1])
    heads = dict(zip(read["chains"], words.values(), strict=True))
    read |= {"model": {"type": "causal", "max_length": 256}, "heads": heads}
    chain_map = chains.parse(json.dumps(read).encode())
    assert [wording.paired for wording in chain_map.wordings.values()] == [False, True]
    assert chain_map.heads == {}


def test_the_example_of_a_front_is_one_and_every_key_is_explained() -> None:
    data = json_example("front.json")
    found = front.parse(data)
    assert first_cells(section("front.json")) == set(json.loads(data)) | keys_of(FrontPoint)
    example = chains.parse(json_example("chains.json"))
    point = found.point(example.id)
    assert point is not None
    assert (point.cost, dict(point.scores)) == (example.cost, dict(example.performance))
    assert (found.method, tuple(found.tasks)) == (example.experts[0].method, example.tasks)


def test_the_example_of_a_journal_is_one(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_bytes(json_example("journal.jsonl"))
    with Journal(tmp_path / "journal.jsonl") as journal:
        assert [record["kind"] for record in journal.records()] == ["inputs", "references", "evaluation"]
        assert journal.cut_bytes == 0


def test_the_example_of_times_is_one_and_every_key_is_explained(tmp_path: Path) -> None:
    (tmp_path / "timings.jsonl").write_bytes(json_example("timings.jsonl and events"))
    assert [timing.number for timing in read_timings(tmp_path / "timings.jsonl")] == [1, 2]
    times, _ = section("timings.jsonl and events").split("**Events.**")
    assert first_cells(times) == keys_of(Timing(0, 0.0, 0.0, 0, 0, 0, 0))


def test_every_event_and_its_keys_are_explained(tmp_path: Path) -> None:
    told = events_of_a_search(tmp_path / "timings.jsonl")
    _, events = section("timings.jsonl and events").split("**Events.**")
    kinds, keys = events.split("| key |")
    assert first_cells(kinds) == {event["event"] for event in told}
    elsewhere = {"event", "individual", "pretrained", "pairs_asked", "pairs_run", "blocks_asked", "blocks_run"}
    assert {key for event in told for key in event} - elsewhere == first_cells(keys)


def events_of_a_search(timings: Path) -> list[Mapping[str, Any]]:
    """Returns every kind of event, as the progress of a resumed search tells them."""
    told: list[Mapping[str, Any]] = []
    measured = Measured(Configuration(((0, 0),)), Evaluation({"a": 0.5}, 0.3))
    with followed(2, 1, timings, told.append) as progress:
        progress.started(["a"], 1)
        progress.references({"a": 0.9}, {"a": 0.1})
        progress.evaluated(measured, 0.4)
        progress.evaluated(measured, 0.4)
        progress.finished()
    return told


def test_the_texts_that_ids_are_made_of_give_the_ids_of_the_examples() -> None:
    expert, configuration = (
        text.strip() for text in re.findall(r"^```text\n(.*?)^```$", section("Identities"), re.DOTALL | re.MULTILINE)
    )
    chain_map = chains.parse(json_example("chains.json"))
    assert chain_map.experts[0].id == f"attention-{hashlib.sha256(expert.encode()).hexdigest()[:12]}"
    assert chain_map.id.endswith(f"-{hashlib.sha256(configuration.encode()).hexdigest()[:6]}")


def test_ids_are_made_as_the_specification_says() -> None:
    from hf_merge.merging.codecs import CodecSpec
    from hf_merge.merging.components import Component
    from hf_merge.merging.experts import expert_key
    from hf_merge.merging.identity import configuration_id
    from hf_merge.merging.methods import MethodSpec

    chain_map = chains.parse(json_example("chains.json"))
    method = MethodSpec.resolve("task_arithmetic")
    codec = CodecSpec.resolve("int8", {"unit": "tensor", "policy": "always"})
    for entry in chain_map.experts:
        assert expert_key(entry.component, entry.members, method, codec).id == entry.id
    components = [Component(item.name, item.tensors) for item in chain_map.components]
    for point in front.parse(json_example("front.json")).points:
        made = configuration_id(components, chain_map.tasks, point.grouping, method, codec, point.cost)
        assert made == point.id


def test_the_file_names_that_a_reader_takes_are_listed() -> None:
    listed = set(re.findall(r"`([^`]+)`", section("What a reader must refuse")))
    assert SETTINGS_FILES | TOKENIZER_FILES | {ROUTER_FILE} <= listed
