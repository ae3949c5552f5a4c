"""The house rules as figures and tables: who may import whom, how long things may be, what the package never does.

The source of `hf_merge` is read by AST, nothing of it is run, except where a rule is about importing or starting it.
The rules and the reasons for them are in CONTRIBUTING.md; the figures are here and nowhere else.
"""

import ast
import importlib
import re
import resource
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from graphlib import CycleError, TopologicalSorter
from math import ceil
from pathlib import Path
from statistics import median

import pytest


ROOT = Path(__file__).parent.parent

# From the ground up: a room imports only from storeys below its own; the rooms of one storey do not know each other.
STOREYS = (
    ("errors", "version"),
    ("recipe", "merging"),
    ("storing",),
    ("modeling",),
    ("searching", "serving"),
    ("workflow",),
    ("cli", "__init__"),
    ("__main__",),
)

MODULE_LINES = 320
FUNCTION_LINES = 50
FUNCTION_LINES_P90 = 30
FUNCTION_LINES_MEDIAN = 10
HELP_SECONDS = 0.5
EXPORTS = 12
BANNED_NAMES = {"utils", "util", "common", "misc", "helpers", "helper"}

HEAVY = {
    "accelerate", "datasets", "evaluate", "matplotlib", "pandas", "peft", "pymoo", "scipy", "sklearn", "torch",
    "transformers",
}  # fmt: skip
# What each of these may not load, directly or through others, when it is imported.
LIGHT = {
    "hf_merge": HEAVY | {"numpy"},
    "hf_merge.cli": HEAVY | {"numpy"},
    "hf_merge.errors": HEAVY | {"numpy"},
    "hf_merge.recipe": HEAVY | {"numpy"},
    "hf_merge.merging.components": HEAVY,
    "hf_merge.merging.grouping": HEAVY,
    "hf_merge.merging.cost": HEAVY,
    "hf_merge.storing.durable": HEAVY,
    "hf_merge.storing.chains": HEAVY,
}
PROMISED = {
    "HfMergeError", "MergeModel", "MergeOutput", "Prediction", "Recipe",
    "__version__", "build", "evaluate", "plan", "push", "report", "search",
}  # fmt: skip
# These hold no more than what opens the door: test_cli.py and the tests of the doors, below, go through them.
DOORS = {"__init__", "__main__", "cli.commands", "cli.making", "cli.using"}


@dataclass(frozen=True)
class Place:
    """Where a third party may be imported: by modules as they load, and by functions (or annotations) only."""

    loading: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()


THIRD_PARTIES = {
    "accelerate": Place(inside=("modeling.assembly",), loading=("searching.ranks",)),
    "datasets": Place(
        inside=("searching.splits",),
        loading=("searching.columns", "searching.media", "searching.tasks", "searching.metrics"),
    ),
    "evaluate": Place(loading=("searching.tasks", "searching.metrics")),
    "huggingface_hub": Place(loading=("storing.hub*", "storing.card*", "serving.saving")),
    "jinja2": Place(loading=("storing.markdown",)),
    "matplotlib": Place(inside=("storing.canvas", "storing.plots", "storing.*_plot")),
    "numpy": Place(loading=("merging.*", "storing.*", "modeling.*", "searching.*", "serving.*", "workflow*")),
    "peft": Place(inside=("modeling.adapters",)),
    "PIL": Place(
        loading=("modeling.inputs", "searching.media", "searching.rows"), inside=("workflow*", "cli", "serving.model")
    ),
    "pydantic": Place(loading=("recipe*",)),
    "pydantic_core": Place(loading=("recipe.faults",)),
    "pymoo": Place(loading=("searching.nsga2", "searching.pareto")),
    "safetensors": Place(loading=("storing.*", "serving.router")),
    "scipy": Place(loading=("searching.*",), inside=("merging.codecs.lowrank",)),
    "sklearn": Place(inside=("merging.grouping",), loading=("searching.surrogate", "searching.metrics")),
    "torch": Place(
        loading=(
            "merging.methods*", "merging.codecs*", "merging.experts", "merging.factors",
            "merging.group_reader", "merging.peers*", "merging.ranges", "merging.statistics", "merging.task_vectors",
            "merging.threads",
            "storing.tensors", "storing.library", "storing.member_writing", "storing.checkpoints", "storing.families",
            "storing.model_folder", "storing.adapters", "storing.adapted", "storing.language",
            "modeling.*", "searching.building", "searching.evaluation", "searching.judging",
            "searching.ranks",
            "searching.running", "serving.*", "workflow*",
        ),
        inside=("searching.*",),
    ),
    "tqdm": Place(loading=("cli", "workflow*", "searching.*", "storing.hub*"), inside=("storing.*", "serving.*")),
    "transformers": Place(loading=("modeling.*", "serving.model")),
    "typer": Place(loading=("cli*",)),
    "yaml": Place(loading=("recipe", "storing.card*")),
}  # fmt: skip

