"""`chains.json`: what `dump` writes `parse` reads, the same bytes for the same map, and nothing else is taken."""

import json
import random
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_merge.errors import HfMergeError, LimitExceeded, MalformedChainMap, UnknownFormatVersion, UnsafeName
from hf_merge.recipe.wording import Wording, find_fault
from hf_merge.storing import chains
from hf_merge.storing.chains import (
    BaseRef,
    ChainMap,
    ComponentEntry,
    ExpertEntry,
    FileEntry,
    HeadEntry,
    ModelEntry,
    Settings,
)
from hf_merge.storing.json_fields import Field
from hf_merge.storing.limits import LIMITS
from tests.storing.chain_maps import SHARDS, document, drop, edited, put, sample, sample_bytes


Value = TypeVar("Value")

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,12}", fullmatch=True)
TENSORS = st.from_regex(r"[!-~]{1,20}", fullmatch=True).filter(
    lambda name: not name.endswith((".scale", ".zero_point"))
)
LABELS = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs")), max_size=8)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
SETTINGS: st.SearchStrategy[dict[str, float | str]] = st.dictionaries(
    NAMES.filter(lambda key: key != "name"), NUMBERS | st.integers(-9, 9) | NAMES, max_size=2
)
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 1.0, 0.5, 10**30, "", "x", "../x", "\x00", [], [[]], {}, {"a": 1}, "experts", [1],
    "ä", "name", "sst2", ["sst2"], ["sst2", "sst2"], 1e300,
)  # fmt: skip


@st.composite
def named_settings(draw: st.DrawFn) -> Settings:
    """Draws what a merge method or a codec is called with."""
    return {"name": draw(NAMES), **draw(SETTINGS)}


@st.composite
def chain_maps(draw: st.DrawFn) -> ChainMap:
    """Draws maps that keep every rule: names, groupings, settings, shards and heads vary."""
    tasks = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    components = draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
    tensors = draw(st.lists(TENSORS, min_size=len(components), max_size=6, unique=True))
    shards = draw(st.integers(1, 3))
    experts: list[ExpertEntry] = []
    made: dict[tuple[str, str], str] = {}
    for component in components:
        labels = draw(st.lists(st.integers(0, 3), min_size=len(tasks), max_size=len(tasks)))
        for label in sorted(set(labels)):
            members = tuple(task for task, group in zip(tasks, labels, strict=True) if group == label)
            method = draw(named_settings()) if len(members) > 1 else None
            shard = f"experts-{len(experts) % shards + 1:05}-of-{shards:05}.safetensors"
            identifier, size = f"e{len(experts)}", draw(st.integers(1, 99))
            expert = ExpertEntry(identifier, component, members, method, draw(named_settings()), shard, size)
            experts.append(expert)
            made |= {(task, component): expert.id for task in members}
    used = {expert.file for expert in experts}
    shards = len(used)
    experts = [replace(expert, file=f"{expert.file[:13]}-of-{shards:05}.safetensors") for expert in experts]
    names = [f"experts-{index + 1:05}-of-{shards:05}.safetensors" for index in range(shards)]
    with_heads = draw(st.booleans())
    labels_of = {task: draw(st.none() | st.lists(LABELS, min_size=2, max_size=2).map(tuple)) for task in tasks}
    heads = {task: HeadEntry(2, labels_of[task], "regression", ("w",), names[0], 4) for task in tasks if with_heads}
    digest = draw(st.from_regex(r"[0-9a-f]{64}", fullmatch=True))
    return ChainMap(
        id=draw(NAMES),
        library_version="0.1.0.dev1+g12",
        base=BaseRef("org/base", "a" * 40, 1, 16) if draw(st.booleans()) else BaseRef("my base", None, 9, 32),
        cost=draw(st.floats(1e-300, 1e300)),
        performance={task: draw(NUMBERS) for task in tasks},
        metrics={task: draw(LABELS) for task in tasks},
        granularity="type",
        dtype=draw(st.sampled_from(chains.DTYPES)),
        model=ModelEntry("image", None),
        components=tuple(
            ComponentEntry(name, tuple(tensors[index :: len(components)])) for index, name in enumerate(components)
        ),
        experts=tuple(experts),
        chains={task: tuple(made[task, component] for component in components) for task in tasks},
        heads=heads,
        files={name: FileEntry(digest, 10_000) for name in ["config.json", *names]},
    )


