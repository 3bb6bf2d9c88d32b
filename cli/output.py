"""What the commands write: whole folders of files, and lines to consoles of every kind."""

import contextlib
import os
import secrets
import shutil
import sys

from safetensors import SafetensorError

from ..core.files import not_written

PROBE = 2**16
"""Bytes that are written to see whether a folder can be written to; a full disk may still take an empty file."""


def check_writable(folder):
    """Make `folder`, and raise OSError where no file can be written to it: before a search, not after it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{secrets.token_hex(8)}.partial"
        try:
            probe.write_bytes(bytes(PROBE))
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"--out {folder} cannot be written to ({reason}); expected a folder to write to") from error


@contextlib.contextmanager
def whole(folder):
    """Give a folder to write to, which becomes `folder` at the end of the block, and vanishes if that fails."""
    with _partial(folder, beside=folder) as partial:
        yield partial
        os.replace(partial, folder)


@contextlib.contextmanager
def together(folder, replaces=None):
    """Give a folder to write files to, which move into `folder` at the end of the block, or vanish if that fails.

    So a disk that is full leaves the files of an earlier search as they were, all of them.

    Args:
        replaces: pattern of the names that an earlier search may have left: such files do not stay beside the new ones.
    """
    with _partial(folder, beside=folder / "files") as partial:
        yield partial
        written = sorted(file.name for file in partial.iterdir())
        for name in written:
            os.replace(partial / name, folder / name)
        for file in list(folder.iterdir()) if replaces else ():
            if replaces.fullmatch(file.name) and file.name not in written:
                file.unlink()


@contextlib.contextmanager
def _partial(folder, beside):
    """Give a new folder beside a path; it is gone at the end, and an OSError speaks of `folder`."""
    partial = beside.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        partial.mkdir()
        yield partial
    except (OSError, SafetensorError) as error:
        # What wrote a file has named it, but the user knows nothing of this folder.
        raise not_written(folder, error.__cause__ or error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_leftovers(out):
    """Remove the files and folders that a killed process had begun to write."""
    for partial in out.glob(".*.partial*"):
        if partial.is_dir():
            shutil.rmtree(partial)
        else:
            partial.unlink(missing_ok=True)


def say(text):
    """Write a line of the command's own output; see `_write`."""
    _write(sys.stdout, text)


def ended(result):
    """Return the exit status after a search whose result is saved: 1, and why, where something failed in its middle."""
    if result.failure is None:
        return 0
    complain(f"dno: the search ended early and what it had found is saved: {result.failure}")
    return 1


def complain(text):
    """Write a line about what went wrong; see `_write`."""
    _write(sys.stderr, text)


def _write(stream, text):
    """Write a line to a console; what its encoding lacks is escaped.

    A console that is closed or full is no reason to fail: the files of a search are written by then.
    """
    if stream is None:
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        stream.flush()
    except (OSError, ValueError):  # ValueError: the stream was closed
        # Python flushes once more at its end, and would fail there.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