# Of transformers, the names that belong to one module each.
TRANSFORMERS_NAMES = (
    (re.compile(r"Auto(Tokenizer|ImageProcessor|Processor|FeatureExtractor)"), "modeling.inputs"),
    (re.compile(r"AutoModel\w*|\w+For[A-Z]\w+|\w+Model"), "modeling.assembly"),
)


@dataclass(frozen=True)
class Import:
    """One imported name: the module it comes from, and whether loading the importing module runs the import."""

    module: str
    name: str
    line: int
    loading: bool


@dataclass(frozen=True)
class Module:
    """A module of the package; `name` is dotted, without `hf_merge.`, and is `__init__` for the package itself."""

    name: str
    path: Path
    text: str
    tree: ast.Module

    @property
    def room(self) -> str:
        return self.name.split(".")[0]

    def at(self, line: int, message: str) -> str:
        return f"{self.path.relative_to(ROOT).as_posix()}:{line}: {message}"

    def imports(self) -> Iterator[Import]:
        return _imports(self.tree, loading=True)

    def functions(self) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
        return (node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@cache
def modules() -> dict[str, Module]:
    found = {}
    for path in sorted((ROOT / "hf_merge").rglob("*.py")):
        parts = path.relative_to(ROOT / "hf_merge").with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        text = path.read_text(encoding="utf-8")
        found[name] = Module(name, path, text, ast.parse(text, str(path)))
    return found


def _imports(node: ast.AST, loading: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, "", child.lineno, loading) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            source = "" if child.level else child.module or ""
            yield from (Import(source, alias.name, child.lineno, loading) for alias in child.names)
        else:
            deferred = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) or _is_for_types_only(child)
            yield from _imports(child, loading and not deferred)


def _is_for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _own_imports(module: Module) -> Iterator[tuple[str, int]]:
    """Yields the package's own modules that a module imports, under the names that `modules` gives them."""
    for found in module.imports():
        if found.module == "hf_merge" or found.module.startswith("hf_merge."):
            source = found.module.removeprefix("hf_merge").removeprefix(".")
            whole = f"{source}.{found.name}".strip(".")
            yield (whole if whole in modules() else source or "__init__"), found.line


def _refuse(offenders: Iterable[str]) -> None:
    """Fails with every offender, the first one first; each is `file:line: what and what to do`."""
    lines = list(offenders)
    if lines:
        pytest.fail("\n".join(lines), pytrace=False)


# The storeys


def test_a_room_imports_only_from_rooms_below_it() -> None:
    heights = {room: height for height, rooms in enumerate(STOREYS) for room in rooms}

    def offenders() -> Iterator[str]:
        for module in modules().values():
            if module.room not in heights:
                yield module.at(
                    1, f"'{module.room}' is no room; the house is the table STOREYS in tests/test_house.py"
                )
                continue
            for target, line in _own_imports(module):
                room = target.split(".")[0]
                if room != module.room and heights.get(room, len(STOREYS)) >= heights[module.room]:
                    yield module.at(line, f"'{module.room}' imports from '{room}', which is not below it")

    _refuse(offenders())


