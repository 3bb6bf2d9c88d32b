"""What other samplers keep of a searched noise: python tests/benchmarks/other_samplers.py

Searches the noise of the embedded model inside ComfyUI (`COMFYUI_PATH`, else the fetched one) by the DNO Sampler's own
steps, at eta 0 and at eta 1, for brightness; then samples the start's x_T and the found one with each of ComfyUI's
samplers, as DNO Replay Noise's first output does it in SamplerCustomAdvanced. Kept is what the found noise gains there,
in parts of what it gained in the search. Prints the median over prompts and seeds, and the range, for docs/samplers.md,
and writes all to results/. Some minutes on one core.
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "tests" / "benchmarks" / "results" / "other_samplers.json"
RUNS = [("black cat", 0), ("red owl", 1), ("blue fish", 2), ("white dog", 3)]
SAMPLERS = ["res_multistep", "uni_pc", "heun", "dpmpp_2m", "er_sde", "dpmpp_2m_sde", "dpmpp_3m_sde", "lcm"]
SETTINGS = {"steps": 20, "cfg": 3.0, "scheduler": "simple", "denoise": 1.0}
ITERATIONS = 12
INSIDE = "inside ComfyUI"


def main():
    """Run `measure` in a process whose working directory is ComfyUI's, and write down what it prints."""
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    from comfy_server import find_comfyui

    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, INSIDE]
    done = subprocess.run(command, cwd=find_comfyui(), env=environment, stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    for name, kept in result["kept"].items():
        shares = " | ".join(
            f"{statistics.median(found):.0%} ({min(found):.0%} to {max(found):.0%})" for found in kept.values()
        )
        sys.stdout.write(f"| {name} | {shares} |\n")


def measure():
    """Return the shares kept, by sampler and eta."""
    sys.argv = [sys.argv[0], "--cpu"]
    sys.path[:0] = ["."]

    import comfy.options

    comfy.options.enable_args_parsing()

    import comfy.sample
    import comfy.samplers
    import comfyui_version
    import torch
    from comfyui_dno import core, rewards
    from comfyui_dno.nodes import embedded_model, sampler

    import nodes as stock

    model, clip, vae = embedded_model.load_model(), embedded_model.load_clip(), embedded_model.load_vae()
    reward, empty = rewards.Brightness(), {"samples": torch.zeros(1, 4, 16, 16)}

    def encoded(text):
        return stock.CLIPTextEncode().encode(clip, text)[0]

    def brightness(prompt, name, noise, seed):
        """Sample x_T `noise` with a stock sampler; the score of the picture."""
        sigmas = comfy.samplers.KSampler(model, 20, model.load_device, name, "simple", 1.0).sigmas
        stock_sampler = comfy.samplers.sampler_object(name)
        latent = comfy.sample.sample_custom(
            model, noise.clone(), 3.0, stock_sampler, sigmas, encoded(prompt), encoded(""), empty["samples"], seed=seed,
            disable_pbar=True,
        )  # fmt: skip
        return reward(vae.decode(latent).movedim(-1, 1)).item()

    kept = {name: {"eta 0": [], "eta 1": []} for name in SAMPLERS}
    with torch.inference_mode():
        for prompt, seed in RUNS:
            start = comfy.sample.prepare_noise(empty["samples"], seed)
            for eta in (0.0, 1.0):
                search = {"vae": vae, "reward": reward, "eta": eta, "iterations": ITERATIONS, "keep_graphs": True}
                found = sampler.DNOSampler.execute(
                    model=model, seed=seed, positive=encoded(prompt), negative=encoded(""), latent_image=empty,
                    solver=core.GradientAscent(lr=0.03), regularizer=core.ProbabilityRegularizer(),
                    **search, **SETTINGS,
                ).args  # fmt: skip
                noise, history = found[2], found[3]
                gained = history.best_row["score"][0] - history.rows[0]["score"][0]
                for name in SAMPLERS:
                    before, after = (brightness(prompt, name, each, seed) for each in (start, noise.initial))
                    kept[name][f"eta {eta:.0f}"].append((after - before) / gained)
    return {"comfyui": comfyui_version.__version__, "torch": torch.__version__, "runs": RUNS, "kept": kept}


if __name__ == "__main__":
    if INSIDE in sys.argv:
        result = measure()
        sys.stdout.write("\n" + json.dumps(result) + "\n")
    else:
        main()
