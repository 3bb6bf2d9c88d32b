"""Files that are there whole or not at all, and JSON that is always JSON."""

import contextlib
import json
import math
import os
import re
import secrets
from pathlib import Path

from safetensors import SafetensorError


@contextlib.contextmanager
def whole_file(path):
    """Give a path to write to, which becomes `path` at the end of the block, and vanishes if that fails.

    A disk that is full, or a program that is stopped, leaves the file that was there before as it was.

    Raises:
        ValueError: `path` is no name of a file, or something other than a file has it.
        OSError: the file could not be written; the message names it.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with whole_file(folder / "note.txt") as partial:
        ...     _ = partial.write_text("written")
        >>> [file.name for file in folder.iterdir()]
        ['note.txt']
    """
    path = Path(path)
    if "\0" in str(path):
        raise ValueError(f"{str(path)!r} is no name of a file: it holds a NUL character")
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"{path} is not a file; expected the name of a file to write")
    # Beside a file, not beside a link to it; and with a name of its own, which is never longer than a system takes.
    path = Path(os.path.realpath(path))
    partial = path.with_name(f".{secrets.token_hex(8)}.partial{path.suffix[:8]}")
    try:
        yield partial
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        raise not_written(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def not_written(path, error):
    """Return an OSError in one line that says what could not be written, and why."""
    # safetensors wraps the system's error into words of its own, the path of its working file among them.
    number = re.search(r"\(os error (\d+)\)", str(error))
    reason = os.strerror(int(number[1])) if number else getattr(error, "strerror", None) or " ".join(str(error).split())
    return OSError(f"{_short(path)} could not be written: {reason}")


def to_json(value, indent=None, sort_keys=False):
    """Return `value` as a JSON text.

    JSON has no NaN and no infinity, and most readers refuse them: they become null. Tensors and arrays become lists;
    what JSON has no form for becomes its text.

    Example:
        >>> to_json({"score": [0.5, float("nan")]})
        '{"score": [0.5, null]}'
    """
    return json.dumps(_plain(value), indent=indent, sort_keys=sort_keys, allow_nan=False)


def _plain(value):
    """Return `value` in the types that JSON has."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return _plain(value.tolist()) if hasattr(value, "tolist") else str(value)


def _short(path, longest=120):
    """Return a path as a message can hold it."""
    text = str(path)
    return text if len(text) <= longest else f"{text[: longest // 2]}..{text[-longest // 2 :]}"
