"""Take the pictures of docs/first-search.md anew: cd tests/support; python -m comfy_server.screenshots

They show templates in a real browser: the first one before, while and after it runs on the embedded model; that of a
checkpoint as it opens where its files are in place (empty ones here: it is not run).
"""

import json
import tempfile
from pathlib import Path

from comfy_server import ComfyServer, find_comfyui
from comfy_server.browser import READY, front_end
from comfy_server.make_template import TEMPLATES, source
from comfy_server.make_tiny_rewards import write_missing

PICTURES = Path(__file__).parents[3] / "docs" / "first-search"
QUICKSTART, CHECKPOINT = "01 Quickstart", "02 Checkpoint - SD 1.5 and HPS"
PLAIN = {"Comfy.Minimap.Visible": False, "Comfy.Graph.CanvasInfo": False, "Comfy.NodeBadge.NodeSourceBadgeMode": "None"}
"""Settings that leave away what is of no template."""
SHOWN = """() => (app.rootGraph ?? app.graph)._nodes
    .filter((node) => ["PreviewImage", "SaveImage"].includes(node.type))
    .every((node) => node.imgs?.length && node.imgs.every((picture) => picture.complete))"""
MIDDLE = "document.body.innerText.includes('iteration 5 of')"
NO_BANNER = "localStorage.setItem('vueNodesBannerDismissed', 'true')"
"""Front end 1.32.9 offers its other style of nodes on every page until that is refused."""
BOX = """(types) => {
    const nodes = (app.rootGraph ?? app.graph)._nodes.filter((node) => types.includes(node.type))
    const boxes = nodes.map((node) => node.boundingRect)
    const [left, top] = [0, 1].map((side) => Math.min(...boxes.map((box) => box[side])))
    const [right, low] = [0, 1].map((side) => Math.max(...boxes.map((box) => box[side] + box[side + 2])))
    return [left, top, right - left, low - top]
}"""
X, Y, EDGE = 300, 110, 20
"""Where on the page, beside its menus, nodes are put to be taken, and the room around them."""
SHOW = """async ([left, top, scale]) => {
    app.canvas.ds.scale = scale
    app.canvas.ds.offset = [left / scale, top / scale]
    app.canvas.setDirty(true, true)
    await new Promise((resolve) => setTimeout(resolve, 1000))
}"""


def opened(page, name):
    """Open a template and let the page settle."""
    template = json.loads((TEMPLATES / f"{name}.json").read_text())
    page.evaluate("async (template) => { await app.loadGraphData(template) }", template)
    page.wait_for_timeout(1500)


def take(page, name, **clip):
    """Save what the page shows, or a part of it."""
    page.screenshot(path=PICTURES / f"{name}.jpg", type="jpeg", quality=80, **clip)


def take_nodes(page, name, types, scale=1.0):
    """Save the part of the page that nodes of some types lie in."""
    left, top, width, height = page.evaluate(BOX, types)
    page.evaluate(SHOW, [X + (EDGE - left) * scale, Y + (EDGE - top) * scale, scale])
    take(page, name, clip={"x": X, "y": Y, "width": (width + 2 * EDGE) * scale, "height": (height + 2 * EDGE) * scale})


def main():
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "models"
        write_missing(models / "reward_models")
        for file in [file for files in source(CHECKPOINT)["models"].values() for file in files]:
            (models / file["directory"]).mkdir(parents=True, exist_ok=True)
            (models / file["directory"] / file["name"]).touch()
        server = ComfyServer(find_comfyui(), Path(folder))
        server.post("/settings", PLAIN)
        try:
            with front_end(server) as page:
                page.evaluate(NO_BANNER)
                page.reload()
                page.wait_for_function(READY)
                opened(page, CHECKPOINT)
                take(page, "checkpoint")
                opened(page, QUICKSTART)
                take(page, "quickstart")
                page.evaluate("app.queuePrompt(0)")
                page.wait_for_function(MIDDLE, timeout=600_000)
                take_nodes(page, "running", ["DNOSampler"], 0.8)
                page.wait_for_function("document.body.innerText.includes('8 iterations done')", timeout=900_000)
                page.wait_for_function(SHOWN, timeout=60_000)
                page.wait_for_timeout(1000)
                take_nodes(page, "result", ["SaveImage", "PreviewImage", "DNOReport"])
        finally:
            server.stop()


if __name__ == "__main__":
    main()
