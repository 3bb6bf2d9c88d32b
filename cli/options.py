"""The options that several commands share."""

import argparse
import math
from pathlib import Path

import torch

from ..core.memory import SETTINGS, check_memory
from .rewards import add_reward
from .solvers import SOLVERS

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def add_sampling(parser):
    """Add what makes a picture out of noise."""
    parser.add_argument("--negative", default="", help="negative prompt")
    parser.add_argument("--steps", type=at_least(1), help="denoising steps (default 20, or what --model has)")
    parser.add_argument("--cfg", type=number, help="guidance scale (default 3, or what --model has)")
    parser.add_argument("--eta", type=number, default=1.0, help="0 the ODE .. 1 the SDE (default %(default)s)")
    add_memory(parser)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, .. (default %(default)s)")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="of the networks (default %(default)s); a VLM has its own"
    )


def add_memory(parser):
    """Add what the way back keeps, with the switch of older commands, which means two of its settings."""
    either = parser.add_mutually_exclusive_group()
    either.add_argument(
        "--memory", type=memory, metavar="|".join((*SETTINGS, "GiB")),
        help="what the way back keeps: fast, every step's graph; step, one at a time, each step run again, which takes"
        " half as long again; low, block by block, which takes least, and twice as long; auto, as much as fits into"
        " the free memory; or into so many GiB, beside the weights (default auto, for the embedded model fast)",
    )
    either.add_argument(
        "--keep-graphs", dest="memory", action="store_const", const="fast", help="of older commands: --memory fast"
    )
    either.add_argument(
        "--no-keep-graphs", dest="memory", action="store_const", const="step", help="of older commands: --memory step"
    )


def add_model(parser):
    """Add the choice of a model other than the embedded one."""
    parser.add_argument("--model", help="folder of a diffusers pipeline, or with --download its name on the hub")
    parser.add_argument("--download", action="store_true", help="fetch --model from the hub where it is not cached")
    for side in ("height", "width"):
        parser.add_argument(f"--{side}", type=at_least(8), help="of the pictures, in pixels (default what --model has)")


def add_ascent(parser, iterations=None, lr=None):
    """Add the settings of gradient ascent; without defaults here, the solver's are taken."""
    own = "default %(default)s" if lr else "default the solver's"
    parser.add_argument("--iterations", type=at_least(0), default=iterations, help=f"updates of the noise ({own})")
    parser.add_argument("--lr", type=number, default=lr, help=f"learning rate ({own})")
    parser.add_argument("--gamma", type=number, help="weight of the regulariser, 0 for none (default 1)")


def add_search(parser):
    """Add reward, solver and what each solver takes."""
    add_reward(parser)
    add_limits(parser)
    uses = "; ".join(f"{name}: {choice.when}" for name, choice in SOLVERS.items())
    which = "default trust, or adam where --lr or --gamma is given"
    parser.add_argument("--solver", choices=SOLVERS, metavar="NAME", help=f"{uses} ({which})")
    add_ascent(parser)
    parser.add_argument("--candidates", type=at_least(1), help="tries an iteration (default the solver's)")
    parser.add_argument(
        "--most-rows", type=at_least(1),
        help="most pictures in one call when candidates are tried (default all, with --model 1)",
    )
    parser.add_argument("--beta", type=number, help="in (0, 1], how far zeno and the searches try (default theirs)")
    parser.add_argument(
        "--schedule", choices=["constant", "geometric"], help="of zeno: steps of one size (default) or ever smaller"
    )
    parser.add_argument("--strength", type=number, help="of tilt, in (0, 1) (default 0.3)")
    parser.add_argument("--calls", type=at_least(1), help="of the model, most that fast's climb costs (default 100)")
    parser.add_argument("--scale", type=number, help="of the reward in lgd (default 1)")
    parser.add_argument(
        "--part",
        help="what is searched: all, initial (x_T), injected, 'first K' or 'last K' of the steps' noises (default all)",
    )


def add_limits(parser):
    """Add what may become the best, and when to stop."""
    parser.add_argument(
        "--floors", default="", metavar="TEXT",
        help="the least of what is watched in a picture that may become the best: '0.8', 'start - 0.05', or by name"
        " 'consistency: start - 0.05' (default none)",
    )
    parser.add_argument("--target", type=number, help="stop once every picture's best has reached this score")


def add_single(parser):
    """Add what only a search by itself takes."""
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=number, help="time budget")
    parser.add_argument(
        "--check-gradient", action="store_true",
        help="first compare the gradient with a directional difference; the error goes into the history",
    )


def add_output(parser, folder):
    """Add where to write."""
    parser.add_argument("--out", type=Path, default=Path(folder), help="folder to write to (default %(default)s)")


def memory(text):
    """Return what of `SampleMap.memory` a text names; as an argument type."""
    try:
        found = text if text in SETTINGS else float(text)
        check_memory(found)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected {', '.join(SETTINGS)}, or a number of GiB above 0, found {text}"
        ) from None
    return found


def number(text):
    """Return the finite number that a text names; as an argument type."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a finite number, found {text}")
    return value


def at_least(least):
    """Return an argument type: an integer of `least` or more."""

    def integer(text):
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"expected {least} or more, found {text}")
        return int(text)

    return integer
