"""The documentation's Python, as written but for sizes: names, arguments and results that it promises are there."""

import runpy
from pathlib import Path

import pytest
import tiny_onnx
import tiny_pipelines
import tiny_rewards

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CHEAPER = {
    "steps=20": "steps=3", "steps=50": "steps=3", "iterations=36": "iterations=1", 'device="cuda"': 'device="cpu"',
    '.to("cuda")': "", "torch.float16": "torch.float32",
}  # fmt: skip
KNOWN = {
    "search": "core.optimize(\n    sample_map,\n", "resume": "Noise.load", "pipeline": "load_pipeline",
    "tower": "HPS_v2.1_compressed.pt", "onnx": "OnnxPixels", "own reward": "NODE_CLASS_MAPPINGS",
    "generator": "core.generator_map(",
}  # fmt: skip


def blocks():
    """Return the Python blocks of all pages, in their order."""
    return [text.split("```")[0] for page in PAGES for text in page.read_text().split("```python\n")[1:]]


def block(name):
    """Return the one block that holds the words that `KNOWN` has for it."""
    (found,) = (text for text in blocks() if KNOWN[name] in text)
    return found


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run(code): run Python of the documentation, made cheaper, as a script of its own in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(code):
        for written, smaller in CHEAPER.items():
            code = code.replace(written, smaller)
        (tmp_path / "documented.py").write_text(code)
        runpy.run_path(tmp_path / "documented.py")

    return run


def test_every_block_is_run_by_a_test_below():
    assert sorted(blocks()) == sorted(map(block, KNOWN))


def test_the_documented_search_runs_and_goes_on(run, tmp_path):
    run(block("search") + block("resume") + "assert more.history.rows[0]['iteration'] == 1")
    assert (tmp_path / "best.safetensors").is_file()


def test_the_documented_pipeline_is_sampled(run, tmp_path):
    tiny_pipelines.stable_diffusion().save_pretrained(tmp_path / "models" / "stable-diffusion-v1-5")
    code = f"import torch\nfrom comfyui_dno import core\n{block('pipeline')}"
    run(code + "assert sample_map.sample(noise).isfinite().all()")


def test_the_documented_reward_models_score(run, tmp_path):
    tiny_rewards.write("hps", tmp_path)
    tiny_rewards.write("pickscore", tmp_path).rename(tmp_path / "model.safetensors")
    run(block("tower") + "assert reward(torch.rand(2, 3, 64, 64), ['a cat', 'a dog']).shape == (2,)")


def test_the_documented_onnx_file_scores(run, tmp_path):
    tiny_onnx.write_nsfw(tmp_path / tiny_onnx.NSFW)
    code = f"import torch\nfrom comfyui_dno import rewards\n{block('onnx')}"
    run(code + "assert safe(torch.rand(2, 3, 64, 64)).shape == (2,)")


def test_the_documented_reward_of_ones_own_is_a_reward(run):
    run(block("own reward") + "assert RednessReward().make(2.0)[0](torch.rand(2, 3, 8, 8)).shape == (2,)")


def test_the_documented_generator_is_searched(run):
    code = f"import torch\nfrom comfyui_dno import core\n{block('generator')}"
    better = "compactness(result.images) > compactness(backbone(sample_map.randn(seed=0).initial))"
    run(f"{code}\nassert ({better}).all()")
