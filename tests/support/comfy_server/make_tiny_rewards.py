"""Write tiny random files of all reward models: `python make_tiny_rewards.py COMFYUI/models/reward_models`.

They have the names and layouts of the real ones, so workflows with reward nodes run without a download. Their scores
mean nothing, and the files take the names of real ones: never point this at a folder that holds those.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny_faces  # noqa: E402
import tiny_onnx  # noqa: E402
import tiny_rewards  # noqa: E402
import tiny_vlm  # noqa: E402
from tiny_image_reward import image_reward_state, write_vocabulary  # noqa: E402

KINDS = ("hps", "pickscore", "clip_l", "clip_h", "aesthetic", "dinov2", "siglip", "aesthetic_v25", "mps", "squeezenet")
CYCLE_REWARD = "CycleReward-Combo.safetensors"
VLM, HPSV3 = "Qwen2-VL-2B-Instruct", "HPSv3"


def write_blip(name, folder, **settings):
    """Write a tiny ImageReward or CycleReward into a folder."""
    state = image_reward_state(vision=(128, 1), text=(128, 1), **settings)
    save_file(state, folder / name) if name.endswith(".safetensors") else torch.save(state, folder / name)


WRITERS = {tiny_rewards.FILES[kind][0]: partial(tiny_rewards.write, kind) for kind in KINDS} | {
    "ImageReward.pt": partial(write_blip, "ImageReward.pt"),
    CYCLE_REWARD: partial(write_blip, CYCLE_REWARD, head=(0, 2, 4, 6, 8)),
    "vocab.txt": lambda folder: write_vocabulary(folder / "vocab.txt"),
    tiny_onnx.SCORER: lambda folder: tiny_onnx.write_scorer(folder / tiny_onnx.SCORER),
    tiny_onnx.NSFW: lambda folder: tiny_onnx.write_nsfw(folder / tiny_onnx.NSFW),
    tiny_faces.FACENET: lambda folder: tiny_faces.write_facenet(folder / tiny_faces.FACENET),
    tiny_faces.ARCFACES["ArcFace"]: lambda folder: tiny_faces.write_arcface(folder / tiny_faces.ARCFACES["ArcFace"]),
    "onet.pt": tiny_faces.write_mtcnn,
    tiny_onnx.RECOGNISER: lambda folder: tiny_onnx.write_recogniser(folder / tiny_onnx.RECOGNISER),
    VLM: lambda folder: tiny_vlm.write_qwen2_vl(folder / VLM),
    HPSV3: lambda folder: tiny_vlm.write_qwen2_vl(folder / HPSV3, rating=True),
}
"""One file, or folder, for each reward node: name -> write it into a folder."""


def write_missing(folder):
    """Write those files that a folder, made where it is not there, does not have."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, write in WRITERS.items():
        if not (folder / name).exists():
            write(folder)


def main():
    parser = argparse.ArgumentParser(description="Write tiny random files of all reward models.")
    parser.add_argument("folder", type=Path, help="models/reward_models of a ComfyUI for tests")
    folder = parser.parse_args().folder
    present = [name for name in WRITERS if (folder / name).exists()]
    if present:
        parser.error(f"{folder} has {', '.join(present)}, perhaps the real ones; expected none of them")
    write_missing(folder)


if __name__ == "__main__":
    main()