@settings(max_examples=30, deadline=None)
@given(chain_maps())
def test_a_map_is_read_as_it_was_written(chain_map: ChainMap) -> None:
    data = chains.dump(chain_map)
    assert chains.parse(data) == chain_map
    assert chains.dump(chains.parse(data)) == data


def test_the_sample_has_the_keys_that_outside_readers_know() -> None:
    read = document()
    assert read["format_version"] == 1
    assert read["cost"] == 0.359
    assert read["base"] == {"repo": "org/base", "revision": "0123456789" * 4, "parameters": 22_713_216, "bits": 32}
    assert read["experts"][0] == {
        "id": "attention-a1",
        "component": "attention",
        "members": ["sst2", "trec", "qqp"],
        "method": {"name": "ties", "density": 0.2, "scale": 1.0},
        "codec": "int8",
        "codec_settings": {"policy": "criterion", "unit": "tensor"},
        "file": SHARDS[0],
        "bytes": 123,
    }
    assert read["experts"][2]["method"] is None
    assert read["chains"]["sst2"] == ["attention-a1", "mlp-b1"]
    assert read["heads"]["sst2"]["labels"] == ["négatif", "positif"]
    assert read["files"][SHARDS[0]] == {"sha256": "0123456789abcdef" * 4, "bytes": 1000}


def turned_round(mapping: Mapping[str, Value]) -> dict[str, Value]:
    return dict(reversed(list(mapping.items())))


def test_equal_maps_are_equal_bytes_whatever_order_their_mappings_came_in() -> None:
    first = sample()
    turned = replace(
        first,
        performance=turned_round(first.performance),
        metrics=turned_round(first.metrics),
        heads=turned_round(first.heads),
        files=turned_round(first.files),
        experts=tuple(
            replace(
                expert,
                codec=turned_round(expert.codec),
                method=expert.method and turned_round(expert.method),
            )
            for expert in first.experts
        ),
    )
    assert turned == first
    assert chains.dump(turned) == chains.dump(first)


def test_the_order_of_tasks_survives() -> None:
    assert chains.parse(chains.dump(sample())).tasks == ("sst2", "trec", "qqp")


