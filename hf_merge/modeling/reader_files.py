"""The files of a tokenizer or processor, looked at before transformers reads them: how large, what they ask."""

import json
from pathlib import Path
from typing import Any

from hf_merge.errors import CheckpointDamaged, LimitExceeded, UntrustedContentError


MAX_TOKENIZER_BYTES = 64 << 20


def check_folder(folder: Path, kind: str, files: tuple[str, ...]) -> None:
    """Refuses a folder that is missing, or files in it that are too large, or ask for code or files of their own.

    Args:
        folder: The folder.
        kind: What is read from it, for messages.
        files: Names of the files to look at, where they are there.

    Raises:
        CheckpointDamaged: There is no such folder, or a configuration is no JSON mapping.
        LimitExceeded: A file is larger than 64 MiB.
        UntrustedContentError: A configuration asks for code of its own, or names other files.
    """
    if not folder.is_dir():
        raise CheckpointDamaged(
            f"There is no folder {folder} to load the {kind} from. Give a local checkpoint folder."
        )
    for name in files:
        path = folder / name
        if not path.is_file():
            continue
        if path.stat().st_size > MAX_TOKENIZER_BYTES:
            raise LimitExceeded(
                f"{path} holds {path.stat().st_size} bytes, more than the {MAX_TOKENIZER_BYTES} allowed."
            )
        if name.endswith("_config.json"):
            _refuse_code(path, kind)


def _refuse_code(path: Path, kind: str) -> None:
    """Refuses a configuration file that is no JSON mapping or names code to run."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError) as error:
        raise CheckpointDamaged(f"{path} is no readable JSON: {one_line(error)} Fetch the file anew.") from error
    if not isinstance(content, dict):
        raise CheckpointDamaged(
            f"{path} holds {type(content).__name__} where a mapping is needed. Fetch the file anew."
        )
    if any(isinstance(part, dict) and part.get("auto_map") for part in (content, *content.values())):
        raise UntrustedContentError(
            f"{path} asks to run code that comes with the checkpoint (auto_map), and hf-merge never does. "
            f"Save the {kind} with a class of transformers and remove 'auto_map'."
        )
    _refuse_paths(path, content)


def _refuse_paths(path: Path, content: dict[str, Any]) -> None:
    """Refuses a configuration that sends transformers to other files than those that it looks for by itself."""
    named = content.get("fast_tokenizer_files", [])
    if named not in ([], ["tokenizer.json"]):
        raise UntrustedContentError(
            f"{path} names the files {named!r:.80} (fast_tokenizer_files), which might lie anywhere; hf-merge reads "
            "tokenizer.json alone. Save the tokenizer anew with save_pretrained()."
        )


def one_line(error: BaseException | None) -> str:
    """Returns an error's text on one line, at most 200 characters, ending in a full stop."""
    text = " ".join(str(error).split())[:200].rstrip(".")
    return f"{text}."
