"""Programs of the tests that run ComfyUI in a process of their own, without a server."""

import json
import os
import subprocess
import sys
from pathlib import Path

from .fetch import find_comfyui

SUPPORT = Path(__file__).parents[1]


def report_of(name):
    """Run a program of tests/support in ComfyUI's folder; return what it prints on its last line, as JSON."""
    # The pack as this process has it: installed, or by a path.
    paths = filter(None, [str(SUPPORT), os.environ.get("PYTHONPATH")])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, str(SUPPORT / name), "--cpu"]
    done = subprocess.run(command, cwd=find_comfyui(), capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])