def test_what_cannot_be_read_is_not_written() -> None:
    for broken in (
        replace(sample(), cost=float("nan")),
        replace(sample(), cost=0.0),
        replace(sample(), chains={"sst2": ("nobody",)}),
        replace(sample(), library_version="latest"),
    ):
        with pytest.raises(MalformedChainMap):
            chains.dump(broken)
    with pytest.raises(UnknownFormatVersion):
        chains.dump(replace(sample(), format_version=2))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (put("experts", 1, "bytes", value=True), "experts[1].bytes: is true, not an integer"),
        (put("experts", 1, "bytes", value=1.0), "experts[1].bytes: is the number 1.0, not an integer"),
        (put("experts", 1, "bytes", value=0), "experts[1].bytes: is 0, not in 1 to"),
        (put("experts", 1, "size", value=1), "experts[1]: the key 'size' is unknown."),
        (drop("experts", 1, "codec_settings"), "experts[1]: lacks 'codec_settings'"),
        (put("experts", 1, "codec_settings", value={"name": "x"}), "settings: has 'name', which stands under codec"),
        (put("experts", 0, "method", value={"density": 1.0}), "experts[0].method: lacks 'name'"),
        (put("experts", 0, "method", "scale", value=True), "experts[0].method.scale: is true, not a number"),
        (put("experts", 0, "method", "scale", value=[1]), "experts[0].method.scale: is an array, not a text"),
        (put("components", 0, "tensors", value=[]), "components[0].tensors: is empty"),
        (put("components", value=[]), "components: is empty"),
        (put("experts", value={}), "experts: is an object, not an array"),
        (put("chains", "sst2", value="attention-a1"), "chains.sst2: is the text 'attention-a1', not an array"),
        (put("cost", value=0), "cost: is 0.0; a configuration costs more than nothing"),
        (put("cost", value=-1.5), "cost: is -1.5"),
        (put("performance", "sst2", value="0.9"), "performance.sst2: is the text '0.9', not a number"),
        (put("dtype", value="float64"), "dtype: 'float64' is unknown."),
        (put("model", "type", value="video"), "model.type: 'video' is unknown."),
        (put("model", "max_length", value=0), "model.max_length: is 0, not in 1 to"),
        (put("base", "revision", value="main"), "base.revision: 'main' is no commit"),
        (put("base", "repo", value="../../etc"), "base.repo: '../../etc' is no repository of the Hub"),
        (put("base", "repo", value="https://evil.example/x"), "base.repo: 'https"),
        (put("base", "bits", value=65), "base.bits: is 65, not in 1 to 64"),
        (put("files", SHARDS[0], "sha256", value="A" * 64), "is no SHA-256"),
        (put("files", SHARDS[0], "sha256", value="a" * 64 + "\n"), "is no SHA-256"),
        (put("heads", "sst2", "problem_type", value="guess"), "heads.sst2.problem_type: 'guess' is unknown."),
        (put("heads", "sst2", "num_labels", value=0), "heads.sst2.num_labels: is 0, not in 1 to 65536"),
        (put("format_version", value="1"), "format_version is no integer"),
        (put("format_version", value=True), "format_version is no integer"),
        (drop("format_version"), "lacks 'format_version'"),
        (put("comment", value="hello"), "the key 'comment' is unknown."),
    ],
)  # fmt: skip
def test_anything_but_the_format_is_refused_with_its_json_path(edit: Any, message: str) -> None:
    with pytest.raises(MalformedChainMap, match=re.escape(message)) as caught:
        chains.parse(edited(edit))
    assert str(caught.value).startswith("chains.json: ")


@pytest.mark.parametrize("label", ["\x1b[31mred", "a\nb", "\u202eevil", "\x7f"])
def test_labels_that_would_upset_a_terminal_are_refused(label: str) -> None:
    with pytest.raises(UnsafeName, match=r"heads\.sst2\.labels\[1\]"):
        chains.parse(edited(put("heads", "sst2", "labels", 1, value=label)))


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"1", b"{}", b'"x"', b'{"format_version": 1}'])
def test_other_documents_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedChainMap, match=r"^chains\.json: "):
        chains.parse(data)


@pytest.mark.parametrize("version", [0, 2, 99, -1])
def test_other_versions_say_which_one_is_read(version: int) -> None:
    for data in (
        b'{"format_version": %d, "anything": "else"}' % version,
        edited(put("format_version", value=version)),
    ):
        with pytest.raises(UnknownFormatVersion, match=f"is {version}; this release of hf-merge reads version 1"):
            chains.parse(data)


def test_a_local_base_needs_no_revision() -> None:
    local = replace(sample(), base=BaseRef("modèle de base", None, 5, 32))
    assert chains.parse(chains.dump(local)) == local


def test_whole_numbers_in_settings_stay_whole_and_others_do_not() -> None:
    method: Settings = {"name": "ties", "rank": 4, "scale": 4.0}
    changed = replace(sample(), experts=(replace(sample().experts[0], method=method), *sample().experts[1:]))
    read = chains.parse(chains.dump(changed)).experts[0].method
    assert read is not None
    assert [type(read[key]) for key in ("rank", "scale")] == [int, float]


