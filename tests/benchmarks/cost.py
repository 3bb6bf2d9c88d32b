"""What one iteration costs, in plain sampling runs of the same model: python tests/benchmarks/cost.py

Times, interleaved in one process so that a noisy machine slows all alike: one sampling run with decode and without
gradients; one gradient iteration that re-runs each step; one that keeps the graphs; one that goes block by block; the
regulariser alone. Medians. `--model unet` is a random U-Net of 50 million weights in place of the embedded model.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from comfyui_dno import core, rewards
from comfyui_dno.core.regularizer import permuted_log_probabilities

STABLE_DIFFUSION = 835584
"""Numbers in z for Stable Diffusion 1.5 at 512 x 512 with 50 leading DDIM steps."""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", choices=MODELS, default="embedded")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    seconds = measure(MODELS[options.model](options.steps, options.device), options.rounds, options.device)
    figures = {
        "model": options.model,
        "steps": options.steps,
        "rounds": options.rounds,
        "device": options.device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "iteration_rerun_per_sampling": round(seconds["iteration, re-run"] / seconds["sampling"], 2),
        "iteration_kept_per_sampling": round(seconds["iteration, kept graphs"] / seconds["sampling"], 2),
        "iteration_by_blocks_per_sampling": round(seconds["iteration, by blocks"] / seconds["sampling"], 2),
        "regulariser_per_sampling": round(seconds["regulariser"] / seconds["sampling"], 3),
    }
    text = json.dumps(figures, indent=1)
    sys.stdout.write(text + "\n")
    if options.out:
        options.out.write_text(text + "\n")


def embedded(steps, device):
    return core.load_embedded("black cat", steps=steps, device=device)


def unet(steps, device):
    """Return the map of a random Stable Diffusion of middle size, 128 x 128 pixels."""
    import diffusers

    torch.manual_seed(0)
    network = diffusers.UNet2DConditionModel(
        sample_size=16, block_out_channels=(128, 256, 384), layers_per_block=2, cross_attention_dim=256,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32, 64, 64, 64), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    pipeline = diffusers.StableDiffusionPipeline(
        vae, None, None, network.eval(), diffusers.DDIMScheduler(), None, None, requires_safety_checker=False
    )
    text = torch.randn(2, 1, 77, 256)
    embeds = {"prompt_embeds": text[0], "negative_prompt_embeds": text[1]}
    return core.from_pipeline(pipeline, steps=steps, cfg=5.0, device=device, **embeds)


MODELS = {"embedded": embedded, "unet": unet}


def measure(sample_map, rounds, device="cpu"):
    """Return the median seconds of each activity over interleaved rounds, after one unmeasured round."""
    noise, problem = sample_map.randn(0).to(device), core.Problem(sample_map, rewards.Brightness())
    regularizer = core.ProbabilityRegularizer()
    # Noise a little off the shell: both of the regulariser's terms are active, as they are while it works.
    loud = noise.map(lambda tensor: tensor * 1.05)
    big = torch.randn(STABLE_DIFFUSION, generator=torch.Generator().manual_seed(0)).to(device) * 1.05

    def regularise_big():
        leaf = big.clone().requires_grad_()
        sum(log_p.mean() for log_p in permuted_log_probabilities(leaf)).backward()

    def iteration(memory):
        sample_map.memory = memory
        images, vjp = sample_map.pullback(noise)
        images = images.requires_grad_()
        vjp(torch.autograd.grad(problem.reward(images).sum(), images)[0])

    activities = {
        "sampling": lambda: sample_map.sample(noise),
        "iteration, re-run": lambda: iteration("step"),
        "iteration, kept graphs": lambda: iteration("fast"),
        "iteration, by blocks": lambda: iteration("low"),
        "regulariser": lambda: regularizer.gradient(sample_map, loud),
        f"regulariser, n = {STABLE_DIFFUSION}": regularise_big,
    }
    # On a CPU the seconds that this process had, so that what else runs there does not count.
    clock = time.process_time if device == "cpu" else time.perf_counter
    seconds = {name: [] for name in activities}
    for _ in range(rounds + 1):
        for name, activity in activities.items():
            start = clock()
            activity()
            if device != "cpu":
                torch.cuda.synchronize()
            seconds[name].append(clock() - start)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


if __name__ == "__main__":
    main()
