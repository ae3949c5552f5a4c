from pathlib import Path

import pytest

from hf_merge.errors import InputError
from hf_merge.storing.sources import check_revision, is_encrypted, local_folder


@pytest.mark.parametrize("source", ["gpt2", "org/name", "bert-base_uncased.v2", "0x/1", "a" * 96, "_o/_n"])
def test_a_hub_id_is_no_folder(source: str) -> None:
    assert local_folder(source) is None


def test_a_folder_comes_before_a_hub_id_of_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "org/name").mkdir(parents=True)
    assert local_folder("org/name") == Path("org/name")
    assert local_folder("~/org") == tmp_path / "org"
    assert local_folder(".") == Path()


@pytest.mark.parametrize("source", ["./here", "../up", "/no/such", "~/no-such", "a/b/c", "org/", "a\\b", ".x", "~x/y"])
def test_a_path_that_does_not_exist_says_what_was_looked_for(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(InputError, match=r"does not exist\. Give a folder or a Hub id") as refused:
        local_folder(source)
    assert ascii(source) in str(refused.value)
    if source == "./here":
        assert str(tmp_path / "here") in str(refused.value)


@pytest.mark.parametrize(
    "source", ["", "two words", "a--b", "a..b", "name.git", "a" * 97, "a" * 5000, "é/x", "nul\0", "org-/x"]
)
def test_what_is_neither_is_refused(source: str) -> None:
    with pytest.raises(InputError, match="neither a folder here nor a Hub id"):
        local_folder(source)


def test_a_file_is_not_its_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InputError, match=r"is a file\. Give the folder: '"):
        local_folder(str(tmp_path / "model.safetensors"))


def test_an_address_is_refused_without_its_secrets() -> None:
    with pytest.raises(InputError, match=r"is an address\. Give the Hub id alone") as refused:
        local_folder("https://me:pass@huggingface.co/org/name?token=hf_x")
    assert "pass" not in str(refused.value) and "hf_x" not in str(refused.value)


@pytest.mark.parametrize("revision", ["main", "v1.0", "refs/pr/3", "feature/x", "a" * 40, "user@2"])
def test_what_git_takes_is_a_revision(revision: str) -> None:
    check_revision(revision, "org/name")


@pytest.mark.parametrize("revision", ["", ".", "..", "a..b", "/a", "-a", "a b", "a\n", "a\\b", "a" * 256, "é"])
def test_what_git_refuses_is_no_revision(revision: str) -> None:
    with pytest.raises(InputError, match="cannot be a revision of 'org/name'"):
        check_revision(revision, "org/name")


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:8765", "http://localhost", "http://[::1]:1", "http://127.9.9.9"]
)
def test_this_machine_needs_no_encryption(address: str) -> None:
    assert not is_encrypted(address)


def test_https_is_encrypted() -> None:
    assert is_encrypted("https://huggingface.co") and is_encrypted("https://mirror.example:8443/hub")


@pytest.mark.parametrize(
    "address",
    [
        "http://hub.example",
        "http://127.0.0.1.evil.example",
        "http://10.0.0.1",
        "hub.example",
        "ftp://localhost",
        "",
        "https://",
    ],
)
def test_any_other_address_is_refused(address: str) -> None:
    with pytest.raises(InputError, match=r"is not https.*HF_ENDPOINT"):
        is_encrypted(address)


def test_a_refused_address_is_shown_without_its_password() -> None:
    with pytest.raises(InputError) as refused:
        is_encrypted("http://me:pass@hub.example")
    assert "pass" not in str(refused.value)
