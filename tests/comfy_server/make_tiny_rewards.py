"""Write tiny random files of all reward models: `python make_tiny_rewards.py COMFYUI/models/reward_models`.

They have the names and layouts of the real ones, so workflows with reward nodes run without a download. Their scores
mean nothing, and the files take the names of real ones: never point this at a folder that holds those.
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny_rewards  # noqa: E402
from tiny_image_reward import image_reward_state, write_vocabulary  # noqa: E402

KINDS = ("hps", "pickscore", "clip_l", "clip_h", "aesthetic")
IMAGE_REWARD, VOCABULARY = "ImageReward.pt", "vocab.txt"


def write_all(folder):
    """Write one file for each reward node into an empty or new folder and return their names.

    Raises:
        FileExistsError: a file of such a name is there already, perhaps a real one.
    """
    names = [*(tiny_rewards.FILES[kind][0] for kind in KINDS), IMAGE_REWARD, VOCABULARY]
    present = [name for name in names if (folder / name).exists()]
    if present:
        raise FileExistsError(f"{folder} has {', '.join(present)}; expected none of them. Give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        tiny_rewards.write(kind, folder)
    torch.save(image_reward_state(vision=(128, 1), text=(128, 1)), folder / IMAGE_REWARD)
    write_vocabulary(folder / VOCABULARY)
    return names


def main():
    parser = argparse.ArgumentParser(description="Write tiny random files of all reward models.")
    parser.add_argument("folder", type=Path, help="models/reward_models of a ComfyUI for tests")
    write_all(parser.parse_args().folder)


if __name__ == "__main__":
    main()
