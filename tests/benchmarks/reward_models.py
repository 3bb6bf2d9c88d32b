"""What the reward models cost at full size, on files of random weights, and what half precision changes.

    python tests/benchmarks/reward_models.py --out tests/benchmarks/results/reward_models.json

Of each model and dtype: memory and one core's time to load the file and to score a picture of 512 x 512, with gradient
where there is one, in a process of its own; then, against float32, the score's change and the gradient's error relative
to its norm. Memory is what the process has of its own at most, and what stays mapped of the file. HPS, PickScore and
CLIP ViT-H/14 are one architecture, as are CLIPScore with ViT-L/14 and the aesthetic predictor. float16 is left out: a
CPU's backward pass in it is a hundred times slower. Needs 15 GB of memory and 5 GB of disk at a time.
"""

import argparse
import re
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import torch
from comfyui_dno import rewards
from comfyui_dno.core.scoring import exact, score
from torchvision import models

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import study  # noqa: E402
import tiny_rewards  # noqa: E402
import tiny_vlm  # noqa: E402
from tiny_image_reward import image_reward_state, write_vocabulary  # noqa: E402

PROMPTS = ["a cat"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    options = parser.parse_args()
    runs = study.Runs(options.out, {})
    for name in MODELS:
        runs.once(name, of_model, name)
    runs.finish("reward_models.py", runs.done)


@dataclass
class Model:
    """One kind of reward model.

    Attributes:
        reward: of a tower.
        write: called with a path and whether it shall be of full size.
        dtype: of the real files, and of these.
        dtypes: of the networks that are measured.
    """

    reward: Any
    write: Any
    dtype: torch.dtype
    dtypes: tuple = (torch.float32, torch.bfloat16)


def write_image_reward(path, full):
    sizes = {"vision": (1024, 24), "text": (768, 12), "std": 0.02} if full else {}
    torch.save(image_reward_state(**sizes), path)


def write_hps(path, full):
    from open_clip.model import CLIP

    if not full:
        return torch.save({"state_dict": tiny_rewards.open_clip_model("H").half().state_dict()}, path)
    vision = {"image_size": 224, "layers": 32, "width": 1280, "head_width": 80, "patch_size": 14}
    text = {"context_length": 77, "vocab_size": 49408, "width": 1024, "heads": 16, "layers": 24}
    with torch.device("meta"):
        shapes = CLIP(1024, vision, text).state_dict()
    torch.save({"state_dict": {name: weight.half() for name, weight in drawn(shapes)}}, path)


def write_clip_l(path, full):
    if not full:
        return torch.save(tiny_rewards.hf_model("L").state_dict(), path)
    torch.save(clip(768, (768, 12), (1024, 24)), path)


def clip(joint, text, vision):
    """Return the weights of a CLIP: the width of its embeddings, and of each tower width and layers."""
    from transformers import CLIPConfig, CLIPModel

    sizes = [
        {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers, "projection_dim": joint}
        for width, layers in (text, vision)
    ]
    config = CLIPConfig(
        text_config=sizes[0] | {"num_attention_heads": text[0] // 64},
        vision_config=sizes[1] | {"num_attention_heads": 16, "patch_size": 14}, projection_dim=joint,
    )  # fmt: skip
    with torch.device("meta"):
        shapes = CLIPModel(config).state_dict()
    return dict(drawn(shapes))


def write_dinov2(path, full):
    from transformers import Dinov2Config, Dinov2Model

    model = tiny_rewards.dinov2_model() if not full else Dinov2Model(Dinov2Config(image_size=518, patch_size=14))
    torch.save(dict(drawn(tiny_rewards.hub_state(model))), path)


def write_siglip(path, full):
    from transformers import SiglipConfig, SiglipModel

    if not full:
        return torch.save(tiny_rewards.siglip_model().state_dict(), path)
    vision = {
        "hidden_size": 1152, "num_hidden_layers": 27, "num_attention_heads": 16, "intermediate_size": 4304,
        "image_size": 384, "patch_size": 14,
    }  # fmt: skip
    text = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 100}
    with torch.device("meta"):
        shapes = SiglipModel(SiglipConfig(vision_config=vision, text_config=text)).state_dict()
    torch.save(dict(drawn(shapes)), path)


def write_mps(path, full):
    if not full:
        return torch.save(tiny_rewards.mps_state(), path)
    state = tiny_rewards.mps_state(heads=16, hidden=4096, layers=4)
    reader = {name: weight for name, weight in state.items() if not name.startswith("mps.model.")}
    torch.save(reader | tiny_rewards.prefixed(clip(1024, (1024, 24), (1280, 32)), "mps.model."), path)


def write_torchvision(name, path, full):
    """Write one of torchvision's networks, which has one size alone."""
    torch.save(getattr(models, name)(weights=None).state_dict(), path)


def write_vlm(path, full):
    sizes = {"sizes": tiny_vlm.QWEN2_VL_2B, "std": 0.02} if full else {}
    tiny_vlm.write_qwen2_vl(path, dtype=torch.bfloat16, **sizes)


def drawn(shapes):
    """Yield (name, weight) of a CLIP's size: normal numbers of 0.02, the scales of layer norms around 1."""
    generator = torch.Generator().manual_seed(0)
    for name, weight in shapes.items():
        is_scale = re.search(r"(ln_\w+|norm\d?|layrnorm)\.weight$", name)
        yield name, torch.empty(weight.shape).normal_(1.0 if is_scale else 0.0, 0.02, generator=generator)


def aesthetic_v25(tower):
    with tempfile.TemporaryDirectory() as folder:
        return rewards.AestheticV25(tower, tiny_rewards.write("aesthetic_v25", Path(folder)))


def dinov2(tower):
    return rewards.DINOv2Similarity(tower, tiny_rewards.pictures(1, 512, 512, seed=1))


def lpips(tower):
    return rewards.LPIPS(tower, tiny_rewards.pictures(1, 512, 512, seed=1))


MODELS = {
    "HPS": Model(rewards.HPS, write_hps, torch.float16),
    "CLIPScore ViT-L/14": Model(rewards.CLIPScore, write_clip_l, torch.float32),
    "ImageReward": Model(rewards.ImageReward, write_image_reward, torch.float32),
    "DINOv2 base": Model(dinov2, write_dinov2, torch.float32),
    "Aesthetic V2.5": Model(aesthetic_v25, write_siglip, torch.float32),
    "MPS": Model(rewards.MPS, write_mps, torch.float32),
    "LPIPS AlexNet": Model(lpips, partial(write_torchvision, "alexnet"), torch.float32),
    "LPIPS VGG16": Model(lpips, partial(write_torchvision, "vgg16"), torch.float32),
    "LPIPS SqueezeNet": Model(lpips, partial(write_torchvision, "squeezenet1_1"), torch.float32),
    "VLM judge Qwen2-VL-2B": Model(rewards.VLMJudge, write_vlm, torch.bfloat16, (torch.bfloat16,)),
}


def of_model(name, dtypes=None):
    """Write a file of full size and return its figures, dtype by dtype; the file is gone afterwards."""
    figures, dtypes = {}, dtypes or MODELS[name].dtypes
    with tempfile.TemporaryDirectory() as folder:
        full, tiny = Path(folder) / "full.pt", Path(folder) / "tiny.pt"
        write_vocabulary(Path(folder) / "vocab.txt")
        for path in (tiny, full):
            MODELS[name].write(path, full=path is full)
        files = full.iterdir() if full.is_dir() else [full]
        figures["file_bytes"] = sum(file.stat().st_size for file in files)
        judged = {}
        for dtype in dtypes:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                found, *judged[dtype] = pool.submit(measure, name, full, tiny, dtype).result()
            if dtype is not dtypes[0]:
                scores, gradient = judged[dtypes[0]]
                found["score_change"] = (judged[dtype][0] - scores).abs().item()
                found["gradient_error"] = ((judged[dtype][1] - gradient).norm() / gradient.norm()).item()
            figures[str(dtype).removeprefix("torch.")] = found
    return figures


def measure(name, path, tiny, dtype):
    """Load a file and score a picture, with gradient where there is one, in a process that does nothing else.

    A tiny file goes first, so that libraries and code are not counted.

    Returns:
        figures in bytes and seconds, the scores (1,) and the gradient (1, 3, 512, 512), None where there is none.
    """
    images, reward = tiny_rewards.pictures(1, 512, 512), MODELS[name].reward
    asked(reward(rewards.load_tower(tiny, dtype=dtype)), images)
    start = time.process_time()
    with PeakMemory() as memory:
        judge = reward(rewards.load_tower(path, dtype=dtype))
        loaded, loaded_at = memory.peak, time.process_time()
        scores, gradient = asked(judge, images)
        scored_at, mapped = time.process_time(), memory.mapped()
    assert scores.isfinite().all() and (gradient is None or gradient.isfinite().all() and gradient.any())
    figures = {
        "load_bytes": loaded, "load_seconds": round(loaded_at - start, 2),
        "score_bytes": memory.peak, "score_seconds": round(scored_at - loaded_at, 2), "mapped_bytes": mapped,
    }  # fmt: skip
    return figures, scores, gradient


def asked(reward, images):
    """Return a reward's scores and its gradient, None where it has none."""
    return exact(reward, images, PROMPTS) if reward.differentiable else (score(reward, images, PROMPTS), None)


class PeakMemory:
    """The most memory of its own that this process has had since `with`, above what it had then, in bytes.

    Pages that are mapped from a file are not of its own: the kernel keeps them as long as nobody else needs the memory.
    """

    def __enter__(self):
        self.before, self.peak, self.ended = psutil.Process().memory_info(), 0, threading.Event()
        self.watcher = threading.Thread(target=self._watch)
        self.watcher.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.watcher.join()

    def mapped(self):
        """Return the bytes that are mapped from files now and were not then."""
        return psutil.Process().memory_info().shared - self.before.shared

    def _watch(self):
        while not self.ended.wait(0.01):
            now = psutil.Process().memory_info()
            self.peak = max(self.peak, now.rss - now.shared - self.before.rss + self.before.shared)


if __name__ == "__main__":
    main()
