"""What ComfyUI is told of the memory of graphs: first a guess, then what was counted."""

import importlib.util
import json

import pytest
import torch
from comfy_server.server import PACK
from comfyui_dno import core

# By its path: its package imports ComfyUI.
SPEC = importlib.util.spec_from_file_location("comfyui_dno.nodes.graph_sizes", PACK / "nodes" / "graph_sizes.py")
COUNTED = json.loads((PACK / "tests" / "benchmarks" / "results" / "memory.json").read_text())
FACTORS = {"SD 1.5": (64, 1.0), "SDXL": (128, 0.8), "SD3": (128, 1.2), "Flux": (128, 3.1)}
"""The side of the latent, and the factor of memory in ComfyUI's supported_models.py."""


@pytest.fixture
def graph_sizes():
    module = importlib.util.module_from_spec(SPEC)
    SPEC.loader.exec_module(module)
    return module


def test_what_was_counted_takes_the_place_of_the_guess_for_networks_of_its_class(graph_sizes):
    stage, network = graph_sizes.STEP, torch.nn.Identity()
    guess = graph_sizes.of(stage, network, 100)
    graph_sizes.remember(stage, network, 50, core.memory.Size(whole=200, inputs=30, block=20))
    assert graph_sizes.of(stage, network, 100) == (400, 100)
    assert graph_sizes.of(stage, torch.nn.Linear(1, 1), 100) == graph_sizes.of(stage, torch.nn.Tanh(), 100) == guess
    graph_sizes.remember(stage, network, 0, core.memory.Size(1, 1, 1))
    assert graph_sizes.of(stage, network, 100) == (400, 100)


def test_a_search_needs_what_earlier_ones_counted_until_it_has_counted_itself_and_tells_later_ones(graph_sizes):
    step, decoder, network = graph_sizes.STEP, graph_sizes.DECODER, torch.nn.Identity()
    stages = graph_sizes.Stages({step: (network, 100), decoder: (network, 100)})
    guess = graph_sizes.of(step, network, 100)
    assert stages.needed(step) == guess[0], "whole, before there is a plan"
    stages.plan = core.memory.Plan()
    stages.plan.follow("low")
    stages.plan.by_blocks.discard(decoder)
    assert (stages.needed(step), stages.needed(decoder)) == (guess[1], graph_sizes.of(decoder, network, 100)[0])
    for stage, whole in ((step, 700), (decoder, 300)):
        stages.plan.note(stage, core.memory.Size(whole, inputs=30, block=20))
    assert (stages.needed(step), stages.needed(decoder)) == (50, 300)
    assert graph_sizes.of(step, network, 100) == guess
    stages.plan.note(core.memory.GUIDED, core.memory.Size(1000, inputs=30, block=20))  # of no network alone
    stages.remember()
    assert graph_sizes.of(step, network, 200) == (1400, 100)


@pytest.mark.parametrize("family", FACTORS)
def test_the_first_guess_is_enough_for_real_sizes(graph_sizes, family):
    """Their graphs were counted by tests/benchmarks/memory.py; ComfyUI's estimates are worked out by its formulas.

    They are `BaseModel.memory_required`, of two rows, and `VAE.memory_used_decode`, in 2 bytes a number.
    """
    (row,) = (row for name, row in COUNTED["rows"].items() if name.startswith(family))
    side, factor = FACTORS[family]
    running = {"step": 2 * side**2 * 2 * 0.01 * factor * 2**20, "decode": 2178 * side**2 * 64 * 2}
    for stage, name in ((graph_sizes.STEP, "step"), (graph_sizes.DECODER, "decode")):
        counted = row[name]["whole"], row[name]["inputs"] + row[name]["block"]
        guess = graph_sizes.of(stage, torch.nn.Identity(), running[name])
        assert all(need <= enough for need, enough in zip(counted, guess, strict=True)), (stage, counted, guess)
    if family == "SDXL":
        assert counted[0] > 0.9 * guess[0], "the guess is no more than what the largest needs"
