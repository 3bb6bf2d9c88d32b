"""Files that are whole or not there, and JSON that every reader takes."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from comfyui_dno.core.files import to_json, whole_file


def test_a_file_that_breaks_off_leaves_what_was_there(tmp_path):
    path = tmp_path / "note.txt"
    path.write_text("before")
    for error in (OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("other")):
        with pytest.raises(OSError if isinstance(error, OSError) else type(error)), whole_file(path) as partial:
            partial.write_text("half")
            raise error
        assert path.read_text() == "before" and [file.name for file in tmp_path.iterdir()] == ["note.txt"]
    with whole_file(path) as partial:
        partial.write_text("after")
        assert path.read_text() == "before"
    assert path.read_text() == "after" and [file.name for file in tmp_path.iterdir()] == ["note.txt"]


def test_what_went_wrong_is_said_of_the_file_itself(tmp_path):
    with pytest.raises(OSError, match=r"note.txt could not be written: No space left on device$"):
        with whole_file(tmp_path / "note.txt"):
            raise OSError(28, "No space left on device", "some working file")


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.txt").symlink_to(tmp_path / "folder" / "note.txt")
    with whole_file(tmp_path / "link.txt") as partial:
        partial.write_text("through the link")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "folder" / "note.txt").read_text() == "through the link"


@pytest.mark.parametrize("name", ["", ".", "..", "/", "/dev/null", "a\0b"])
def test_what_is_no_name_of_a_file_is_refused(name):
    with pytest.raises(ValueError, match="is not a file|is no name of a file"), whole_file(name):
        pass


@pytest.mark.parametrize("value, expected", [
    (math.nan, None), (-math.inf, None), (np.float32("nan"), None), (0.1, 0.1), (True, True), (2**70, 2**70),
    ({"a": [math.inf, (1.0, None)]}, {"a": [None, [1.0, None]]}), ({3: "x"}, {"3": "x"}),
    (torch.tensor([1.0, math.nan]), [1.0, None]), (torch.tensor(2), 2), (np.arange(2), [0, 1]), (np.float64(0.5), 0.5),
    (Path("folder"), "folder"), (torch.float32, "torch.float32"), ("caf\u00e9", "caf\u00e9"),
])  # fmt: skip
def test_json_holds_what_it_can_and_null_for_what_is_no_number(value, expected):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    assert json.loads(to_json(value), parse_constant=refuse) == expected
