"""Measure families inside ComfyUI: python -m families NAME.., with ComfyUI's folder as the working directory.

Prints a JSON line for each family as soon as it is measured; one that tells of this version for the name `VERSION`.
`tests/benchmarks/model_families.py` runs this and writes the table.
"""

import json
import logging
import sys
import time
import traceback

names, sys.argv = sys.argv[1:], [sys.argv[0], "--cpu"]
sys.path.insert(0, ".")

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.model_management  # noqa: E402
import comfy.supported_models  # noqa: E402
import comfyui_version  # noqa: E402
import torch  # noqa: E402

from . import FAMILIES, VERSION, measures  # noqa: E402


def tell(line):
    sys.stdout.write("\n" + json.dumps(line) + "\n")
    sys.stdout.flush()


def version():
    """Return what this ComfyUI is, its classes of models, and the families that are made of them."""
    classes = [model.__name__ for model in comfy.supported_models.models]
    known = [family.name for family in FAMILIES if family.model in classes]
    return {"comfyui": comfyui_version.__version__, "torch": torch.__version__, "classes": classes, "families": known}


def main():
    logging.getLogger().setLevel(logging.ERROR)
    for name in names:
        if name == VERSION:
            tell(version())
            continue
        (family,) = [family for family in FAMILIES if family.name == name]
        started = time.perf_counter()
        try:
            with torch.inference_mode():  # as ComfyUI's executor runs nodes
                row = measures.measure(family)
        except Exception:
            row = {"failed": {"twin": traceback.format_exc()[-1500:]}}
        tell({"family": name, "seconds": round(time.perf_counter() - started, 1), **row})
        comfy.model_management.unload_all_models()


main()
