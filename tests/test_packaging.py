"""What people install: a wheel with weights and data inside, and a ComfyUI folder that loads lazily."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import comfyui_dno
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel of the tracked files, unpacked into a folder of its own."""
    scratch = tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, tracked.split("\0")):
        if (ROOT / name).is_file():
            (scratch / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, scratch / "tree" / name)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(scratch)]
    subprocess.run([*build, str(scratch / "tree")], check=True, capture_output=True)
    (wheel,) = scratch.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(scratch / "site")]
    subprocess.run([*pip, str(wheel)], check=True)
    return scratch / "site"


def test_the_wheel_holds_the_pack_and_nothing_else(installed):
    top = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info") and path.name != "bin"}
    assert top == {"comfyui_dno"}
    pack = installed / "comfyui_dno"
    names = {path.relative_to(pack).as_posix() for path in pack.rglob("*")}
    assert "core/models/embedded/model.safetensors" in names
    assert {"nodes/__init__.py", "nodes/rewards/__init__.py", "example_workflows/01 Quickstart.json"} <= names
    assert {"locales/zh/nodeDefs.json", "locales/en/main.json", "web/stop.js", "web/docs/DNOSampler.md"} <= names
    assert {"requirements.txt", "rewards/hpsv3_instruction.txt", "rewards/lpips.safetensors"} <= names
    assert not [name for name in names if name.startswith(("tests", "core/models/embedded/training"))]


def test_the_installed_command_samples_the_embedded_model(installed, tmp_path):
    """Run outside the checkout, with the wheel before it on the path."""
    command = [sys.executable, str(installed / "bin" / "dno"), *"run --iterations 0 --steps 2 --out out".split()]
    environment = os.environ | {"PYTHONPATH": str(installed)}
    subprocess.run([*command, "--prompt", "black cat"], check=True, cwd=tmp_path, env=environment, capture_output=True)
    assert (tmp_path / "out" / "after.png").is_file()


def test_the_embedded_model_is_at_most_16_megabytes():
    assert (ROOT / "core/models/embedded/model.safetensors").stat().st_size <= 16e6


def test_importing_the_root_imports_nothing_and_names_no_node_mappings(tmp_path):
    code = (
        "import sys, comfyui_dno; print(sorted(name for name in sys.modules if name.startswith('comfyui_dno')),"
        "hasattr(comfyui_dno, 'NODE_CLASS_MAPPINGS'), 'torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path)
    assert found.stdout.strip() == "['comfyui_dno'] False False"


def test_no_top_level_nodes_module_is_exposed(tmp_path):
    """Ours would shadow ComfyUI's own nodes.py."""
    code = "import importlib.util; print(importlib.util.find_spec('nodes'))"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path)
    assert found.stdout.strip() == "None"


@pytest.mark.parametrize(
    "version, told",
    [("0.3.40", "found 0.3.40"), ("0.3.74", "found 0.3.74"), ("0.3.75", None), ("0.33.0", None), ("1.0", None),
     (None, "found one that does not tell its version")],
)
def test_an_older_comfyui_is_told_which_is_needed(monkeypatch, caplog, version, told):
    monkeypatch.setitem(sys.modules, "folder_paths", ModuleType("folder_paths"))
    monkeypatch.setitem(sys.modules, "comfyui_version", ModuleType("comfyui_version"))
    if version:
        sys.modules["comfyui_version"].__version__ = version
    # As ComfyUI loads custom nodes; an old one has no comfy_api, as here.
    spec = importlib.util.spec_from_file_location("pack", ROOT / "__init__.py")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert [told in text and "needs ComfyUI 0.3.75 or later" in text for text in caplog.messages] == [True] * bool(told)


def test_the_comfyui_that_is_needed_is_the_one_that_the_registry_is_told():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads TOML")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["comfy"]["requires-comfyui"] == f">={comfyui_dno.COMFYUI}"
