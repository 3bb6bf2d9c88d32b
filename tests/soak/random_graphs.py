"""Random workflows over the nodes' own schemas, and the same with one thing wrong or extreme.

`Generator.valid` links nodes by the types of their sockets and fills widgets with values that their schema allows,
cheap ones: few steps, few candidates. A valid graph may still end in an error, such as a reward without gradient for a
solver that needs one; that error must be a sentence. `Generator.wrong` changes one input of such a graph to what it
should not be.
"""

import random
from dataclasses import dataclass, field

from comfy_server import Graph

STOCK = (
    "CLIPTextEncode", "EmptyLatentImage", "EmptyImage", "BasicScheduler", "CFGGuider", "BasicGuider", "RandomNoise",
    "DisableNoise", "SolidMask", "VAEDecode", "VAEEncode", "SamplerCustomAdvanced", "KSamplerSelect", "SplitSigmas",
    "SetLatentNoiseMask",
)  # fmt: skip
ENDS = (
    "PreviewImage", "DNOScoreImages", "DNOPickBest", "DNOReport", "DNOTrajectory", "DNODiagnostics", "DNOSaveNoise",
    "DNONoiseProbability",
)  # fmt: skip
"""Nodes that a graph is grown from, backwards."""
FITS = {
    "DNOHPSReward": "HPS_v2.1_compressed.pt", "DNOPickScoreReward": "PickScore_v1.safetensors",
    "DNOImageReward": "ImageReward.pt", "DNOCycleReward": "CycleReward-Combo.safetensors",
    "DNOCLIPScoreReward": "CLIP-ViT-H-14.safetensors", "DNODirectionReward": "CLIP-ViT-H-14.safetensors",
    "DNOImageSimilarityReward": "CLIP-ViT-H-14.safetensors", "DNOONNXReward": "scorer.onnx",
    "DNODINOv2SimilarityReward": "dinov2-base.safetensors", "DNOAestheticV25Reward": "aesthetic_predictor_v2_5.pth",
    "DNOMPSReward": "MPS.safetensors", "DNOTextReward": "ch_PP-OCRv4_rec_infer.onnx",
    "DNOLPIPSReward": "squeezenet1_1-b8a52dc0.pth",
    "DNOFaceReward": "20180402-114759-vggface2.pt",
}  # fmt: skip
"""The file that a reward's node wants as a rule; now and then it gets another."""
MOST = {
    "steps": 3, "iterations": 2, "candidates": 3, "samples": 2, "q": 2, "perturbations": 2, "permutations": 5,
    "crops": 2, "batch_size": 2, "calibrate_on": 2, "seconds": 2.0, "part_count": 1, "columns": 3,
    "picture": 1, "index": 1, "count": 2, "number": 1,
}  # fmt: skip
WORDS = ["black cat"] * 8 + ["red owl", "cat", "", "a dragon in a castle", "\u732b \u043a\u043e\u0442", "x" * 400]
WRONG = [
    None, "", "nan", -1, 0, 1e308, 2**63, "../../../etc/hostname", "a\\b.safetensors", "\x00", [], {}, ["1", 99],
    True, "\U0001f408" * 50,
]  # fmt: skip


@dataclass
class Generator:
    """Makes graphs from what GET /object_info tells.

    Attributes:
        info: name of a node -> its schema.
        seed: the same seed makes the same graphs.
    """

    info: dict
    seed: int = 0
    producers: dict = field(default_factory=dict)

    def __post_init__(self):
        self.random = random.Random(self.seed)
        # The front end's nodes and those that need files which no test has are left out.
        ours = [name for name in self.info if name.startswith("DNO") and not name.startswith("DNOTest")]
        for name in sorted([*ours, *(name for name in STOCK if name in self.info)]):
            for output, kind in enumerate(self.info[name]["output"]):
                self.producers.setdefault(kind, []).append((name, output))

    def valid(self):
        """Return a Graph that fits together by its types."""
        while True:
            graph, self._shared = Graph(), {}
            try:
                name = self.random.choice(ENDS)
                node = self._node(graph, name, depth=0)
                for index, kind in enumerate(self.info[name]["output"]):
                    if kind == "IMAGE":
                        graph.node("PreviewImage", images=node[index])
            except LookupError:  # it grew to a type that nothing gives, such as a CLIP_VISION
                continue
            return graph

    def wrong(self):
        """Return a Graph with one input that is not what it should be."""
        graph = self.valid()
        node = self.random.choice(list(graph.prompt.values()))
        while not node["inputs"]:
            node = self.random.choice(list(graph.prompt.values()))
        name = self.random.choice(sorted(node["inputs"]))
        linked = isinstance(node["inputs"][name], list)
        if self.random.random() < 0.15:
            del node["inputs"][name]
        elif linked:  # what no page allows: another node's output, of whatever type, or of no node
            node["inputs"][name] = [self.random.choice([*graph.prompt, "nobody"]), self.random.choice([0, 1, 99])]
        else:
            node["inputs"][name] = self.random.choice(WRONG)
        return graph

    def _node(self, graph, name, depth):
        inputs = {}
        for group in ("required", "optional"):
            for key, spec in self.info[name]["input"].get(group, {}).items():
                if group == "required" or self.random.random() < 0.4 / (1 + depth):
                    found = self._value(graph, key, spec, depth)
                    if found is None and group == "required":
                        raise LookupError(f"nothing gives what {name} wants as {key}: {spec[0]}")
                    inputs[key] = found
        if "file" in inputs and name in FITS and self.random.random() < 0.9:
            inputs["file"] = FITS[name]
        return graph.node(name, **inputs)

    def _value(self, graph, key, spec, depth):
        kind, options = spec[0], spec[1] if len(spec) > 1 else {}
        if isinstance(kind, list) or kind == "COMBO":
            return self.random.choice(kind if isinstance(kind, list) else options["options"])
        if kind == "BOOLEAN":
            return self.random.random() < 0.5
        if kind == "STRING":
            return self.random.choice(["#ff8000", "255, 128, 0", "orange"] if key == "color" else WORDS)
        if kind in ("INT", "FLOAT"):
            return self._number(key, kind, options)
        return self._link(graph, kind, depth)

    def _number(self, key, kind, options):
        least = options.get("min", 0)
        most = min(options.get("max", least + 8), MOST.get(key, least + 8))
        if key in ("width", "height"):
            return 128
        if kind == "INT":
            return self.random.randint(int(least), max(int(most), int(least)))
        return round(self.random.uniform(least, most), 3)

    def _link(self, graph, kind, depth):
        """Return a link to an output of that type: one that is there, or one of a new node."""
        there = self._shared.get(kind, [])
        if there and (depth > 3 or self.random.random() < 0.7):
            return self.random.choice(there)
        makers = self.producers.get(kind, [])
        if depth > 4:  # nothing that grows further
            growing = {kind, "IMAGE", "LATENT", "DNO_REWARD"}
            makers = [maker for maker in makers if not self._wants(maker[0]) & growing] or makers
        if not makers or depth > 9:
            return None
        name, output = self.random.choice(makers)
        node = self._node(graph, name, depth + 1)
        for index, made in enumerate(self.info[name]["output"]):
            self._shared.setdefault(made, []).append(node[index])
        return node[output]

    def _wants(self, name):
        return {spec[0] for spec in self.info[name]["input"].get("required", {}).values() if isinstance(spec[0], str)}
