"""Hyperparameters, specs and the registries' discovery."""

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as law
from hypothesis import strategies as st

from hf_merge.errors import RecipeError
from hf_merge.merging import codecs, methods
from hf_merge.merging.codecs import CodecSpec
from hf_merge.merging.methods import MethodSpec
from hf_merge.merging.settings import Hyperparameter, Spec, discover, resolve


DENSITY = Hyperparameter("density", 0.2, low=0.001, high=1.0)
RULE = Hyperparameter("rule", "mean", choices=("mean", "sum"))
ANY = Hyperparameter("any", 0.0)


def test_every_setting_is_present_in_declared_order() -> None:
    assert resolve("X", (DENSITY, RULE), {"rule": "sum"}) == (("density", 0.2), ("rule", "sum"))


def test_an_integer_and_its_float_mean_the_same() -> None:
    (by_integer,), (by_float,) = resolve("X", (DENSITY,), {"density": 1}), resolve("X", (DENSITY,), {"density": 1.0})
    assert by_integer == by_float == ("density", 1.0)
    assert isinstance(by_integer[1], float)


@pytest.mark.parametrize("written", ["2e-1", "2.e-1", "+20E-2", "0.02e1"])
def test_a_number_with_an_exponent_is_one_though_yaml_takes_it_for_a_text(written: str) -> None:
    assert resolve("X", (DENSITY,), {"density": written}) == (("density", 0.2),)


def test_negative_zero_is_written_as_zero() -> None:
    ((_, value),) = resolve("X", (ANY,), {"any": -0.0})
    assert math.copysign(1.0, float(value)) == 1.0


IMPOSSIBLE = [0.0, 1.5, -1, 10**400, math.nan, math.inf, -math.inf, True, "0.5", "1e400", "e-1", "1e-1x", None, [0.5]]


@pytest.mark.parametrize("value", IMPOSSIBLE)
def test_an_impossible_number_is_refused_with_value_range_and_default(value: object) -> None:
    with pytest.raises(RecipeError) as caught:
        resolve("Merge method 'x'", (DENSITY,), {"density": value})
    message = str(caught.value)
    assert message.startswith("Merge method 'x': density is ")
    assert "[0.001, 1]" in message
    assert "leave it out for 0.2" in message


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400])
def test_a_number_without_bounds_must_still_be_finite(value: object) -> None:
    with pytest.raises(RecipeError, match="any is"):
        resolve("X", (ANY,), {"any": value})


@pytest.mark.parametrize("value", ["men", 1, None, True, ""])
def test_an_unknown_word_is_refused_with_the_known_ones(value: object) -> None:
    with pytest.raises(RecipeError, match=r"rule is .* Known: mean, sum\. Leave it out for 'mean'\."):
        resolve("X", (RULE,), {"rule": value})


def test_an_unknown_setting_is_refused_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"unknown setting 'densty'\. Did you mean 'density'\?"):
        resolve("X", (DENSITY, RULE), {"densty": 0.3})


def test_a_setting_of_something_without_settings_is_refused() -> None:
    with pytest.raises(RecipeError, match="It has no settings"):
        resolve("X", (), {"scale": 1})


@law(deadline=None)
@given(st.one_of(st.floats(), st.integers(), st.text(), st.booleans(), st.none(), st.lists(st.integers())))
def test_any_value_is_either_canonical_or_refused(value: object) -> None:
    try:
        ((_, canonical),) = resolve("X", (DENSITY,), {"density": value})
    except RecipeError:
        return
    assert isinstance(canonical, float)
    assert 0.001 <= canonical <= 1.0


def test_specs_are_equal_and_hash_alike_exactly_when_they_mean_the_same() -> None:
    plain, written_out = MethodSpec.resolve("ties"), MethodSpec.resolve("ties", {"scale": 1, "density": 0.2})
    assert plain == written_out
    assert hash(plain) == hash(written_out)
    assert plain != MethodSpec.resolve("ties", {"density": 0.3})


def test_a_method_and_a_codec_of_one_name_differ() -> None:
    specs: list[Spec] = [MethodSpec("x", ()), CodecSpec("x", ())]
    assert specs[0] != specs[1]


def test_json_of_a_spec_resolves_to_the_spec() -> None:
    for name in methods.available():
        spec = MethodSpec.resolve(name)
        document = spec.as_json()
        assert document.pop("name") == name
        assert MethodSpec.resolve(name, document) == spec
    for name in codecs.available():
        assert CodecSpec.resolve(name).as_json() == {"name": name, **CodecSpec.resolve(name).mapping}


