"""What a search takes of memory at each setting: python tests/benchmarks/memory.py

Full-size networks of diffusers' classes, in bfloat16, on fake tensors: nothing is computed and no weights are needed,
but every tensor has its size, and autograd keeps and frees what it would. Counted are, of a guided call and of a
decode, what autograd keeps (`core.memory.Saved`) and the most bytes that are alive at once on the way forth and back.
`--page-only` writes the table of docs/costs.md from the result.
"""

import argparse
import contextlib
import json
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests" / "support")]

from comfyui_dno import core  # noqa: E402
from comfyui_dno.core.memory import DECODER, GIB, STEP, Plan, Size  # noqa: E402
from live_bytes import LiveBytes  # noqa: E402

RESULT = ROOT / "tests" / "benchmarks" / "results" / "memory.json"
PAGE = ROOT / "docs" / "costs.md"
STEPS, CARDS = 20, (8, 12, 16, 24)
HALF = torch.bfloat16
CONTEXT = GIB // 2
"""What CUDA takes for itself."""


@dataclass(frozen=True)
class Architecture:
    """A family's networks at their real size.

    Attributes:
        name: as users call it, with the picture's side.
        network: () -> the network of a step.
        inputs: what it is called with beside x, keyword -> shape; "x" is x's own, two rows where guidance asks for two.
        latent: (channels, height, width).
        weight_bytes: of each of the network's weights.
    """

    name: str
    network: Callable
    inputs: dict
    latent: tuple
    weight_bytes: int = 2


def unet(**config):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(**config)


def stable_diffusion(**config):
    return unet(cross_attention_dim=768, attention_head_dim=8, **config)


def stable_diffusion_xl():
    return unet(
        sample_size=128, block_out_channels=(320, 640, 1280), cross_attention_dim=2048, attention_head_dim=(5, 10, 20),
        transformer_layers_per_block=(1, 2, 10), use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


def stable_diffusion_3():
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=128, in_channels=16, out_channels=16, num_layers=24, attention_head_dim=64, num_attention_heads=24,
        joint_attention_dim=4096, caption_projection_dim=1536, pooled_projection_dim=2048, pos_embed_max_size=192,
    )  # fmt: skip


def flux():
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(guidance_embeds=True)


def decoder(channels):
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        latent_channels=channels, block_out_channels=(128, 256, 512, 512), layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        use_quant_conv=channels == 4, use_post_quant_conv=channels == 4,
    )  # fmt: skip


ARCHITECTURES = [
    Architecture(
        "SD 1.5, 512", stable_diffusion,
        {"x": (2, 4, 64, 64), "timestep": (2,), "encoder_hidden_states": (2, 77, 768)}, (4, 64, 64),
    ),
    Architecture(
        "SDXL, 1024", stable_diffusion_xl,
        {
            "x": (2, 4, 128, 128), "timestep": (2,), "encoder_hidden_states": (2, 77, 2048),
            "added_cond_kwargs": {"text_embeds": (2, 1280), "time_ids": (2, 6)},
        },
        (4, 128, 128),
    ),
    Architecture(
        "SD3 medium, 1024", stable_diffusion_3,
        {
            "x": (2, 16, 128, 128), "timestep": (2,), "encoder_hidden_states": (2, 154, 4096),
            "pooled_projections": (2, 2048),
        },
        (16, 128, 128),
    ),
    Architecture(
        "Flux dev, 1024, float8 weights", flux,
        {
            "x": (1, 4096, 64), "timestep": (1,), "guidance": (1,), "encoder_hidden_states": (1, 512, 4096),
            "pooled_projections": (1, 768), "txt_ids": (512, 3), "img_ids": (4096, 3),
        },
        (16, 128, 128), weight_bytes=1,
    ),
]  # fmt: skip


def reward_tower():
    """Return the image tower of HPS, CLIP ViT-H/14; its text tower has weights and no graph."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=16, patch_size=14,
            projection_dim=1024, hidden_act="gelu",
        )
    )  # fmt: skip


TEXT_TOWER = 354_032_641
"""Weights of HPS's text tower and its scale."""


@contextlib.contextmanager
def fake_tensors():
    """Compute nothing; and let no block compare the states of random numbers, which are real tensors."""
    with FakeTensorMode(), mock.patch.object(core.blocks, "global_generators", lambda device: []):
        yield


