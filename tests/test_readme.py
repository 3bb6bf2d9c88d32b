"""The README's Python, as written but for sizes: names, arguments and results that it promises are there."""

import subprocess
import sys
from pathlib import Path

import tiny_pipelines
import tiny_rewards

README = Path(__file__).parents[1] / "README.md"
CHEAPER = {
    "steps=20": "steps=3", "steps=50": "steps=3", "iterations=36": "iterations=1", 'device="cuda"': 'device="cpu"',
    '.to("cuda")': "", "torch.float16": "torch.float32",
}  # fmt: skip


def blocks():
    """Return the README's Python blocks in their order."""
    return [text.split("```")[0] for text in README.read_text().split("```python\n")[1:]]


def run(code, folder):
    for written, smaller in CHEAPER.items():
        code = code.replace(written, smaller)
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_search_of_the_readme_runs_and_goes_on(tmp_path):
    first = next(block for block in blocks() if "core.optimize(" in block)
    more = next(block for block in blocks() if "Noise.load" in block)
    run(first + more + "assert more.history.rows[0]['iteration'] == 1", tmp_path)
    assert (tmp_path / "best.safetensors").is_file()


def test_the_pipeline_of_the_readme_is_sampled(tmp_path):
    tiny_pipelines.stable_diffusion().save_pretrained(tmp_path / "models" / "stable-diffusion-v1-5")
    code = next(block for block in blocks() if "load_pipeline" in block)
    code = f"import torch\nfrom comfyui_dno import core\n{code}assert sample_map.sample(noise).isfinite().all()"
    run(code, tmp_path)


def test_the_reward_models_of_the_readme_score(tmp_path):
    tiny_rewards.write("hps", tmp_path)
    tiny_rewards.write("pickscore", tmp_path).rename(tmp_path / "model.safetensors")
    code = next(block for block in blocks() if "load_tower" in block)
    run(code + "assert reward(torch.rand(2, 3, 64, 64), ['a cat', 'a dog']).shape == (2,)", tmp_path)


def test_the_own_reward_of_the_readme_is_a_reward():
    code = next(block for block in blocks() if "NODE_CLASS_MAPPINGS" in block)
    run(code + "assert RednessReward().make(2.0)[0](torch.rand(2, 3, 8, 8)).shape == (2,)", Path.cwd())
