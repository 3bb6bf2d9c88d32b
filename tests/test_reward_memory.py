"""Full-size reward files take little more memory than they are long."""

import re
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import psutil
import pytest
import tiny_rewards
import torch
from comfyui_dno import rewards
from tiny_image_reward import image_reward_state, write_vocabulary


def image_reward(path, dtype):
    return rewards.ImageReward(rewards.load_tower(path, dtype=dtype))


def hps(path, dtype):
    return rewards.HPS(rewards.load_tower(path, dtype=dtype))


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
    generator, state = torch.Generator().manual_seed(0), {}
    for name, weight in shapes.items():
        is_scale = re.search(r"ln_\w+\.weight$", name)
        state[name] = torch.empty(weight.shape).normal_(1.0 if is_scale else 0.0, 0.02, generator=generator).half()
    torch.save({"state_dict": state}, path)


KINDS = {
    "ImageReward": (image_reward, write_image_reward, torch.float32, 1.7e9),
    "HPS": (hps, write_hps, torch.bfloat16, 1.9e9),
}
"""How to make the reward and its file, which is of the real one's dtype; the network's dtype; the file's least size.

A CPU's backward pass in float16 is a hundred times slower than in the other two.
"""


def measure(kind, path, tiny, dtype):
    """Load a file, score a picture of 512 x 512 with gradient, and return peak bytes and seconds of one core's time.

    To be called in a process of its own. A tiny file goes first, so that libraries and code are not counted.
    """
    make = KINDS[kind][0]
    images = tiny_rewards.pictures(1, 512, 512).requires_grad_()
    make(tiny, dtype)(images, ["a cat"]).sum().backward()
    images.grad, start = None, time.process_time()
    with PeakMemory() as memory:
        reward = make(path, dtype)
        loaded, loaded_at = memory.peak, time.process_time()
        scores = reward(images, ["a cat"])
        scores.sum().backward()
    assert scores.isfinite().all() and images.grad.isfinite().all() and images.grad.any()
    return {
        "load_bytes": loaded, "load_seconds": loaded_at - start,
        "score_bytes": memory.peak, "score_seconds": time.process_time() - loaded_at,
    }  # fmt: skip


class PeakMemory:
    """The most memory of its own that this process has had since `with`, above what it had then, in bytes.

    Pages that are mapped from a file are not counted: the kernel keeps them as long as nobody else needs the memory.
    """

    def __enter__(self):
        self.before, self.peak, self.ended = self.own(), 0, threading.Event()
        self.watcher = threading.Thread(target=self.watch)
        self.watcher.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.watcher.join()

    def watch(self):
        while not self.ended.wait(0.01):
            self.peak = max(self.peak, self.own() - self.before)

    @staticmethod
    def own():
        info = psutil.Process().memory_info()
        return info.rss - info.shared


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_full_size_file_takes_its_own_size(kind, tmp_path, record_property):
    _, write, dtype, least = KINDS[kind]
    write_vocabulary(tmp_path / "vocab.txt")
    full, tiny = tmp_path / "full.pt", tmp_path / "tiny.pt"
    try:
        write(tiny, full=False)
        write(full, full=True)
        size = full.stat().st_size
        assert size > least
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            found = pool.submit(measure, kind, full, tiny, dtype).result()
    finally:
        full.unlink(missing_ok=True)
    record_property("measured", {"size": size, **found})
    assert found["load_bytes"] < 1.3 * size, found
    assert found["score_bytes"] < 1.6 * size, found
