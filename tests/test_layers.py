"""Imports point down only, and nothing heavy is imported before it is needed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMFY = {"comfy", "comfy_api", "comfy_extras", "nodes", "server", "folder_paths", "execution", "latent_preview"}
LAYERS = {
    "core": {"core"},
    "rewards": {"core", "rewards"},
    "experiments": {"core", "rewards", "experiments"},
    "nodes": {"core", "rewards", "nodes"},
    "cli": {"core", "rewards", "experiments", "cli"},
}


def imports(path):
    """Yield (top-level name, room of this pack or None) of every import in a file, nested ones included."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0], None
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            target = base + tuple((node.module or "").split("."))
            yield None, next(part for part in target if part) if any(target) else node.names[0].name


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_point_down_only(layer):
    for path in (ROOT / layer).rglob("*.py"):
        for name, room in imports(path):
            assert room is None or room in LAYERS[layer], f"{path} imports {room}"
            assert layer == "nodes" or name not in COMFY, f"{path} imports {name}"
            assert name != "comfyui_dno" or "training" in path.parts, f"{path}: use relative imports inside the pack"


@pytest.mark.parametrize("layer", LAYERS)
def test_modules_of_packages_are_imported_for_a_use(layer):
    """What ruff does not see: `import comfy.utils` binds the name comfy, which `comfy.samplers` uses as well."""
    for path in (ROOT / layer).rglob("*.py"):
        tree = ast.parse(path.read_text())
        aliases = [alias for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        imported = {alias.name for alias in aliases if "." in alias.name and alias.asname is None}
        used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert imported <= used, f"{path} does not use {imported - used}"


def test_importing_the_core_loads_no_model_library(tmp_path):
    heavy = ("diffusers", "transformers", "matplotlib", "open_clip", "comfy")
    code = f"import sys, comfyui_dno.core, comfyui_dno.rewards; print([n for n in {heavy} if n in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path)
    assert found.stdout.strip() == "[]"


def test_what_no_node_uses_is_not_imported_and_takes_no_memory(tmp_path):
    """Beside PyTorch and Python's own, rewards import Pillow and safetensors: no network's library."""
    code = """if True:
        import sys, torch
        before = set(sys.modules)
        import comfyui_dno.core, comfyui_dno.rewards
        print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)))
    """
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path)
    private = {name for name in found.stdout.split() if name.startswith("_")}  # of Python's own, or of these packages
    assert set(found.stdout.split()) - private <= {"comfyui_dno", "torch", "PIL", "safetensors", "numpy"}


def test_requirements_agree_with_pyproject():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads TOML")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (ROOT / "requirements.txt").read_text().split() == project["dependencies"]