def test_no_module_imports_itself_through_others() -> None:
    graph = {module.name: {target for target, _ in _own_imports(module)} for module in modules().values()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        cycle: list[str] = error.args[1][::-1]
        line = next(line for target, line in _own_imports(modules()[cycle[0]]) if target == cycle[1])
        _refuse([modules()[cycle[0]].at(line, f"an import cycle: {' > '.join(cycle)}")])


def test_imports_are_absolute() -> None:
    _refuse(
        module.at(node.lineno, f"a relative import; write the whole name, hf_merge.…{node.module or ''}")
        for module in modules().values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ImportFrom) and node.level
    )


# Third parties


def test_third_parties_stay_in_their_rooms() -> None:
    def offenders() -> Iterator[str]:
        for module in modules().values():
            for found in module.imports():
                top = found.module.split(".")[0]
                if top == "hf_merge" or top in sys.stdlib_module_names or not top:
                    continue
                place = THIRD_PARTIES.get(top, Place())
                allowed = place.loading if found.loading else place.loading + place.inside
                if not any(fnmatchcase(module.name, pattern) for pattern in allowed):
                    yield module.at(found.line, _misplaced(top, place, module.name))

    _refuse(offenders())


def _misplaced(top: str, place: Place, name: str) -> str:
    if any(fnmatchcase(name, pattern) for pattern in place.inside):
        return f"'{top}' may be imported here inside functions only"
    where = ", ".join(place.loading + place.inside) or "nowhere"
    return f"'{top}' does not belong here but in: {where} (the table THIRD_PARTIES in tests/test_house.py)"


def test_transformers_classes_have_one_importer_each() -> None:
    _refuse(
        module.at(found.line, f"'{found.name}' may be imported in {owner} only")
        for module in modules().values()
        for found in module.imports()
        if found.module.split(".")[0] == "transformers"
        for pattern, owner in TRANSFORMERS_NAMES
        if pattern.fullmatch(found.name) and module.name != owner
    )


@pytest.mark.parametrize("name", LIGHT)
def test_light_modules_load_nothing_heavy(name: str) -> None:
    code = f"import sys, {name}; print(*sorted({LIGHT[name]!r} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"cannot import {name}: {run.stderr.strip().splitlines()[-1]}"
    assert not run.stdout.split(), f"importing {name} loads {run.stdout.strip()}"


# Sizes


def test_modules_are_short() -> None:
    _refuse(
        module.at(MODULE_LINES, f"{lines} lines, the limit is {MODULE_LINES}: which part has a name of its own?")
        for module in modules().values()
        if (lines := len(module.text.splitlines())) > MODULE_LINES
    )


def test_functions_are_short() -> None:
    _refuse(
        module.at(node.lineno, f"'{node.name}' has {_length(node)} lines, the limit is {FUNCTION_LINES}")
        for module in modules().values()
        for node in module.functions()
        if _length(node) > FUNCTION_LINES
    )


