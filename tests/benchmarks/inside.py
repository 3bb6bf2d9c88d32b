"""What a room of `tests/support` measures in a ComfyUI process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

SUPPORT = Path(__file__).parents[1] / "support"
sys.path.insert(0, str(SUPPORT))

from comfy_server import find_comfyui  # noqa: E402


def inside_comfyui(room, *names):
    """Yield what `python -m ROOM NAMES` tells in ComfyUI's folder, a dict for each line of JSON as it comes."""
    paths = filter(None, [str(SUPPORT), os.environ.get("PYTHONPATH")])  # the pack as this process has it
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", room, *names]
    with subprocess.Popen(
        command, cwd=find_comfyui(), env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        for line in process.stdout:
            if line.startswith("{"):
                yield json.loads(line)
