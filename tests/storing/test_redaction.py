import io
import logging

import pytest

from hf_merge.storing.redaction import redact, redacted_log


REAL = "hf_" + "AbCdEfGhIj0123456789AbCdEfGhIjKlMn"


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        (f"token {REAL} refused", "token *** refused"),
        ("api_org_AbCdEfGhIj0123456789AbCdEfGh", "***"),
        ("hf_jwt_eyJhbGciOiJFZERTQSJ9.e30.a-b_c is spent", "*** is spent"),
        ("{'authorization': 'Bearer short'}", "{'authorization': 'Bearer ***'}"),
        ("https://cdn.example/x?sig=1&Expires=2 failed", "https://cdn.example/x?*** failed"),
        ("'/cdn/x?sig=1': 503", "'/cdn/x?***': 503"),
        ("http://me:pass@hub.example/a", "http://***@hub.example/a"),
        ("hf_merge.storing.checkpoints failed. Why? See hf_merge_notes", None),
        ("https://hub.example/org/model and me@example.org", None),
        ("Did you mean 'sst2'? Known: sst2=1, trec", None),
    ],
)
def test_secrets_go_and_the_rest_stays(text: str, redacted: str | None) -> None:
    assert redact(text) == (text if redacted is None else redacted)


def test_known_tokens_go_whatever_they_look_like(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "sesame")
    assert redact("sesame and poppy and True", "poppy") == "*** and *** and True"
    assert redact("True", True) == redact("True", "") == "True"


def test_a_library_s_log_is_redacted_within_the_block_only() -> None:
    library, below = logging.getLogger("a_library"), logging.getLogger("a_library.below")
    said = logging.StreamHandler(io.StringIO())
    library.addHandler(said)
    try:
        with redacted_log("a_library", "poppy"):
            below.warning("%s at https://hub.example/?sig=%d", "poppy", 1)
        below.warning("poppy")
    finally:
        library.removeHandler(said)
    assert said.stream.getvalue().splitlines() == ["*** at https://hub.example/?***", "poppy"]
