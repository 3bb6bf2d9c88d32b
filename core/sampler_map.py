"""A sampler of k-diffusion's kind as the noise-to-sample map: its own arithmetic is differentiated as it stands.

`SampleMap` takes the steps itself, each linear in x, denoised and noise. A sampler such as DPM-Solver++ takes others:
it calls the network several times a step, or mixes in the results of earlier steps. Here such a function runs whole:

    sampler(model, x, sigmas, noise_sampler, callback) -> x

    model(x, sigma)                   denoised, x (rows, ..) and sigma (rows,)
    noise_sampler(sigma, sigma_next)  the noise that this part of the way injects, unit variance
    callback({"denoised": .., ..})    told once a step

Its arithmetic is cheap and stays in one autograd graph. The network is not in that graph: each call is a node of it
that stores its x, runs again with a graph when the gradient comes back, and is freed (`_NetworkCall`), so that the peak
memory is one call's, as in `SampleMap`.

`sampler_trial.py` finds out which noises a sampler asks for.
"""

import itertools
import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch.autograd.function import once_differentiable

from .memory import STEP
from .noise import Noise
from .sample_map import LOST_GRADIENT, Pullback, SampleMap, _size, vjp


@dataclass(frozen=True)
class SamplerTraits:
    """What a sampler asks of its noise and its network at given sigmas.

    A `brownian` sampler expects the increments of one Brownian motion: what it is given for overlapping parts of the
    way must be correlated as they are. So the way is cut at every end that it asks for, each cell has an independent
    noise, and a part of several cells gets their sum, weighted by the roots of their lengths:

        noise(a, b) = sum over cells c in (b, a) of sqrt(|c| / (a - b)) w_c

    Example:
        >>> traits = SamplerTraits(((4.0, 2.0), (4.0, 1.0)), calls=2, brownian=True)
        >>> traits.cells
        ((4.0, 2.0), (2.0, 1.0))
        >>> noise_sampler = traits.noise_sampler(torch.tensor([[3.0], [6.0]]))  # one number for each cell
        >>> noise_sampler(4.0, 2.0), noise_sampler(4.0, 1.0)  # (sqrt(2) * 3 + 6) / sqrt(3)
        (tensor([3.]), tensor([5.9136]))

    Attributes:
        intervals: pairs (sigma, sigma_next) in the order in which it asks for their noise.
        calls: number of network calls.
        brownian: whether they are parts of one Brownian motion; else each has a noise of its own.
        silent: numbers of the intervals whose noise is without effect; those have none.
        wrong_gradient: why its gradient must not be used, a sentence; '' where it is right.
    """

    intervals: tuple
    calls: int
    brownian: bool = False
    silent: tuple = ()
    wrong_gradient: str = ""

    @property
    def audible(self):
        """Numbers of the intervals whose noise has an effect."""
        return tuple(number for number in range(len(self.intervals)) if number not in self.silent)

    @property
    def cells(self):
        """The intervals that have an independent noise each, L pairs (sigma, sigma_next)."""
        audible = tuple(self.intervals[number] for number in self.audible)
        if not self.brownian:
            return audible
        ends = sorted({end for interval in audible for end in interval}, reverse=True)
        return tuple(zip(ends[:-1], ends[1:], strict=True))

    def noise_sampler(self, injected):
        """Return what a sampler asks in one run, answered by the independent noises (L, B, ..) of the cells."""
        numbers = iter(range(len(self.intervals)))

        def noise_sampler(sigma, sigma_next):
            number = next(numbers, None)
            if number is None:
                raise RuntimeError(
                    f"the sampler asks for more noises than the {len(self.intervals)} of its trial, so its steps depend"
                    " on the picture; expected fixed steps. Use another sampler"
                )
            return self._noise(number, injected)

        return noise_sampler

    def _noise(self, number, injected):
        if number in self.silent:
            return injected.new_zeros(injected.shape[1:])
        if not self.brownian:
            return injected[self.audible.index(number)]
        high, low = self.intervals[number]
        inside = [(cell, a - b) for cell, (a, b) in enumerate(self.cells) if low <= b and a <= high]
        return sum(math.sqrt(length / (high - low)) * injected[cell] for cell, length in inside)


