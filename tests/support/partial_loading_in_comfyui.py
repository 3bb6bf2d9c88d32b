"""Search with DNO Sampler on a pretend device that is too small, and print, as JSON, what differs from one that is not.

Run with ComfyUI's folder as the working directory and `--cpu` as the only argument.
"""

import json
import sys

from comfyui_on_the_device import (  # first: it makes the device
    CPU,
    PRETEND,
    SAMPLING,
    inputs,
    mm,
    overwrite_what_was_cast,
    searched,
    stock,
    use,
)

import comfy.model_patcher  # isort: skip
import torch
from comfyui_dno import rewards
from comfyui_dno.core.scoring import exact
from comfyui_dno.nodes import graph_sizes, residency, search

# What a stage needs beside weights, so that the budgets below say which weights fit.
BESIDE = 1e6


class Gradient:
    """A solver that keeps the first gradient, and how many of the model's weights were outside of the device then."""

    def __init__(self, model):
        self.layers = [layer for layer in model.model.modules() if getattr(layer, "weight", None) is not None]

    def fresh(self):
        return self

    def step(self, problem, noise):
        evaluation, gradient = problem.gradient(noise)
        self.found = gradient.flat().cpu()
        self.outside = sum(layer.weight.device.type == "cpu" for layer in self.layers)
        return noise, evaluation


class WithTower(rewards.Brightness):
    """Brightness, for which a network must be in memory that is as large as the model."""

    def __init__(self, size):
        super().__init__()
        tower = torch.nn.Sequential(torch.nn.Linear(size // 4000, 1000))
        self.patcher = comfy.model_patcher.ModelPatcher(tower, PRETEND, CPU)

    def __call__(self, images, prompts=None):
        residency.load_tower(self.patcher, BESIDE)
        return super().__call__(images, prompts)


class Interrupted(Gradient):
    """The same, with notes on the graphs that are kept before and after the reward is asked."""

    def step(self, problem, noise):
        images, vjp = problem.sample_map.pullback(noise)
        self.notes = {"kept": len(vjp.graphs)}
        scores, d_images = exact(problem.reward, images)
        plan = problem.sample_map.plan
        self.notes |= {"kept after": len(vjp.graphs), "memory": plan.memory}
        self.found = vjp(d_images).flat().cpu()
        evaluation, again = problem.gradient(noise)
        self.notes["error of the next"] = ((again.flat().cpu() - self.found).norm() / self.found.norm()).item()
        self.notes["counted"] = sorted(plan.sizes)
        return noise, evaluation


def give(budget, state="NORMAL_VRAM"):
    """Let ComfyUI believe that the device has so many bytes, of which the weights that it loads take theirs."""

    known = {}

    def free(device=None, torch_free_too=False):
        # ComfyUI takes a model that it loads off its list meanwhile.
        known.update({id(each.model.model): each.model for each in mm.current_loaded_models if each.device == PRETEND})
        left = max(budget - sum(patcher.loaded_size() for patcher in known.values()), BESIDE)
        return (left, 0) if torch_free_too else left

    mm.get_free_memory = free
    mm.vram_state = mm.VRAMState[state]
    mm.minimum_inference_memory, mm.extra_reserved_memory = lambda: 0, lambda: 0
    mm.unload_all_models()


def with_lora(model):
    """Return the model with a change of every layer that makes queries, which is not merged where they are outside."""
    model, generator = model.clone(), torch.Generator().manual_seed(9)
    weights = {key: weight for key, weight in model.model.state_dict().items() if key.endswith("to_q.weight")}
    model.add_patches({key: (0.1 * torch.randn(w.shape, generator=generator),) for key, w in weights.items()}, 1.0)
    return model


@torch.inference_mode()
def sampled(given):
    """Return the latent of a stock KSampler."""
    model, positive, negative, latent, _ = given
    settings = SAMPLING | {"sampler_name": "euler", "latent_image": latent}
    return stock.KSampler().sample(model, positive=positive, negative=negative, **settings)[0]["samples"]


def measured(given, *device):
    """Return what a search and the stock sampler find on a device."""
    give(*device)
    before, solver = sampled(given), Gradient(given[0])
    # Block by block, as where models take turns otherwise, sums are of another order.
    _, history = searched(1, given, solver=solver, memory="step")
    return solver.found, solver.outside, before, sampled(given), history.warnings


def small_graph():
    """Return what `searched` takes: the embedded model with a LoRA."""
    model, *others, settings = inputs()
    settings["vae"].memory_used_decode = lambda *args: BESIDE
    return with_lora(model), *others, settings


def in_the_middle(given):
    """Return what is found of searches whose reward's network takes the place of the models, which fit until then."""
    model, *others, settings = given
    both = model.model_size() + settings["vae"].patcher.model_size()
    found = {}
    for name, budget, memory in (("large", 1e12, "step"), ("fast", both + 4 * BESIDE, "fast")):
        give(budget)
        solver = Interrupted(model)
        changed = settings | {"reward": WithTower(model.model_size())}
        searched(1, (model, *others, changed), solver=solver, memory=memory)
        found[name] = solver
    large, small = (solver.found for solver in found.values())
    return found["fast"].notes | {"error": ((small - large).norm() / large.norm()).item()}


def main():
    """Measure devices of several sizes, and dynamic video memory; print the differences from a large device."""
    use(PRETEND, PRETEND)
    search.memory_of_a_call = lambda *args: BESIDE
    graph_sizes.Stages.sizes = lambda *args: (BESIDE, BESIDE)
    overwrite_what_was_cast()
    given, large = small_graph(), (1e12,)
    weights, beside = given[0].model_size(), BESIDE
    devices = {
        "half of the model fits": (given, weights / 2 + beside), "one at a time fits": (given, 1.1 * weights + beside),
        "no weight stays": (given, 1e12, "NO_VRAM"),
    }  # fmt: skip
    gradient, outside, stock_latent, _, warnings = measured(given, *large)
    assert outside == 0 and not warnings, (outside, warnings)
    report = {"in the middle": in_the_middle(given)}
    if hasattr(comfy.model_patcher, "ModelPatcherDynamic"):
        import dynamic_memory

        mm.unload_all_models()
        dynamic_memory.use()
        devices["dynamic video memory"] = small_graph(), *large
    for name, device in devices.items():
        found, outside, before, after, warnings = measured(*device)
        report[name] = {
            "gradient": ((found - gradient).norm() / gradient.norm()).item(), "outside": outside,
            "stock": ((before - stock_latent).norm() / stock_latent.norm()).item(),
            "unharmed": torch.equal(before, after), "warnings": warnings,
        }  # fmt: skip
    sys.stdout.write("\n" + json.dumps(report))


main()
