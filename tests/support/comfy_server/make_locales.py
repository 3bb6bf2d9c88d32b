"""Write locales/en/nodeDefs.json anew from the nodes' schemas.

    cd tests/support; python -m comfy_server.make_locales

ComfyUI hands the files in locales/ to its front end, which shows the texts of the language that a person has chosen,
and a schema's own where there is none. The English file says what the schemas say: it is what translators start from,
and `tests/nodes/test_locales.py` compares every other language with it.
"""

import json
import tempfile
from pathlib import Path

from comfy_server import ComfyServer, find_comfyui

LOCALES = Path(__file__).parents[3] / "locales"


def english(nodes):
    """Return the front end's nodeDefs.json of {id: /object_info of that node}."""
    return {name: _texts(info) for name, info in sorted(nodes.items())}


def _texts(info):
    inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
    outputs = zip(info["output_name"], info["output_tooltips"], strict=True)
    return {
        "display_name": info["display_name"],
        "description": info["description"],
        "inputs": {name: {"name": name, "tooltip": options["tooltip"]} for name, (_, options) in inputs.items()},
        "outputs": {str(i): {"name": name, "tooltip": tooltip} for i, (name, tooltip) in enumerate(outputs)},
    }


def ours(server):
    """Return /object_info of the pack's nodes, without those of the tests."""
    everything = server.get("/object_info")
    return {name: info for name, info in everything.items() if name.startswith("DNO") and "Test" not in name}


def write(locale, file, texts):
    """Write one file of a language, as people edit it: indented, and its letters as they are."""
    path = LOCALES / locale / file
    path.write_text(json.dumps(texts, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def main():
    with tempfile.TemporaryDirectory() as folder:
        server = ComfyServer(find_comfyui(), Path(folder))
        try:
            write("en", "nodeDefs.json", english(ours(server)))
        finally:
            server.stop()


if __name__ == "__main__":
    main()