def test_most_functions_are_shorter_still() -> None:
    found = [
        (_length(node), module.at(node.lineno, node.name))
        for module in modules().values()
        for node in module.functions()
    ]
    found.sort(reverse=True)
    lengths = [length for length, _ in reversed(found)]
    p90, middle = lengths[ceil(0.9 * len(lengths)) - 1], median(lengths)
    longest = "\n".join(f"{place} ({length} lines)" for length, place in found[: len(found) // 10 + 1])
    assert p90 <= FUNCTION_LINES_P90, f"nine in ten functions have at most {p90} lines; the longest:\n{longest}"
    assert middle <= FUNCTION_LINES_MEDIAN, f"the median function has {middle:g} lines; the longest:\n{longest}"


def _length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


# Habits


def test_nothing_is_asserted_printed_or_caught_blindly() -> None:
    _refuse(
        module.at(node.lineno, f"{offence} in the package")
        for module in modules().values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Assert | ast.Call | ast.ExceptHandler) and (offence := _offence(node, module.name))
    )


def _offence(node: ast.Assert | ast.Call | ast.ExceptHandler, name: str) -> str | None:
    if isinstance(node, ast.Assert):
        return "an assert"
    if isinstance(node, ast.Call):
        return "a print" if name not in ("cli", "cli.commands") and ast.unparse(node.func) == "print" else None
    caught = {part.id for part in ast.walk(node.type) if isinstance(part, ast.Name)} if node.type else {"anything"}
    last = node.body[-1]
    raises_again = isinstance(last, ast.Raise) and last.exc is None
    blind = caught & {"anything", "Exception"} or (caught & {"BaseException"} and not raises_again)
    return f"an except that catches {', '.join(sorted(caught))}" if blind else None


def test_modules_are_named_for_what_they_hold() -> None:
    _refuse(
        module.at(1, "a module named for nothing; what does it hold?")
        for module in modules().values()
        if BANNED_NAMES & set(re.split(r"[._]", module.name))
    )


def test_public_names_have_docstrings() -> None:
    _refuse(
        module.at(getattr(node, "lineno", 1), f"'{name}' has no docstring")
        for module in modules().values()
        for name, node in _public(module.tree, module.name)
        if ast.get_docstring(node) is None
    )


def _public(
    node: ast.Module | ast.ClassDef, name: str
) -> Iterator[tuple[str, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]]:
    yield name, node
    for child in node.body:
        if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
            yield from _public(child, child.name)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and not child.name.startswith("_"):
            yield child.name, child


def test_functions_are_annotated() -> None:
    def offenders() -> Iterator[str]:
        for module in modules().values():
            for node in module.functions():
                every = [
                    *node.args.posonlyargs,
                    *node.args.args,
                    *node.args.kwonlyargs,
                    node.args.vararg,
                    node.args.kwarg,
                ]
                bare = [item.arg for item in every if item and not item.annotation and item.arg not in ("self", "cls")]
                bare += [] if node.returns else ["return"]
                if bare:
                    yield module.at(node.lineno, f"'{node.name}' leaves without a type: {', '.join(bare)}")

    _refuse(offenders())


def test_tests_mirror_the_rooms() -> None:
    def offenders() -> Iterator[str]:
        for module in modules().values():
            parts = module.name.split(".")[:2]
            expected = Path("tests", *parts[:-1], f"test_{parts[-1]}.py")
            is_only_data = not any(module.functions())
            if not is_only_data and module.name not in DOORS and not (ROOT / expected).is_file():
                yield module.at(1, f"has no tests; they belong into {expected.as_posix()}")

    _refuse(offenders())


# The doors


def test_exported_names_are_the_promised_ones() -> None:
    package = importlib.import_module("hf_merge")
    exported: list[str] = package.__all__
    assert set(exported) == PROMISED
    assert len(exported) == len(PROMISED) <= EXPORTS
    assert exported == sorted(exported)
    assert [name for name in exported if not hasattr(package, name)] == []


def test_help_is_instant() -> None:
    command = [sys.executable, "-m", "hf_merge", "--help"]
    seconds = []
    for _ in range(3):
        start = _seconds_of_children()
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        seconds.append(_seconds_of_children() - start)
        assert run.returncode == 0, run.stderr
    assert min(seconds) <= HELP_SECONDS, f"hf-merge --help takes {min(seconds):.2f} s, the limit is {HELP_SECONDS} s"


def _seconds_of_children() -> float:
    """Returns the processor time of ended children: what they do, not what the machine does beside them."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_no_file_names_a_place_on_someones_machine() -> None:
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listing.returncode != 0:
        pytest.skip("not a git checkout, so there is no list of tracked files")
    place = re.compile(rb"(?<![\w.-])/(?:home|root|Users|work|farm|tmp/\w+)/\w")
    _refuse(
        f"{name}:{number}: names a path of one machine: {line.strip()[:120].decode(errors='replace')}"
        for name in filter(None, listing.stdout.split("\0"))
        if (ROOT / name).is_file() and b"\0" not in (content := (ROOT / name).read_bytes())
        for number, line in enumerate(content.splitlines(), start=1)
        if place.search(line)
    )