@dataclass
class SamplerMap(SampleMap):
    """The map from noise to pictures that a sampler of k-diffusion's kind makes.

    Example:
        >>> def euler(model, x, sigmas, noise_sampler, callback):
        ...     for sigma, sigma_next in zip(sigmas, sigmas[1:]):
        ...         denoised = model(x, sigma.expand(len(x)))
        ...         callback({"denoised": denoised})
        ...         x = denoised + sigma_next / sigma * (x - denoised)
        ...     return x
        >>> schedule = core.Schedule([2.0, 1.0, 0.0])
        >>> traits = core.try_sampler(euler, schedule.sigmas)
        >>> sample_map = SamplerMap(lambda x, sigma: x / 2, schedule, (1, 3, 4, 4), sampler=euler, traits=traits)
        >>> ode = core.SampleMap(lambda x, sigma: x / 2, schedule, (1, 3, 4, 4), eta=0.0)
        >>> noise = ode.randn(seed=0)
        >>> torch.allclose(sample_map.sample(noise), ode.sample(noise))
        True

    Attributes:
        sampler: as above; `eta` is without meaning, the sampler has its own.
        traits: its `SamplerTraits` at these sigmas.
        sampler_settings: what tells it from other samplers, JSON types; saved with a noise.
    """

    sampler: Callable = field(kw_only=True)
    traits: SamplerTraits = field(kw_only=True)
    sampler_settings: dict = field(default_factory=dict, kw_only=True)

    @property
    def injected(self):
        return len(self.traits.cells)

    @property
    def network_calls(self):
        return self.traits.calls

    @property
    def settings(self):
        return {key: value for key, value in super().settings.items() if key != "eta"} | self.sampler_settings

    @property
    def _sampled_by(self):
        return f"the sampler {self.sampler_settings.get('sampler', 'given')}"

    @torch.no_grad()
    def latent(self, noise):
        index = itertools.count()

        def model(x, sigma):
            self.report("forward", next(index))
            return self.denoise(x, sigma)

        return self.to_latent(self.sampled(self.here(noise), model))

    def pullback(self, noise):
        vjp = SamplerPullback(self, self.here(noise))
        return vjp.images, vjp

    def sampled(self, noise, model):
        """Return the last x of the sampler's run with `model`; with `judge_denoised` what it last told as denoised."""
        self.check(noise)
        told = [None]
        x = self.start(noise.initial)
        sigmas = torch.tensor(self.schedule.sigmas, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        noise_sampler = self.traits.noise_sampler(noise.injected)
        x = self.sampler(model, x, sigmas, noise_sampler, lambda step: told.__setitem__(0, step["denoised"]))
        if not self.judge_denoised:
            return x
        if told[0] is None:
            raise ValueError(
                f"{self._sampled_by} told its callback nothing; expected what the model saw in each step, of which the"
                " last is judged (judge_denoised)"
            )
        return told[0]

    def denoise_with_graph(self, x, index, sigma=None):
        if sigma is None:
            raise ValueError(
                "this solver changes the steps of the map itself, which those of another sampler are not; use another"
                " solver, or take the sampler away (the DNO Sampler then takes its own steps)"
            )
        x = x.detach().requires_grad_()
        with torch.enable_grad(), self.plan.graph(STEP):
            denoised = self.denoise(x, sigma)
        if not denoised.requires_grad:
            raise RuntimeError(LOST_GRADIENT.format(stage=f"model (call {index + 1} of {self.network_calls})"))
        return x, denoised


class SamplerPullback(Pullback):
    """The backward pass of one run of a `SamplerMap`; used as a `Pullback` is.

    Example:
        >>> def one_step(model, x, sigmas, noise_sampler, callback):
        ...     return model(x, sigmas[:1].expand(len(x)))
        >>> traits = core.try_sampler(one_step, [1.0, 0.0])
        >>> schedule, shape = core.Schedule([1.0, 0.0]), (1, 3, 1, 1)
        >>> sample_map = core.SamplerMap(lambda x, sigma: x / 2, schedule, shape, sampler=one_step, traits=traits)
        >>> images, vjp = sample_map.pullback(sample_map.randn(seed=0))
        >>> vjp(torch.ones_like(images)).initial.flatten()  # images = x / 2 and x = sqrt(1 + 1) x_T
        tensor([0.7071, 0.7071, 0.7071])
    """

    rerun_name = "network call"

    def _forward(self):
        """Run the sampler with a graph of its arithmetic; return the last x, detached."""
        self._calls = []
        initial, injected = (part.detach().requires_grad_() for part in (self._noise.initial, self._noise.injected))
        with torch.enable_grad():
            self._last = self._map.sampled(Noise(initial, injected), self._model)
        if not self._last.requires_grad:
            raise RuntimeError(LOST_GRADIENT.format(stage="sampler"))
        self._leaves = initial, injected
        return [self._last.detach()]

    def _model(self, x, sigma):
        # Most samplers run under torch.no_grad(). From their first network call on they have gradients all the same;
        # where no_grad() ends it restores what was before.
        torch.set_grad_enabled(True)
        return _NetworkCall.apply(x, sigma, self)

    def _called(self, x, sigma):
        """Run the network; return the number of the call and denoised, detached."""
        index = len(self._calls)
        self._map.report("forward", index)
        denoised = self._denoised(x.clone(), index, sigma)
        # Copied: a sampler may go on in place.
        self._calls.append((x.clone(), sigma, denoised.clone()))
        return index, denoised

    def _through_call(self, index, gradient):
        """Return the gradient by a call's x for that by its denoised."""
        self._map.report("backward", len(self._calls) - index, self._map.stages)
        by_denoised = partial(self._call_vjp, index, gradient)
        return self.spared(partial(self._map.in_place.differentiate, "model", by_denoised), STEP)

    def _call_vjp(self, index, gradient):
        x, denoised = self._call_graph(index)
        return vjp(denoised, x, gradient)

    def _call_graph(self, index):
        if "model" in self._map.in_place.found:
            self.graphs.clear()  # kept without copies of what the model has changed since
        if index in self.graphs:
            return self.graphs.pop(index)
        x, sigma, first = self._calls[index]
        x, denoised = self._map.denoise_with_graph(x, index, sigma)
        allowed = self._map.rerun_tolerance * _size(first)
        self._reruns.append((index, torch.stack([_size(denoised.detach() - first), allowed])))
        return x, denoised

    def _again(self, index):
        x, sigma, _ = self._calls[index]
        return self._map.denoise(x, sigma)

    def _through_steps(self, gradient):
        # Kept, for the case that it must be gone through again (`Pullback._back`).
        gradients = torch.autograd.grad(
            self._last, self._leaves, gradient.to(self._last), retain_graph=True, allow_unused=True,
            materialize_grads=True,
        )  # fmt: skip
        self._check_reruns()
        return self._map.masked(Noise(*gradients, self._noise.settings))

    def release(self):
        super().release()
        self._last = self._leaves = self._calls = None


class _NetworkCall(torch.autograd.Function):
    """One call of the network in the graph of a sampler's arithmetic.

    Its pullback holds that graph, so the graph must not hold the pullback: autograd's nodes are hidden from Python's
    garbage collector, which would never free the two of a run that was interrupted.
    """

    @staticmethod
    def forward(ctx, x, sigma, pullback):
        ctx.pullback = weakref.ref(pullback)
        ctx.index, denoised = pullback._called(x, sigma)
        return denoised

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return ctx.pullback()._through_call(ctx.index, gradient), None, None
