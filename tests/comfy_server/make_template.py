"""Write example_workflows/dno_quickstart.json and .jpg anew from the API-format twin: `python make_template.py`.

The front end turns the twin into its own format, the server runs it, and the picture of the run becomes the template's.
Run it when a node of the template, the embedded model or a setting has changed.
"""

import json
import tempfile
from pathlib import Path

from PIL import Image

from comfy_server import ComfyServer, find_comfyui
from comfy_server.browser import front_end

HERE = Path(__file__).parent
TWIN = HERE / "dno_quickstart_api.json"
TEMPLATE = HERE.parents[1] / "example_workflows" / "dno_quickstart.json"
SAMPLER, TRAJECTORY = "9", "14"
LAYOUT = {  # node id: x, y, width, height
    1: (0, 0, 300, 90), 5: (0, 150, 300, 60), 6: (0, 270, 300, 60), 7: (0, 390, 300, 140), 8: (0, 590, 300, 140),
    2: (340, 0, 300, 110), 3: (340, 170, 300, 110), 4: (340, 340, 300, 110),
    9: (680, 0, 320, 430), 10: (1040, 0, 340, 400), 11: (680, 500, 300, 80), 12: (1040, 460, 560, 260),
    13: (680, 640, 300, 110), 14: (680, 810, 920, 260),
}  # fmt: skip


def to_ui_format(server, twin):
    """Return the twin in the front end's format, laid out and with a fixed seed."""
    with front_end(server) as page:
        graph = page.evaluate("async (twin) => (await app.loadApiJson(twin, 'dno'), app.graph.serialize())", twin)
    for node in graph["nodes"]:
        x, y, *size = LAYOUT[node["id"]]
        node.update(pos=[x, y], size=size)
        node["widgets_values"] = ["fixed" if v == "randomize" else v for v in node.get("widgets_values") or []]
    return without_nones({key: graph[key] for key in graph if key not in ("id", "revision", "extra")})


def without_nones(value):
    """Drop the front end's many null entries, but for links, where null says "not connected"."""
    if isinstance(value, dict):
        return {k: without_nones(v) for k, v in value.items() if v is not None or k == "link"}
    return [without_nones(item) for item in value] if isinstance(value, list) else value


def picture_of(server, run):
    (file,) = run.outputs[TRAJECTORY]["images"]
    return Image.open(server.folder / "temp" / file["subfolder"] / file["filename"]).convert("RGB")


def main():
    twin = json.loads(TWIN.read_text())
    with tempfile.TemporaryDirectory() as folder:
        server = ComfyServer(find_comfyui(), Path(folder))
        try:
            TEMPLATE.write_text(json.dumps(to_ui_format(server, twin), indent=1) + "\n")
            picture_of(server, server.run(twin, timeout=1800)).save(TEMPLATE.with_suffix(".jpg"), quality=90)
        finally:
            server.stop()


if __name__ == "__main__":
    main()