def test_limits_come_first() -> None:
    with pytest.raises(LimitExceeded, match="more than the 4194304 bytes"):
        chains.parse(b"[" * (LIMITS.chain_map_bytes + 1))
    with pytest.raises(LimitExceeded, match="chains: has 4097 entries where 4096"):
        chains.parse(edited(put("chains", value={f"t{index}": ["x"] for index in range(LIMITS.chains + 1)})))


def test_the_largest_maps_are_refused_quickly() -> None:
    """Shapes that would make a careless reader quadratic."""
    many = [f"t{index}" for index in range(4_000)]
    wide = edited(put("experts", 0, "members", value=many))
    same = edited(put("chains", value={task: ["attention-a1", "mlp-b1"] * 20 for task in many}))
    for data in (wide, same, b'{"a":' + b"[" * 15 + b"1," * 2_000_000 + b"1" + b"]" * 15 + b"}"):
        start = time.process_time()
        with pytest.raises(HfMergeError):
            chains.parse(data)
        assert time.process_time() - start < 6, "a second or less is usual, a quadratic reader takes minutes"


def survives(data: bytes) -> None:
    """Parses, and lets nothing but our own errors leave; what is accepted must be stable."""
    try:
        accepted = chains.parse(data)
    except HfMergeError as error:
        assert str(error).isprintable()
        assert len(str(error)) < 2_000
        return
    again = chains.dump(accepted)
    assert chains.parse(again) == accepted
    assert chains.dump(chains.parse(again)) == again


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_mutated_bytes_raise_only_our_own_errors(seed: int) -> None:
    chance, data = random.Random(seed), bytearray(sample_bytes())
    for _ in range(chance.randint(1, 4)):
        start = chance.randrange(len(data))
        stop = min(len(data), start + chance.choice((1, 1, 1, 8, 200)))
        source = chance.randrange(len(data))
        piece = bytes(data[source : source + chance.choice((1, 5, 60))])
        data[start:stop] = chance.choice((b"", bytes([chance.randrange(256)]), piece, chance.choice(TOKENS)))
    survives(bytes(data))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_mutated_documents_raise_only_our_own_errors(seed: int) -> None:
    chance, changed = random.Random(seed), document()
    for _ in range(chance.randint(1, 2)):
        holder, key = chance.choice(list(places(changed)))
        action = chance.randrange(4)
        if action == 0:
            del holder[key]
        elif action == 1:
            holder[key] = chance.choice(ODD)
        elif action == 2:
            other, place = chance.choice(list(places(changed)))
            holder[key] = json.loads(json.dumps(other[place]))
        elif isinstance(holder, dict):
            holder[chance.choice(("x", "name", "../x", "sst2", "bytes", ""))] = holder[key]
        else:
            holder.append(holder[key])
    survives(json.dumps(changed).encode())


