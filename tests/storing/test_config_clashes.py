"""Settings that change what weights mean are compared, those inside other configurations too."""

from hf_merge.storing.config_clashes import config_clashes


def test_only_settings_that_weights_depend_on_clash() -> None:
    base = {"hidden_size": 8, "num_attention_heads": 2, "dropout": 0.1}
    assert list(config_clashes(base, base | {"dropout": 0.5, "vocab_size": 3}, "here")) == []
    assert list(config_clashes(base, base | {"num_attention_heads": 4}, "here")) == [
        "here: num_attention_heads is 4 where the base has 2"
    ]


def test_configurations_inside_are_named_by_their_path() -> None:
    base = {"vision_config": {"patch_size": 8}, "text_config": {"hidden_size": 4}}
    tuned = {"vision_config": {"patch_size": 16}, "text_config": {"hidden_size": 4}}
    assert list(config_clashes(base, tuned, "here")) == ["here: vision_config.patch_size is 16 where the base has 8"]
