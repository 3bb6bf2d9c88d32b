"""What ComfyUI's registry is told, and that it is told nothing before the tests have passed.

The registry's own specification is docs.comfy.org/registry/specifications; `comfy_config`, which ComfyUI brings, reads
a pack's pyproject.toml by it.
"""

import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml
from comfy_server import find_comfyui
from comfy_server.fetch import FETCHED

ROOT = Path(__file__).parents[1]
KNOWN = {"PublisherId", "DisplayName", "Icon", "Banner", "requires-comfyui", "includes"}
"""Of [tool.comfy]. The registry passes over what it does not know, a misspelled key too."""
HOSTED = "https://raw.githubusercontent.com/comfyui-dno/direct-noise-optimization/main/"
WORKFLOWS = ROOT / ".github" / "workflows"
READ = """
import sys
from comfy_config.config_parser import extract_node_configuration
print(extract_node_configuration(sys.argv[1]).model_dump_json())
"""


@pytest.fixture(scope="module")
def read():
    """What ComfyUI reads of the pack's pyproject.toml."""
    command = [sys.executable, "-c", READ, str(ROOT)]
    done = subprocess.run(command, cwd=find_comfyui(), capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def pyproject():
    """The file itself."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads TOML")
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def workflow(name):
    """Return a workflow of GitHub's; YAML reads its `on` as True."""
    return yaml.safe_load((WORKFLOWS / name).read_text())


def size_of(svg):
    """Return width and height that an SVG file says it has."""
    root = ElementTree.parse(svg).getroot()
    return float(root.get("width")), float(root.get("height"))


def test_comfyui_reads_what_the_pack_says_of_itself(read):
    project, comfy = read["project"], read["tool_comfy"]
    assert comfy["publisher_id"] == "comfyui-dno" and comfy["display_name"] == "Direct Noise Optimization"
    assert project["license"]["file"] == "LICENSE" and project["description"] and project["requires_python"]
    assert project["urls"]["repository"] == "https://github.com/comfyui-dno/direct-noise-optimization"
    # It takes none of them where one is not of the registry's words.
    assert project["supported_os"] == ["OS Independent"]
    assert {"GPU :: NVIDIA CUDA", "GPU :: Apple Metal"} <= set(project["supported_accelerators"])
    # Two names for one folder would make the page load it twice.
    assert comfy["web"] is None


def test_name_version_and_keys_are_those_that_the_registry_takes(pyproject):
    project, comfy = pyproject["project"], pyproject["tool"]["comfy"]
    assert re.fullmatch(r"[a-z]([-_.]?[a-z0-9])*", project["name"], re.IGNORECASE) and len(project["name"]) < 100
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert set(comfy) <= KNOWN and "PublisherId" in comfy
    assert set(project["urls"]) >= {"Repository", "Documentation", "Bug Tracker"}


def test_icon_and_banner_are_files_of_the_pack_of_the_registrys_shapes(pyproject):
    sizes = {}
    for key in ("Icon", "Banner"):
        address = pyproject["tool"]["comfy"][key]
        assert address.startswith(HOSTED)
        sizes[key] = size_of(ROOT / address.removeprefix(HOSTED))
    width, height = sizes["Icon"]
    assert width == height <= 400
    width, height = sizes["Banner"]
    assert width / height == 21 / 9


def test_the_oldest_comfyui_that_is_asked_for_is_the_one_that_is_tested(pyproject):
    least = pyproject["tool"]["comfy"]["requires-comfyui"].removeprefix(">=")
    assert f"ComfyUI-{least}" == FETCHED
    assert f"ComfyUI {least} or later" in (ROOT / "README.md").read_text()


def test_nothing_is_published_before_the_tests_have_passed():
    jobs = workflow("publish.yml")["jobs"]
    publishing = [name for name, job in jobs.items() if any("publish-node-action" in uses for uses in used_by(job))]
    assert publishing == ["publish"] and jobs["publish"]["needs"] == "tests"
    assert jobs["tests"]["uses"] == "./.github/workflows/tests.yml"
    # A job that says when it runs, by always(), would run after tests that have failed.
    assert not re.search(r"always|failure|cancelled|!", jobs["publish"]["if"])
    assert "continue-on-error" not in (WORKFLOWS / "publish.yml").read_text()


def used_by(job):
    """Return the actions that a job's steps use."""
    return [step.get("uses", "") for step in job.get("steps", [])]


@pytest.mark.parametrize("tag", ["version", "other"])
def test_a_tag_of_another_version_is_not_published(pyproject, tag):
    tag = {"version": "v" + pyproject["project"]["version"], "other": "v99.0.0"}[tag]
    _, compare, publish = workflow("publish.yml")["jobs"]["publish"]["steps"]
    done = subprocess.run(
        ["bash", "-e", "-c", compare["run"]], cwd=ROOT, env=os.environ | {"GITHUB_REF_NAME": tag}, capture_output=True
    )
    assert "uses" in publish and bool(done.returncode) == (tag == "v99.0.0")
    assert done.returncode == 0 or b"the tag is v99.0.0, but pyproject.toml has version" in done.stdout


def test_the_tests_are_those_of_the_readme_on_the_oldest_python_and_a_later_one(pyproject):
    tests = workflow("tests.yml")
    job = tests["jobs"]["tests"]
    commands = "\n".join(step.get("run", "") for step in job["steps"])
    (command,) = re.findall(r'^(pip install -e "\.\[test\]" && pytest)', (ROOT / "README.md").read_text(), re.MULTILINE)
    assert command in commands and "chromium" in commands and "continue-on-error" not in str(job)
    assert f">={job['strategy']['matrix']['python-version'][0]}" == pyproject["project"]["requires-python"]
    assert {"workflow_call", "pull_request"} <= set(tests[True])


def test_workflows_name_secrets_and_hold_none():
    """A key of the registry is a long word without spaces; those of 40 hexadecimal digits are commits of actions."""
    for file in WORKFLOWS.iterdir():
        words = re.findall(r"[A-Za-z0-9_]{32,}", file.read_text())
        assert not [word for word in words if not re.fullmatch(r"[0-9a-f]{40}", word)], file.name
    (step,) = [step for step in workflow("publish.yml")["jobs"]["publish"]["steps"] if "with" in step]
    assert step["with"]["personal_access_token"] == "${{ secrets.REGISTRY_ACCESS_TOKEN }}"