@pytest.mark.parametrize(
    ("resolved", "message"),
    [
        (lambda: MethodSpec.resolve("tie"), "Unknown merge method 'tie'. Did you mean 'ties'?"),
        (lambda: CodecSpec.resolve("int9"), "Unknown codec 'int9'. Did you mean 'int8'?"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(resolved: Callable[[], Spec], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        resolved()
    assert str(caught.value).startswith(message)


def _package(folder: Path, name: str, files: dict[str, str]) -> str:
    package = folder / name
    package.mkdir()
    (package / "__init__.py").write_text("")
    for file, text in files.items():
        (package / file).write_text(text)
    return str(package)


SPEC = "from hf_merge.merging.settings import Spec\nENTRY = Spec('{}', ())\n"


def test_one_file_is_one_entry_and_helpers_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"beta.py": SPEC.format("beta"), "alpha.py": SPEC.format("alpha"), "_helper.py": "raise RuntimeError\n"}
    folder = _package(tmp_path, "hf_merge_entries", files)
    monkeypatch.syspath_prepend(tmp_path)
    assert list(discover("hf_merge_entries", [folder], "ENTRY", Spec)) == ["alpha", "beta"]


@pytest.mark.parametrize("text", ["", "ENTRY = 1\n", SPEC.format("other")])
def test_a_file_without_its_entry_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    folder = _package(tmp_path, f"hf_merge_bad{abs(hash(text))}", {"alpha.py": text})
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(TypeError, match=r"\.alpha must define ENTRY = Spec\(name='alpha'"):
        discover(Path(folder).name, [folder], "ENTRY", Spec)


@pytest.mark.parametrize("registry", [methods.available(), codecs.available()])
def test_every_declared_hyperparameter_is_sound(registry: dict[str, methods.MergeMethod]) -> None:
    for entry in registry.values():
        names = [parameter.name for parameter in entry.hyperparameters]
        assert len(set(names)) == len(names)
        assert "name" not in names
        for parameter in entry.hyperparameters:
            assert parameter.check(parameter.default, "X") == parameter.default
            assert parameter.help.endswith(".")
            assert bool(parameter.choices or parameter.pattern) == (parameter.low is None and parameter.high is None)
        assert entry.summary.endswith(".")


def test_importing_the_registries_loads_no_torch() -> None:
    script = "import sys, hf_merge.merging.methods, hf_merge.merging.codecs; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


SHARE = Hyperparameter("share", 0.5, low=0.0, high=1.0, exclusive=True)
RANK = Hyperparameter("rank", 8.0, low=1.0, high=4096.0, whole=True)
BITS = Hyperparameter("bits", 2.0, choices=(2.0, 4.0))


@pytest.mark.parametrize("value", [0, 1, 0.0, 1.0, -0.0, True, math.nan, 2])
def test_the_ends_of_an_open_range_are_refused(value: object) -> None:
    with pytest.raises(RecipeError, match=r"share is .*a number in \(0, 1\), the ends left out\. .* for 0\.5\."):
        resolve("X", (SHARE,), {"share": value})


@pytest.mark.parametrize("value", [math.nextafter(0, 1), 0.5, math.nextafter(1, 0)])
def test_whatever_lies_within_an_open_range_is_taken(value: float) -> None:
    assert resolve("X", (SHARE,), {"share": value}) == (("share", value),)


@pytest.mark.parametrize("value", [0, 1.5, 4097, math.nan, math.inf, "8", True, 10**400])
def test_a_number_that_is_not_whole_is_refused_where_one_is_needed(value: object) -> None:
    with pytest.raises(RecipeError, match=r"rank is .*a whole number in \[1, 4096\]\. .* leave it out for 8\."):
        resolve("X", (RANK,), {"rank": value})


def test_a_whole_number_is_taken_in_either_writing() -> None:
    assert resolve("X", (RANK,), {"rank": 16}) == resolve("X", (RANK,), {"rank": 16.0}) == (("rank", 16.0),)


COUNTS = {
    "fisher": ["rows"],
    "regmean": ["rows"],
    "adamerging": ["rows", "steps", "batch"],
    "expert_merging": ["rows", "epochs", "accumulate"],
    "expert_merging_plus": ["rows", "epochs", "accumulate"],
}


@pytest.mark.parametrize(("method", "setting"), [(method, name) for method, names in COUNTS.items() for name in names])
def test_what_a_method_counts_is_whole(method: str, setting: str) -> None:
    """A fraction would be cut off later: one merge under two identities."""
    with pytest.raises(RecipeError, match=rf"{setting} is 2\.5; it must be a whole number"):
        MethodSpec.resolve(method, {setting: 2.5})
    assert MethodSpec.resolve(method, {setting: 2}).mapping[setting] == 2.0


@pytest.mark.parametrize("value", [3, "2", 2.5, None, True, math.nan, [2]])
def test_a_number_that_is_none_of_the_choices_is_refused_with_them(value: object) -> None:
    with pytest.raises(RecipeError, match=r"bits is .* Known: 2, 4\. Leave it out for '2'\."):
        resolve("X", (BITS,), {"bits": value})


def test_a_number_among_the_choices_is_written_as_a_float() -> None:
    ((_, value),) = resolve("X", (BITS,), {"bits": 4})
    assert value == 4.0 and isinstance(value, float)


NAMED = Hyperparameter("within", "", pattern=r"c\d+", optional=True, help="A name.")


def test_an_optional_setting_is_left_out_at_its_default_and_kept_otherwise() -> None:
    known = (Hyperparameter("scale", 0.4, low=0.0, high=1.0), NAMED)
    assert resolve("X", known, {}) == resolve("X", known, {"within": ""}) == (("scale", 0.4),)
    assert resolve("X", known, {"within": "c12"}) == (("scale", 0.4), ("within", "c12"))


@pytest.mark.parametrize("value", ["c", "c12x", "../c12", 3, None, True])
def test_a_name_that_does_not_fit_is_refused(value: object) -> None:
    with pytest.raises(RecipeError, match=r"X: within is .*no such name"):
        resolve("X", (NAMED,), {"within": value})
