"""What it costs to differentiate what stands in autograd's way: python tests/benchmarks/in_place.py

Two networks of middling size, blocks as in Flux and as in Stable Diffusion, each differentiated once a round: as they
are, while PyTorch keeps copies of what is changed in place (`InPlace`), and while each operation's inference tensors
are renewed (`Renewal` of the nodes). The Flux-like blocks come in two kinds, which add their residuals in place or not;
the first cannot be differentiated as it is. All arms take turns in one process, so that a noisy machine slows all
alike. Medians; bytes are those that a graph holds when its backward pass begins.
"""

import argparse
import contextlib
import importlib.util
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

sys.path.append(str(Path(__file__).parents[1] / "support"))

from live_bytes import LiveBytes  # noqa: E402

PACK = Path(__file__).parents[2]


class FluxLike(nn.Module):
    """A stream of tokens: attention and an MLP, each modulated, gated and added to it."""

    def __init__(self, hidden, heads, in_place):
        super().__init__()
        self.heads, self.in_place = heads, in_place
        self.norm1, self.norm2 = (nn.LayerNorm(hidden, elementwise_affine=False) for _ in range(2))
        self.qkv, self.proj = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)
        self.mlp = nn.Sequential(nn.Linear(hidden, 4 * hidden), nn.GELU("tanh"), nn.Linear(4 * hidden, hidden))
        self.modulation = nn.Parameter(0.1 * torch.randn(6, hidden))

    def forward(self, x):
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulation
        qkv = self.qkv(self.norm1(x) * (1 + scale1) + shift1).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attention = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = self.added(x, self.proj(attention) * gate1)
        return self.added(x, self.mlp(self.norm2(x) * (1 + scale2) + shift2) * gate2)

    def added(self, x, change):
        return x.add_(change) if self.in_place else x + change


class StableDiffusionLike(nn.Module):
    """A picture of features: a residual block of convolutions, then self-attention and an MLP over its pixels."""

    def __init__(self, hidden, heads):
        super().__init__()
        self.heads = heads
        self.convolutions = nn.Sequential(
            nn.GroupNorm(32, hidden), nn.SiLU(), nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.GroupNorm(32, hidden), nn.SiLU(), nn.Conv2d(hidden, hidden, 3, padding=1),
        )  # fmt: skip
        self.norm1, self.norm2 = (nn.LayerNorm(hidden) for _ in range(2))
        self.qkv, self.proj = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)
        self.mlp = nn.Sequential(nn.Linear(hidden, 4 * hidden), nn.GELU(), nn.Linear(4 * hidden, hidden))

    def forward(self, tokens):
        side = int(tokens.shape[1] ** 0.5)
        picture = tokens.transpose(1, 2).unflatten(-1, (side, side))
        x = (picture + self.convolutions(picture)).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


def renewing():
    """The context that renews inference tensors, of a module that imports PyTorch alone, though its room ComfyUI."""
    spec = importlib.util.spec_from_file_location("weights", PACK / "nodes" / "weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module._Accepted()


def arms(hidden, blocks):
    """Return name -> (network, the context it is differentiated in)."""
    heads, copies = hidden // 64, torch.autograd.graph.allow_mutation_on_saved_tensors

    def flux(in_place):
        torch.manual_seed(0)
        return nn.Sequential(*(FluxLike(hidden, heads, in_place) for _ in range(blocks)))

    stable_diffusion = nn.Sequential(*(StableDiffusionLike(hidden, heads) for _ in range(blocks)))
    found = {
        "Flux-like, not in place": (flux(False), contextlib.nullcontext),
        "Flux-like, not in place, copies kept": (flux(False), copies),
        "Flux-like, in place, copies kept": (flux(True), copies),
        "Flux-like, not in place, tensors renewed": (flux(False), renewing),
        "SD-like": (stable_diffusion, contextlib.nullcontext),
        "SD-like, copies kept": (stable_diffusion, copies),
        "SD-like, tensors renewed": (stable_diffusion, renewing),
    }
    for network, _ in found.values():
        network.requires_grad_(False)
    return found


def differentiate(network, context, x, on_graph=lambda: None):
    """Return the gradient of the output's sum by x, as a step of the backward pass takes it."""
    x = x.clone().requires_grad_()
    with context():
        output = network(x * 1.0)  # no leaf: that may not be changed in place
        on_graph()
        return torch.autograd.grad(output, x, torch.ones_like(output))[0]


def held(network, context, x):
    """Return the bytes that the graph holds when its backward pass begins."""
    counted = []
    with LiveBytes() as live:
        differentiate(network, context, x, lambda: counted.append(live.now))
    return counted[0]


def measure(hidden, tokens, blocks, rounds):
    """Return name -> median seconds and bytes of each arm."""
    every, x = arms(hidden, blocks), torch.randn(1, tokens, hidden)
    seconds = {name: [] for name in every}
    for _ in range(rounds + 1):
        for name, (network, context) in every.items():
            start = time.perf_counter()
            differentiate(network, context, x)
            seconds[name].append(time.perf_counter() - start)
    return {
        name: {"seconds": round(statistics.median(seconds[name][1:]), 4), "bytes": held(*every[name], x)}
        for name in every
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--tokens", type=int, default=576, help="a square number")
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    settings = {name: getattr(options, name) for name in ("hidden", "tokens", "blocks", "rounds")}
    figures = {
        **settings, "device": "cpu", "threads": torch.get_num_threads(), "torch": torch.__version__,
        "arms": measure(**settings),
    }  # fmt: skip
    text = json.dumps(figures, indent=1)
    sys.stdout.write(text + "\n")
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
