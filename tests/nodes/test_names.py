"""Names of files in workflows: what they mean on another system, and which are refused."""

import doctest
import importlib.util

import pytest
from comfy_server.server import PACK

# By its path: its package imports ComfyUI.
SPEC = importlib.util.spec_from_file_location("names", PACK / "nodes" / "names.py")
names = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(names)


def test_the_examples_are_true():
    found = doctest.testmod(names)
    assert found.attempted == 2 and found.failed == 0


@pytest.mark.parametrize("name, meant", [
    ("a.pt", "a.pt"),
    ("sub/b.pt", "sub/b.pt"),
    ("sub\\b.pt", "sub/b.pt"),
    ("win/c.pt", "win\\c.pt"),
    ("odd\\name.pt", "odd\\name.pt"),
    ("b.pt", None),
    ("../a.pt", None),
    ("", None),
])
def test_a_name_means_the_one_that_is_offered_with_either_slash(name, meant):
    assert names.listed(name, ["odd/name.pt", "a.pt", "sub/b.pt", "win\\c.pt", "odd\\name.pt"]) == meant


@pytest.mark.parametrize("prefix, expected", [
    ("dno/cat", "dno/cat"), ("dno\\cat", "dno/cat"), ("cat", "cat"), (".cat", ".cat"), ("%date%", "%date%"),
    ("", "dno/noise"), ("  ", "dno/noise"), (".", "dno/noise"), ("./", "dno/noise"), ("cats/", "cats/noise"),
    ("x" * 200, "x" * 200),
])
def test_a_prefix_without_a_name_gets_the_default(prefix, expected):
    assert names.checked_prefix(prefix, "dno/noise") == expected


@pytest.mark.parametrize("prefix, words", [
    ("../cat", "inside the output folder"), ("a/../../cat", "inside the output folder"), ("..", "inside"),
    ("..\\cat", "inside the output folder"), ("/elsewhere/cat", "inside the output folder"), ("/", "inside"),
    ("C:\\cat", "inside the output folder"), ("a\0b", "printable"), ("a\nb", "printable"),
    ("x" * 300, "300 bytes; expected at most 200"), ("\u00e9" * 101 + "/a", "202 bytes; expected at most 200"),
])
def test_a_prefix_that_leads_elsewhere_or_is_no_name_is_refused_in_one_line(prefix, words):
    with pytest.raises(ValueError, match=words) as caught:
        names.checked_prefix(prefix, "dno/noise")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250
