"""ARCHITECTURE.md is true: it lists every room and module, and what it names exists where it says."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "ARCHITECTURE.md").read_text()
SOURCE = ("core", "rewards", "nodes", "cli", "experiments")
QUOTED = re.findall(r"`([^`\n]+)`", re.sub(r"^    .*$", "", PAGE, flags=re.MULTILINE))
SUFFIXES = (".py", ".md", ".json", ".toml")
PARAMETERS = {"x", "sigma", "d_images", "dno"}
"""What is quoted and no name of the code's: tensors, and the command."""


def python_files(room):
    return sorted(path for path in (ROOT / room).rglob("*.py") if "__pycache__" not in path.parts)


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def defined(path):
    """Return the names that a file defines, at the top as `name` and inside of a class as `Class.name`."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef):
                    found.add(f"{node.name}.{inner.name}")
                elif isinstance(inner, ast.AnnAssign):
                    found.add(f"{node.name}.{inner.target.id}")
    return found


def known_names():
    """Return what may be quoted: everything that the source defines, methods and fields also without their class."""
    names = set().union(*(defined(path) for room in SOURCE for path in python_files(room)))
    return names | {name.partition(".")[2] for name in names} | set(SOURCE)


@pytest.mark.parametrize("room", SOURCE)
def test_every_module_is_listed(room):
    modules = {name_of(path) for path in python_files(room) if path.name != "__init__.py"}
    assert modules <= set(QUOTED), f"not in ARCHITECTURE.md: {sorted(modules - set(QUOTED))}"


def test_every_room_is_listed():
    rooms = {name_of(path.parent) + "/" for room in (*SOURCE, "tests") for path in python_files(room)}
    assert rooms <= set(QUOTED), f"not in ARCHITECTURE.md: {sorted(rooms - set(QUOTED))}"


def test_every_file_and_folder_that_is_named_exists():
    named = [word for word in QUOTED if word.endswith(("/", *SUFFIXES)) and " " not in word]
    missing = [word for word in named if not (ROOT / word).exists()]
    assert named and missing in ([], ["nodes.py"]), "only ComfyUI's own nodes.py is no file of the pack"


def test_every_name_is_one_of_the_code():
    words = [word for word in QUOTED if re.fullmatch(r"[A-Za-z_][\w.]*", word) and not word.endswith(SUFFIXES)]
    names, elsewhere = known_names(), ("comfy.", "sys.")
    unknown = {word for word in words if word not in names | PARAMETERS and not word.startswith(elsewhere)}
    assert len(words) > 50 and unknown == set()


def test_each_stop_of_the_tensors_way_is_in_the_file_that_is_named():
    stops = re.findall(r"^\| `(\S+\.py)` \| (`[^|]+`) \| ", PAGE, flags=re.MULTILINE)
    assert len(stops) > 20
    for file, functions in stops:
        for function in re.findall(r"`([^`]+)`", functions):
            assert function in defined(ROOT / file), f"{file} has no {function}"


def test_each_module_of_a_list_defines_what_it_is_said_to_hold():
    rows = re.findall(r"^\| `(\S+\.py)` \| ([^|`]*`[A-Za-z_]\w*`:?[^|]*) \|$", PAGE, flags=re.MULTILINE)
    assert len(rows) > 15
    for file, text in rows:
        for name in re.findall(r"(?:^|; )`(\w+)`[:,]", text):
            assert name in defined(ROOT / file), f"{file} has no {name}"


def test_the_nodes_own_account_of_the_tensors_way_has_the_pages_stops():
    account = ast.get_docstring(ast.parse((ROOT / "nodes" / "comfy_map.py").read_text()))
    stops = re.findall(r"^ {4,6}([A-Za-z_]\w*(?:\.\w+)?) {2,}", account, flags=re.MULTILINE)
    assert len(stops) >= 10
    of_core = {"core.optimize": "optimize"}
    assert not [stop for stop in stops if of_core.get(stop, stop) not in QUOTED]