def drawn(shape):
    """Return tensors of the shapes in a dict, or one."""
    if isinstance(shape, dict):
        return {name: drawn(each) for name, each in shape.items()}
    return torch.empty(shape, dtype=HALF)


def bytes_of(module):
    return sum(parameter.nbytes for parameter in module.parameters())


def frozen(build):
    """Return the module that build() makes, in half precision, as a search has it."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(HALF)  # fake weights cannot be cast afterwards
    try:
        return build().eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(default)


@dataclass(frozen=True)
class Stage:
    """What one stage takes, in bytes.

    Attributes:
        whole, inputs, block: as `core.memory.Size`.
        peak: the most that is alive at once, forth and back, as autograd has it.
        peak_by_blocks: block by block.
    """

    whole: int
    inputs: int
    block: int
    peak: int
    peak_by_blocks: int

    @property
    def size(self):
        return Size(self.whole, self.inputs, self.block)


def measured(network, x, run):
    """Return the `Stage` of run(x), which calls `network`."""
    blocks = core.Blocks([network])
    plan = Plan(blocks)
    plan.follow("auto")
    plan.counted(STEP, lambda: run(x.detach().requires_grad_()).detach())
    peaks = []
    for memory in ("step", "low"):
        plan_of_one = Plan(blocks)
        plan_of_one.follow(memory)
        with LiveBytes() as live:
            leaf = x.detach().requires_grad_()
            with plan_of_one.graph(STEP):
                y = run(leaf)
            torch.autograd.grad(y, leaf, torch.ones_like(y))
            del y
        peaks.append(live.peak)
    return Stage(**asdict(plan.sizes[STEP]), peak=peaks[0], peak_by_blocks=peaks[1])


def stages_of(architecture):
    """Return the `Stage` of a step's call and of the decode, and the bytes of their weights."""
    network, vae = frozen(architecture.network), frozen(partial(decoder, architecture.latent[0]))
    inputs = drawn(architecture.inputs)
    x = inputs.pop("x")
    name = "hidden_states" if "pooled_projections" in inputs else "sample"

    def call(x):
        return network(**{name: x}, **inputs, return_dict=False)[0]

    step = measured(network, x, call)
    latent = torch.empty(1, *architecture.latent, dtype=HALF)
    decode = measured(vae.decoder, latent, lambda latent: vae.decode(latent, return_dict=False)[0])
    return step, decode, bytes_of(network) * architecture.weight_bytes // 2, bytes_of(vae)


def reward_of(side=224):
    """Return the `Stage` of the reward's picture, and the bytes of its weights."""
    tower = frozen(reward_tower)
    pixels = torch.empty(1, 3, side, side, dtype=HALF)
    return measured(tower, pixels, lambda x: tower(x)[0]), bytes_of(tower) + TEXT_TOWER * 2


def at_setting(step, decode, reward, memory, room=None):
    """Return how a `Plan` of this setting runs that has so many bytes beside the weights.

    Returns:
        dict: how many steps' graphs are "kept", which stages go "by_blocks", the "time" of a step in calls of the
        network, and "alive", the most bytes that are alive at once beside the weights, by stage.
    """
    plan = Plan(free=lambda: room)
    plan.follow(memory)
    if memory == "auto":
        plan.note(STEP, step.size)
        plan.note(DECODER, decode.size)
        plan.settle()
    kept, blocks = min(plan.kept, STEPS), STEP in plan.by_blocks
    each = step.inputs if blocks else step.whole
    beside = {
        "step": (step.peak_by_blocks if blocks else step.peak) - (each if kept else 0),
        "decode": decode.peak_by_blocks if DECODER in plan.by_blocks else decode.peak,
        "reward": reward.peak,
    }
    return {
        "kept": kept, "by_blocks": sorted(plan.by_blocks), "time": (4 if blocks else 3) - kept / STEPS,
        "alive": {stage: kept * each + size for stage, size in beside.items()},
    }  # fmt: skip


IN_TURN = {"fast": "step", "step": "step"}
"""Memory -> what the nodes make of it where models take turns; of every other one "low"."""


