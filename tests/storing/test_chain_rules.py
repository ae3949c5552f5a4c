"""Maps that are well-formed and lie: each rule that is broken alone, with its own message and place."""

import re

import pytest

from hf_merge.errors import LimitExceeded, MalformedChainMap, UnsafeName
from hf_merge.storing import chains
from hf_merge.storing.chain_entries import SETTINGS_FILES, TOKENIZER_FILES
from hf_merge.storing.limits import LIMITS
from tests.storing.chain_maps import SHARDS, Edit, both, differing, document, drop, edited, put


FILE = {"sha256": "0" * 64, "bytes": 10}
EXPERT = document()["experts"][2]

BREACHES: dict[str, tuple[Edit, str]] = {
    "unknown expert": (put("chains", "sst2", 0, value="attention-x"), "chains.sst2: there is no expert 'attention-x'"),
    "component missing": (
        put("chains", "sst2", value=["attention-a1"]),
        "chains.sst2: lacks an expert for the component 'mlp'",
    ),
    "component twice": (
        put("chains", "sst2", value=["attention-a1", "mlp-b1", "mlp-b1"]),
        "chains.sst2: the component 'mlp' is given twice",
    ),
    "other order": (
        put("chains", "sst2", value=["mlp-b1", "attention-a1"]),
        "chains.sst2[0]: is an expert of component 'mlp' where one of 'attention' must stand",
    ),
    "expert of other tasks": (
        put("chains", "sst2", 1, value="mlp-b2"),
        "chains.sst2: the expert 'mlp-b2' was not made for this task",
    ),
    "expert of another component": (
        put("experts", 2, "component", value="attention"),
        "chains.trec: the component 'attention' is given twice",
    ),
    "expert of no component": (
        put("experts", 0, "component", value="norm"),
        "experts[0].component: there is no component 'norm'",
    ),
    "expert twice": (
        put("experts", 1, "id", value="attention-a1"),
        "experts[1].id: the expert 'attention-a1' is given twice",
    ),
    "expert unused": (
        lambda map_: map_["experts"].append(EXPERT | {"id": "mlp-b3"}),
        "experts[3]: the expert 'mlp-b3' is in no chain",
    ),
    "member that does not use it": (
        put("experts", 1, "members", value=["sst2", "trec", "qqp"]),
        "experts[1].members: the chain of 'trec' does not use 'mlp-b1'",
    ),
    "member that is no task": (
        put("experts", 1, "members", 0, value="cola"),
        "experts[1].members: 'cola' is no task of chains",
    ),
    "member twice": (
        put("experts", 1, "members", 1, value="sst2"),
        "experts[1].members: the task 'sst2' is given twice",
    ),
    "merged by no method": (
        put("experts", 0, "method", value=None),
        "experts[0].method: must be null for one member or none, and name the method for several",
    ),
    "method for one": (
        put("experts", 2, "method", value={"name": "ties"}),
        "experts[2].method: must be null for one member or none",
    ),
    "base merged by a method": (
        put("experts", 1, "members", value=[]),
        "experts[1].method: must be null for one member or none",
    ),
    "base not for every task": (
        put("experts", 2, "members", value=[]),
        "experts[2].members: the chain of 'sst2' does not use 'mlp-b2'",
    ),
    "expert in no shard": (
        put("experts", 0, "file", value="router.safetensors"),
        "'router.safetensors' is no shard of experts",
    ),
    "expert's file without digest": (
        put("experts", 0, "file", value="experts-00009-of-00009.safetensors"),
        "experts[0].file: 'experts-00009",
    ),
    "component given twice": (
        put("components", 1, "name", value="attention"),
        "components[1]: the component 'attention' is given",
    ),
    "components share a tensor": (
        put("components", 1, "tensors", value=["encoder.layer.0.attention.bias"]),
        "components[1]: the tensor 'encoder.layer.0.attention.bias' is already in component 'attention'",
    ),
    "tensor twice in a component": (
        put("components", 1, "tensors", value=["a", "a"]),
        "components[1]: the tensor 'a' is already in component 'mlp'",
    ),
    "tensor named like a scale": (
        put("components", 1, "tensors", value=["a", "a.scale"]),
        "components: 'a.scale' is named like a part of the",
    ),
    "performance of no task": (put("performance", "cola", value=0.5), "performance: 'cola' is no task of chains"),
    "task without performance": (drop("performance", "sst2"), "performance: lacks the task 'sst2'"),
    "task without metric": (drop("metrics", "qqp"), "metrics: lacks the task 'qqp'"),
    "task without head": (drop("heads", "qqp"), "heads: lacks the task 'qqp'"),
    "head of no task": (
        lambda map_: map_["heads"].update(cola=map_["heads"]["sst2"]),
        "heads: 'cola' is no task of chains",
    ),
    "labels and logits": (
        put("heads", "sst2", "num_labels", value=3),
        "heads.sst2.labels: names 2 labels where num_labels is 3",
    ),
    "head's tensor twice": (
        put("heads", "sst2", "tensors", value=["w", "w"]),
        "heads.sst2.tensors: the tensor 'w' is given twice",
    ),
    "head in a strange file": (
        put("heads", "sst2", "file", value="config.json"),
        "heads.sst2.file: 'config.json' is no shard of experts and heads",
    ),
    "head's file without digest": (
        put("heads", "sst2", "file", value="experts-00009-of-00009.safetensors"),
        "heads.sst2.file: 'experts-00009",
    ),
    "no config": (drop("files", "config.json"), "files: lacks 'config.json'"),
    "shards with a gap": (
        lambda map_: map_["files"].update({"experts-00004-of-00003.safetensors": FILE}),
        "files: has 'experts-00001-of-00002.safetensors' where 'experts-00001-of-00003.safetensors' must stand",
    ),
    "shard of nothing": (
        both(put("experts", 2, "file", value=SHARDS[0]), put("heads", "qqp", "file", value=SHARDS[0])),
        f"files.{SHARDS[1]}: holds no expert and no head",
    ),
    "shard too small": (
        put("files", SHARDS[0], "bytes", value=232),
        "is 232, too few for the 232 bytes of its experts and heads",
    ),
    "chains empty": (put("chains", value={}), "chains: is empty"),
    "difference from nothing": (
        both(differing, put("experts", 2, "reference", value="mlp-x")),
        "experts[2].reference: there is no expert 'mlp-x'",
    ),
    "difference from another component": (
        both(differing, put("experts", 2, "reference", value="attention-a1")),
        "experts[2].reference: is an expert of component 'attention' where one of 'mlp' must be",
    ),
    "difference from a difference": (
        both(differing, put("experts", 2, "reference", value="mlp-b2")),
        "experts[2].reference: 'mlp-b2' is a difference itself",
    ),
    "difference from other tasks": (
        both(differing, put("experts", 1, "members", value=["sst2", "qqp"])),
        "experts[3].reference: 'mlp-s' was not made for 'trec'",
    ),
    "shared by more than use it": (
        both(differing, drop("experts", 3, "reference")),
        "experts[1].members: the chain of 'trec' does not use 'mlp-s'",
    ),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_each_breach_is_refused_with_its_place(breach: str) -> None:
    edit, message = BREACHES[breach]
    with pytest.raises(MalformedChainMap, match=re.escape(message)) as caught:
        chains.parse(edited(edit))
    assert str(caught.value).startswith("chains.json: ")


def test_every_message_is_of_its_own() -> None:
    messages = set()
    for edit, _ in BREACHES.values():
        with pytest.raises(MalformedChainMap) as caught:
            chains.parse(edited(edit))
        messages.add(str(caught.value))
    assert len(messages) == len(BREACHES)


def test_a_model_without_heads_is_allowed() -> None:
    assert chains.parse(edited(put("heads", value={}))).heads == {}


@pytest.mark.parametrize(
    "name",
    [
        "modeling_evil.py", "pytorch_model.bin", "model.safetensors", "README.md", "chains.json", "Config.json",
        "config.json.", "heads.safetensors", "experts-1-of-2.safetensors", "CON", "NUL.json",
        "experts-00001-of-00001.safetensors.part",
    ],
)  # fmt: skip
def test_files_of_any_other_name_are_refused(name: str) -> None:
    with pytest.raises(UnsafeName, match="is no file that a member folder holds"):
        chains.parse(edited(put("files", name, value=FILE)))


@pytest.mark.parametrize(
    "name",
    [
        "../config.json", "/etc/passwd", "a/config.json", "a\\config.json", "C:config.json", "%2e%2e", "", ".", "..",
        "config.json\0", "config.json\n", "x" * 300, "сonfig.json", "config.json\u202e", ".gitattributes",
        " config.json", "config.json:stream", "~",
    ],
)  # fmt: skip
@pytest.mark.parametrize("place", ["files", "expert", "head", "task", "component", "id"])
def test_names_outside_the_grammar_are_refused_everywhere(place: str, name: str) -> None:
    edit = {
        "files": put("files", name, value=FILE),
        "expert": put("experts", 0, "file", value=name),
        "head": put("heads", "sst2", "file", value=name),
        "task": put("chains", name, value=["attention-a1", "mlp-b1"]),
        "component": put("components", 0, "name", value=name),
        "id": put("id", value=name),
    }[place]
    with pytest.raises(UnsafeName) as caught:
        chains.parse(edited(edit))
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", sorted(SETTINGS_FILES | TOKENIZER_FILES))
def test_files_larger_than_their_kind_may_be_are_refused(name: str) -> None:
    limit = LIMITS.config_bytes if name in SETTINGS_FILES else LIMITS.tokenizer_bytes
    chains.parse(edited(put("files", name, value=FILE | {"bytes": limit})))
    with pytest.raises(LimitExceeded, match=f"at most {limit} are read"):
        chains.parse(edited(put("files", name, value=FILE | {"bytes": limit + 1})))


def test_one_shard_is_numbered_too() -> None:
    single = "experts-00001-of-00001.safetensors"

    def edit(map_: dict[str, dict[str, object]]) -> None:
        for shard in SHARDS:
            del map_["files"][shard]
        map_["files"][single] = FILE | {"bytes": 2000}

    moves = [put("experts", index, "file", value=single) for index in range(3)]
    moves += [put("heads", task, "file", value=single) for task in ("sst2", "trec", "qqp")]
    assert chains.parse(edited(both(edit, *moves)))


def test_differences_from_a_shared_expert_are_allowed() -> None:
    read = chains.parse(edited(differing))
    assert read.references == {"mlp-b1": "mlp-s", "mlp-b2": "mlp-s"}
    assert read.experts_of(["trec"]) == {"attention-a1", "mlp-b2", "mlp-s"}
    assert chains.parse(chains.dump(read)) == read


def test_an_expert_without_members_is_the_base_for_every_task() -> None:
    base = both(put("experts", 0, "members", value=[]), put("experts", 0, "method", value=None))
    read = chains.parse(edited(base))
    assert (read.experts[0].members, read.experts[0].method) == ((), None)
    assert chains.parse(chains.dump(read)) == read
