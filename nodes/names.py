"""Names of files in workflows, which may come from another system than this one."""

LONGEST = 200
"""Bytes of one part of a name: systems take 255, and a number and an ending are added."""


def listed(name, offered):
    """Return the one of the `offered` names that `name` means, or None.

    A workflow that was saved on Windows says sub\\name where others say sub/name.

    Example:
        >>> listed("sub\\\\a.safetensors", ["b.safetensors", "sub/a.safetensors"])
        'sub/a.safetensors'
    """
    if name in offered:
        return name
    return next((each for each in offered if _with_slashes(each) == _with_slashes(name)), None)


def checked_prefix(prefix, default):
    """Return the name, without number and ending, of a file to write in ComfyUI's output folder.

    Args:
        prefix: as the user wrote it; without a name, as in "folder/", it gets the default's.
        default: the name where there is none, such as folder/name.

    Raises:
        ValueError: it leads out of the output folder, or no system takes it.

    Example:
        >>> checked_prefix("", "dno/noise"), checked_prefix("cats\\\\", "dno/noise")
        ('dno/noise', 'cats/noise')
    """
    given, name = repr(prefix[:60]), _with_slashes(prefix).strip()
    if not name.strip("./"):
        name = name if name.startswith("/") or ".." in name else default
    elif name.endswith("/"):
        name += default.rpartition("/")[2]
    parts = name.split("/")
    if name.startswith("/") or name[1:2] == ":" or ".." in parts:
        raise ValueError(f"filename_prefix is {given}; expected a name inside the output folder, such as {default}")
    if not name.isprintable():
        raise ValueError(f"filename_prefix is {given}; expected a name of printable characters, such as {default}")
    longest = max(len(part.encode("utf-8", "replace")) for part in parts)
    if longest > LONGEST:
        raise ValueError(
            f"filename_prefix is {given}.., a name of {longest} bytes; expected at most {LONGEST} between two slashes"
        )
    return name


def _with_slashes(name):
    return name.replace("\\", "/")