def settings_of(weights, step, decode, reward):
    """Return each setting of an architecture: its weights in bytes by stage, and its `Stage`s.

    To what `at_setting` says are added the most bytes that are in memory with all weights "together", and "in_turn",
    with those of the stage that runs alone, where graphs are made as the nodes make them then.
    """
    alone = {
        memory: max(weights[stage] + size for stage, size in at_setting(step, decode, reward, memory)["alive"].items())
        for memory in ("step", "low")
    }
    settings = {memory: at_setting(step, decode, reward, memory) for memory in ("fast", "step", "low")}
    for card in CARDS:
        room = card * GIB - CONTEXT - sum(weights.values())
        settings[f"auto, {card} GiB"] = at_setting(step, decode, reward, "auto", max(room, 1))
    for memory, found in settings.items():
        found["together"] = CONTEXT + sum(weights.values()) + max(found["alive"].values())
        found["in_turn"] = CONTEXT + alone[IN_TURN.get(memory, "low")]
    return settings


def row(architecture, tower):
    """Return an architecture's row: its weights and its stages."""
    step, decode, network, vae = stages_of(architecture)
    weights = {"step": network, "decode": vae, "reward": tower}
    return {"weights": weights, "step": asdict(step), "decode": asdict(decode)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="architectures; the others' rows stay as they are")
    parser.add_argument("--page-only", action="store_true", help="measure nothing, write the tables of docs/costs.md")
    options = parser.parse_args()
    found = json.loads(RESULT.read_text()) if RESULT.exists() else {"rows": {}}
    if not options.page_only:
        with fake_tensors():
            reward, tower = reward_of()
            for architecture in ARCHITECTURES:
                if options.only is None or architecture.name in options.only:
                    found["rows"][architecture.name] = row(architecture, tower)
                    sys.stderr.write(f"{architecture.name} done\n")
        found |= {"torch": torch.__version__, "steps": STEPS, "reward": asdict(reward), "dtype": str(HALF)}
    for each in found["rows"].values():
        stages = (Stage(**stage) for stage in (each["step"], each["decode"], found["reward"]))
        each["settings"] = settings_of(each["weights"], *stages)
    RESULT.write_text(json.dumps(found, indent=1) + "\n")
    text = PAGE.read_text()
    PAGE.write_text(re.sub(MARKS, lambda _: f"{BEGIN}\n{table(found['rows'])}\n{END}", text, flags=re.DOTALL))


BEGIN, END = "<!-- tests/benchmarks/memory.py writes this: -->", "<!-- to here -->"
MARKS = f"{re.escape(BEGIN)}.*{re.escape(END)}"


def table(rows):
    """Return the page's tables."""
    gib = lambda size: f"{size / GIB:.2f}"  # noqa: E731
    lines = [
        "| | weights: model, VAE, HPS | one guided call: whole, by blocks | one decode: whole, by blocks |",
        "|---|---|---|---|",
    ]
    for name, each in rows.items():
        weights = ", ".join(gib(size) for size in each["weights"].values())
        stages = [f"{gib(s['whole'])}, {gib(s['inputs'] + s['block'])}" for s in (each["step"], each["decode"])]
        lines.append(f"| {name} | {weights} | {' | '.join(stages)} |")
    lines += ["", f"| | {' | '.join(SETTINGS)} |", f"|---|{'---|' * len(SETTINGS)}"]
    for name, each in rows.items():
        lines.append(f"| {name} | {' | '.join(cell(each['settings'], setting) for setting in SETTINGS)} |")
    return "\n".join(lines)


SETTINGS = "fast", "step", "low", *(f"auto, {card} GiB" for card in CARDS)


def cell(settings, setting):
    """Return what a setting takes: together / in turn; of "auto" on a card, which of the two it comes to there."""
    found = settings[setting]
    together, in_turn = (found[place] / GIB for place in ("together", "in_turn"))
    if not setting.startswith("auto"):
        calls = settings[IN_TURN.get(setting, "low")]["time"]
        return f"{together:.1f} ({found['time']:.1f}) / {in_turn:.1f} ({calls:.1f})"
    card = int(setting.split()[1])
    if together <= card:
        return f"{together:.1f} ({found['time']:.1f})"
    return f"in turn {in_turn:.1f} ({settings['low']['time']:.1f})" if in_turn <= card else "-"


if __name__ == "__main__":
    main()
