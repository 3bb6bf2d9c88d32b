"""Workflows around rewards, on pictures of known scores."""

from PIL import Image
from workflows import Workflow

GREYS = (102, 204, 51)
BRIGHTNESS = [2 * grey / 255 - 1 for grey in GREYS]


class Scoring(Workflow):
    """A graph with the nodes around rewards, and pictures read from files of the server's input folder."""

    def __init__(self, server):
        super().__init__()
        self.server = server

    def picture(self, name, color, right=None):
        """Load a 16 x 16 picture; with `right`, that is its right half's colour and the mask is 1 there. Its node."""
        picture = Image.new("RGBA", (16, 16), (*color, 255))
        if right is not None:
            picture.paste((*right, 0), (8, 0, 16, 16))
        folder = self.server.folder / "input"
        folder.mkdir(exist_ok=True)
        picture.save(folder / f"{name}.png")
        return self.node("LoadImage", image=f"{name}.png")

    def greys(self):
        first, *others = (self.picture(f"grey{grey}", (grey,) * 3)[0] for grey in GREYS)
        for other in others:
            first = self.node("ImageBatch", image1=first, image2=other)[0]
        return first

    def combine(self, *parts, mode="raw", calibrate_on=0, priors="", weights=(), watch_only=()):
        inputs = {f"reward_{n}": part for n, part in enumerate(parts, 1)}
        for n in (1, 2, 3, 4):
            inputs[f"weight_{n}"] = dict(enumerate(weights, 1)).get(n, 1.0)
            inputs[f"watch_only_{n}"] = n in watch_only
        return self.node("DNOCombineRewards", **inputs, mode=mode, calibrate_on=calibrate_on, priors=priors)[0]

    def contrast(self):
        return self.node("DNOContrastReward", negative=False)[0]

    def saturation(self):
        return self.node("DNOSaturationReward", negative=False)[0]

    def scored(self, images, reward):
        """Run; return the scores and the text of DNO Score Images, and the ranking's pixels."""
        node = self.node("DNOScoreImages", images=images, reward=reward)
        shown = self.node("PreviewAny", source=node[1])
        self.keep("ranking", node[2])
        run = self.server.run(self)
        scores = [float(text) for text in run.outputs[shown.id]["text"]]
        return scores, run.outputs[node.id]["text"][0], run.kept["ranking"]["tensor"]

    def shown(self, *outputs):
        """Run and return the values of outputs that are lists of numbers."""
        nodes = [self.node("PreviewAny", source=output) for output in outputs]
        run = self.server.run(self)
        return run, *([float(text) for text in run.outputs[node.id]["text"]] for node in nodes)
