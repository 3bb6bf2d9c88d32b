"""Measure uses inside ComfyUI: python -m uses NAME.., with ComfyUI's folder as the working directory.

Prints a JSON line for each use as soon as it is measured; without names, one that tells of this version and of the
uses. `tests/benchmarks/sampler_uses.py` runs this and writes the page.
"""

import asyncio
import json
import logging
import sys
import time

names, sys.argv = sys.argv[1:], [sys.argv[0], "--cpu"]
sys.path.insert(0, ".")

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.model_management  # noqa: E402
import comfyui_version  # noqa: E402
import torch  # noqa: E402

import nodes as comfyui_nodes  # noqa: E402


def tell(line):
    sys.stdout.write("\n" + json.dumps(line) + "\n")
    sys.stdout.flush()


def main():
    logging.getLogger().setLevel(logging.ERROR)
    asyncio.run(comfyui_nodes.init_builtin_extra_nodes())
    from .catalogue import USES
    from .measures import measured

    if not names:
        versions = {"comfyui": comfyui_version.__version__, "torch": torch.__version__}
        tell({**versions, "uses": [use.name for use in USES]})
    for use in USES:
        if use.name in names:
            started = time.perf_counter()
            with torch.inference_mode():  # as ComfyUI's executor runs nodes
                row = measured(use)
            tell({"use": use.name, "group": use.group, "seconds": round(time.perf_counter() - started, 1), **row})
            comfy.model_management.unload_all_models()


main()
