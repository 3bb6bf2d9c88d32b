"""The nodes of reward networks, on tiny files of the real layouts."""

import json

import tiny_rewards
from comfy_server.make_tiny_rewards import CYCLE_REWARD
from safetensors.torch import save_file
from tiny_faces import FACENET
from tiny_onnx import RECOGNISER, SCORER

HPS, PICKSCORE, AESTHETIC, CLIP_L, IMAGE_REWARD, IMAGE_TOWER = (
    "HPS_v2.1_compressed.pt", "PickScore_v1.safetensors", "sac+logos+ava1-l14-linearMSE.pth",
    "clip-vit-large-patch14.safetensors", "ImageReward.pt", "image_tower.safetensors",
)  # fmt: skip
DINOV2, SIGLIP, AESTHETIC_V25, MPS, SQUEEZENET = (
    tiny_rewards.FILES[kind][0] for kind in ("dinov2", "siglip", "aesthetic_v25", "mps", "squeezenet")
)
SETTINGS = {"dtype": "float32", "crops": 0}
REWARDS = {
    "DNOHPSReward": {"file": HPS, "prompt": "a cat"},
    "DNOPickScoreReward": {"file": PICKSCORE, "prompt": "a cat"},
    "DNOMPSReward": {"file": MPS, "prompt": "a cat"},
    "DNOImageReward": {"file": IMAGE_REWARD, "prompt": "a cat"},
    "DNOCycleReward": {"file": CYCLE_REWARD, "prompt": "a cat"},
    "DNOCLIPScoreReward": {"file": CLIP_L, "prompt": "a cat"},
    "DNOAestheticReward": {"file": AESTHETIC, "clip_file": CLIP_L},
    "DNOAestheticV25Reward": {"file": AESTHETIC_V25, "siglip_file": SIGLIP},
    "DNOImageSimilarityReward": {"file": CLIP_L},
    "DNODINOv2SimilarityReward": {"file": DINOV2, "by": "subject"},
    "DNOFaceReward": {"file": FACENET, "detector_file": "onet.pt"},
    "DNOLPIPSReward": {"file": SQUEEZENET},
    "DNODirectionReward": {"file": CLIP_L, "more": "a cat", "less": "a dog"},
    "DNOONNXReward": {
        "file": SCORER, "size": 0, "fit": "stretch", "kept": 1.0, "range": "0 to 1", "mean": "0.485, 0.456, 0.406",
        "std": "0.229, 0.224, 0.225", "channels": "RGB", "layout": "auto", "output": "0", "class_index": 0,
        "activation": "none", "negative": False,
    },
    "DNOTextReward": {"file": RECOGNISER, "text": "CAT", "x": 0.0, "y": 0.35, "width": 1.0, "height": 0.3},
}
WITHOUT_NETWORK_SETTINGS = ("DNOTextReward", "DNOLPIPSReward")
"""Those that have neither dtype nor crops."""


NEED_TRANSFORMERS = [
    name for name in REWARDS if name not in ("DNOONNXReward", "DNOFaceReward", *WITHOUT_NETWORK_SETTINGS)
]
REFERRING = ("DNOImageSimilarityReward", "DNODINOv2SimilarityReward", "DNOLPIPSReward", "DNOFaceReward")


def reward_node(graph, name, **changes):
    settings = {} if name in WITHOUT_NETWORK_SETTINGS else SETTINGS
    inputs = {**settings, **REWARDS[name], **changes}
    if name in REFERRING:
        color = 0xE0F0D0 if name == "DNOFaceReward" else 0x30A040  # a face is what is bright, to the tiny MTCNN
        inputs["reference"] = graph.node("EmptyImage", width=50, height=40, batch_size=2, color=color)[0]
    return graph.node(name, **inputs)


def stock_clip_vision(files, graph):
    """The output of a tiny CLIP ViT-L/14 of ComfyUI's own; its weights are those of the file."""
    state = tiny_rewards.image_tower(tiny_rewards.hf_model("L", 4).state_dict())
    save_file(state, files.folder / "models" / "reward_models" / IMAGE_TOWER)
    width = tiny_rewards.SIZES["L"]["image"]
    config = {
        "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": tiny_rewards.LAYERS,
        "num_attention_heads": tiny_rewards.HEADS, "projection_dim": 768, "image_size": tiny_rewards.PIXELS,
        "patch_size": tiny_rewards.PATCH, "num_channels": 3, "hidden_act": "quick_gelu",
        "model_type": "clip_vision_model",
    }  # fmt: skip
    return graph.node("DNOTestClipVision", file=IMAGE_TOWER, config=json.dumps(config))[0]
