"""Secrets kept out of messages and logs, in one place."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager


# Two kinds of token are JSON web tokens and hold dots and dashes; the others are letters and digits.
_TOKEN = re.compile(r"\bhf_(?:jwt|oauth)_[\w.~-]+|\b(?:hf|api_org)_[A-Za-z0-9]{16,}|(?<=Bearer )[^\s'\",]+")
_URL_USER = re.compile(r"(?<=://)[^\s/?#@]+@")
_URL_QUERY = re.compile(r"\?[\w.%~-]+=[^\s'\"<>)]*")


def redact(text: str, token: str | bool | None = None) -> str:
    """Returns text fit for messages and logs: no tokens, no users in URLs, no queries, which may sign a URL.

    Args:
        text: Anything that may quote a request.
        token: A token to remove besides HF_TOKEN and whatever looks like one; a bool names none.
    """
    for secret in (token, os.environ.get("HF_TOKEN")):
        if isinstance(secret, str) and secret:
            text = text.replace(secret, "***")
    return _URL_QUERY.sub("?***", _URL_USER.sub("***@", _TOKEN.sub("***", text)))


@contextmanager
def redacted_log(logger: str, token: str | bool | None = None) -> Iterator[None]:
    """Redacts what a library's logger and those below it say within the block.

    Args:
        logger: The name of the logger that has the library's handlers.
        token: As for `redact`.
    """

    def rewrite(record: logging.LogRecord) -> bool:
        record.msg, record.args = redact(record.getMessage(), token), ()
        return True

    # A filter of a logger does not see the records of the loggers below it; one of a handler does.
    handlers = list(logging.getLogger(logger).handlers)
    for handler in handlers:
        handler.addFilter(rewrite)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(rewrite)