def places(value: Any) -> Any:
    """Yields every container with each of its keys."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places(value[key])


TOKENS = (
    b"NaN",
    b"1e999",
    b"-0",
    b"\\ud800",
    b"\xff",
    b'""',
    b"[",
    b"}",
    b"true",
    b"null",
    b"9" * 50,
    b"\x00",
    b"1.0",
)


# Language models, whose tasks have words in the place of heads


def spoken() -> ChainMap:
    wordings = {
        "sst2": Wording("{text}\nSentiment:", (" négatif", " positif"), None),
        "trec": Wording("Q: {text}\tA:", None, 16),
        "qqp": Wording("{text} / {text_pair}", ("no", "yes"), None),
    }
    return replace(sample(), model=ModelEntry("causal", 128), heads={}, wordings=wordings)


def spoken_bytes(edit: Any = lambda read: None) -> bytes:
    read = json.loads(chains.dump(spoken()))
    edit(read)
    return json.dumps(read).encode()


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_words_are_read_as_they_were_written(kind: str) -> None:
    chain_map = replace(spoken(), model=ModelEntry(kind, None))
    data = chains.dump(chain_map)
    assert chains.parse(data) == chain_map
    assert chains.dump(chains.parse(data)) == data
    assert json.loads(data)["heads"]["trec"] == {"template": "Q: {text}\tA:", "answers": None, "max_new_tokens": 16}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            put("heads", "sst2", "template", value="Sentiment:"),
            "heads.sst2: has a template that must hold {text} once",
        ),
        (put("heads", "sst2", "template", value="{text.__class__}{text}"), "names {text.__class__}"),
        (put("heads", "sst2", "template", value=3), "heads.sst2.template: is the number 3, not a text"),
        (put("heads", "sst2", "answers", value=[" a"]), "heads.sst2: has 1 answers where"),
        (put("heads", "sst2", "answers", value=[" a", "a"]), "has the answer 'a' twice"),
        (put("heads", "sst2", "answers", value=" a"), "heads.sst2.answers: is the text ' a', not an array"),
        (put("heads", "sst2", "answers", value=None), "heads.sst2: must have either answers or max_new_tokens"),
        (put("heads", "sst2", "max_new_tokens", value=4), "heads.sst2: must have either answers or max_new_tokens"),
        (put("heads", "trec", "max_new_tokens", value=0), "max_new_tokens: is 0, not in 1 to 4096"),
        (put("heads", "trec", "max_new_tokens", value=10**6), "max_new_tokens: is 1000000, not in 1 to 4096"),
        (put("heads", "trec", "max_new_tokens", value=True), "max_new_tokens: is true, not an integer"),
        (put("heads", "trec", "num_labels", value=2), "heads.trec: the key 'num_labels' is unknown"),
        (drop("heads", "trec"), "heads: lacks the task 'trec'"),
        (put("heads", value={}), "heads: lacks the task 'sst2'"),
        (put("model", "type", value="text"), "heads.sst2: the key 'template' is unknown"),
    ],
)
def test_words_that_break_a_rule_are_refused(edit: Any, message: str) -> None:
    with pytest.raises(MalformedChainMap, match=re.escape(message)):
        chains.parse(spoken_bytes(edit))


@pytest.mark.parametrize("sign", ["\x1b[31m", "\u202e", "\x00", "\r", "\x7f", "\u2028"])
@pytest.mark.parametrize(
    "edit", [lambda sign: put("heads", "sst2", "template", value=f"{{text}}{sign}"),
             lambda sign: put("heads", "sst2", "answers", 1, value=f" yes{sign}")],
)  # fmt: skip
def test_words_that_would_upset_a_terminal_are_refused(edit: Any, sign: str) -> None:
    with pytest.raises(UnsafeName, match=r"heads\.sst2\.(template|answers\[1\])"):
        chains.parse(spoken_bytes(edit(sign)))


@pytest.mark.slow
def test_whatever_a_recipe_may_say_can_be_written() -> None:
    """Else a search would end in a member that cannot be built."""
    for number in range(sys.maxunicode + 1):
        wording = Wording("{text}" + chr(number), ("a", "b"), None)
        field = Field(wording.template, "here")
        try:
            field.prose()
        except UnsafeName:
            assert find_fault(wording) is not None, hex(number)
        else:
            assert find_fault(wording) is None, hex(number)


def test_words_have_limits() -> None:
    for edit in (
        put("heads", "sst2", "template", value="{text}" + "a" * 1100),
        put("heads", "sst2", "answers", 1, value="a" * 1100),
    ):
        with pytest.raises(LimitExceeded, match="where 1024 are allowed"):
            chains.parse(spoken_bytes(edit))


def test_heads_of_the_other_kind_are_not_written() -> None:
    for broken in (replace(sample(), wordings=spoken().wordings), replace(spoken(), heads=sample().heads)):
        with pytest.raises(MalformedChainMap):
            chains.dump(broken)
