"""The noise-to-sample map M(z) of the paper's Section 1.1.2, and its backward pass in stages.

One tensor's way through this file:

    x_T = noise.initial --start--> x --step, step, ..--> last x --finish--> latent --decode--> images  (`sample`)
    noise.injected[i] enters at its step

    d_images --decode's VJP--> d_latent --steps backwards--> d_x --start's VJP--> Noise of gradients (`Pullback`)

The backward pass is not one autograd graph. Every stage is re-run with grad from what the forward pass stored (one
x per step), differentiated, and freed, so that the peak memory is one network call's graph whatever the number of
steps. `memory` says what is done instead where there is more of it, or less: see `memory.py`.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from .blocks import Blocks
from .checks import check_finite, check_whole
from .in_place import InPlace
from .memory import DECODER, STEP, Plan, check_memory, free_bytes
from .noise import Noise
from .precision import outside_autocast, wide
from .schedule import Schedule, check_eta, sde_step, step_coefficients
from .tiles import fits, gradient_by_tiles
from .words import counted

LOST_GRADIENT = (
    "the {stage} gave a result without gradient, so nothing can be optimised through it. Likely causes: another node"
    " left torch's gradients off globally, the model runs under no_grad or inference_mode inside, or its attention"
    " kernel has no backward pass. Remove the patch or node that does so"
)


@dataclass
class SampleMap:
    """The map from noise to pictures of one model, prompt and schedule.

    Example:
        >>> def denoise(x, sigma):  # a model that always finds half of x
        ...     return x / 2
        >>> sample_map = SampleMap(denoise, Schedule([2.0, 1.0, 0.0]), shape=(1, 3, 8, 8), eta=0.0)
        >>> images = sample_map.sample(sample_map.randn(seed=0))
        >>> images.shape
        torch.Size([1, 3, 8, 8])

    Attributes:
        denoise: (x (B, ...), sigma (B,)) -> denoised, k-diffusion's convention, guidance applied. It must be a pure
            function of its arguments and accept any multiple of B rows (perturbed candidates, candidate-major).
        schedule: the noise levels.
        shape: of the latent, (B, C, H, W); further dimensions, such as (B, C, F, H, W), are kept as they are.
        eta: in [0, 1]; 0 is the ODE, where only x_T matters, 1 the paper's SDE.
        start: initial noise -> x at schedule.sigmas[0], differentiable; default: pure noise, times sigma for flow and
            sqrt(1 + sigma^2) for "vp", as DDIM starts.
        finish: x at the last sigma -> latent; default: the same.
        decode: latent -> images (B, 3, H, W), or of videos (B, F, 3, H, W), RGB, nominally [0, 1] and not clamped;
            default: the latent itself.
        prompts: the B prompts, handed to rewards, or None.
        model: the model's `fingerprint`, saved with a noise to tell which model it was made for; None: unknown.
        mask: broadcastable to `shape`; entries where it is 0 are not optimised (inpainting). None: all are.
        part: which noises are optimised: "all", "initial" (x_T alone), "injected" (all but x_T), "first K" or "last K"
            of the injected noises.
        most_rows: most pictures sampled in one call when candidates are evaluated; None: all at once.
        keep_graphs: True is memory "fast", False "step", where `memory` is None.
        on_step: called as on_step(phase, index, total) before each stage, phase "forward", "decode" or "backward";
            raise from it to interrupt.
        rerun_tolerance: largest relative difference (root mean square) between a step and its re-run.
        device: where its noise belongs: `randn` draws it there, and `optimize` moves it there; None: wherever it is.
        judge_denoised: for a schedule that ends above 0: the latent, which is decoded and judged, is the last step's
            denoised and not the last x, which has noise left in it and is to be had from `noisy_latent`.
        unguided: (x, sigma) -> the two that guidance is made of: denoised with the prompt, and without it, which is
            None where the model has no such thing. Any sigma may be asked for. None: there is but `denoise`.
        memory: what of the graphs is kept: "fast", all steps' from forward to backward, where a model that keeps a
            state between calls is not noticed; "step", none, each step is run again; "low", again and block by block;
            "auto", the fastest of these that fits into the memory that is free; or the number of GiB that graphs may
            take. Steps of a model that changes in place what its gradient needs are run again all the same (`InPlace`).
        blocks: the `Blocks` of the networks that `denoise` calls; without, nothing goes block by block.
        decoder_blocks: of those that `decode` calls.
        free_memory: () -> bytes that are free beside the weights, None where it is not known; default: of `device`.
    """

    denoise: Callable
    schedule: Schedule
    shape: tuple
    eta: float = 1.0
    start: Callable | None = None
    finish: Callable | None = None
    decode: Callable | None = None
    prompts: list | None = None
    model: str | None = None
    mask: torch.Tensor | None = None
    part: str = "all"
    most_rows: int | None = None
    keep_graphs: bool = False
    on_step: Callable | None = None
    rerun_tolerance: float = 0.02
    device: torch.device | str | None = None
    judge_denoised: bool = False
    unguided: Callable | None = None
    memory: str | float | None = None
    blocks: Blocks | None = None
    decoder_blocks: Blocks | None = None
    free_memory: Callable | None = None

    def __post_init__(self):
        check_memory(self.memory)
        self.shape, self.eta = tuple(self.shape), check_eta(self.eta)
        check_finite(rerun_tolerance=self.rerun_tolerance)
        if self.most_rows is not None:
            check_whole(1, most_rows=self.most_rows)
        # dataclasses.replace hands over the default of the map that it copies, which knows that one's schedule.
        if self.start is None or getattr(self.start, "__func__", None) is SampleMap._pure_noise:
            self.start = self._pure_noise
        self.finish = self.finish or _same
        self.in_place = InPlace()
        self._kept_entries = {}  # of `_entries`
        free = self.free_memory or partial(free_bytes, "cpu" if self.device is None else self.device)
        self._plan = Plan(self.blocks, self.decoder_blocks, free)
        optimised_injected(self.part, self.injected)  # raises for an unknown part
        self.decode = self.decode or _same
        if self.prompts is not None and len(self.prompts) != self.shape[0]:
            raise ValueError(f"{len(self.prompts)} prompts for a batch of {self.shape[0]}; expected one per picture")

    @property
    def plan(self):
        """The `Plan` of its pullbacks, which follows `memory`, or else `keep_graphs`."""
        self._plan.follow(self.memory or ("fast" if self.keep_graphs else "step"))
        return self._plan

    @property
    def injected(self):
        """L, the number of noises that a run injects: one for each step that can, none for the ODE (eta 0)."""
        return self.schedule.injected if self.eta > 0 else 0

    @property
    def network_calls(self):
        """How often one run calls the model: once for each step."""
        return self.schedule.steps

    @property
    def stages(self):
        """How often one pass, forward or backward, calls `on_step`: once for each network call and the decode."""
        return self.network_calls + 1

    @property
    def settings(self):
        """What decides, beside the noise, which picture comes out; saved with a noise as `Noise.settings`."""
        schedule = self.schedule
        known = {
            "sigmas": list(schedule.sigmas), "family": schedule.family, "s_noise": schedule.s_noise, "eta": self.eta,
            "model": self.model,
        }  # fmt: skip
        return {name: value for name, value in known.items() if value is not None}

    def check_settings(self, noise):
        """Raise ValueError unless a search here may start from `noise`.

        It must be of as many pictures as this map, and be made with the settings of this map. A setting that the noise
        does not record is not compared, so `dataclasses.replace(noise, settings={})` is how to try a noise with another
        model on purpose.
        """
        self.check(noise)
        if noise.batch != self.shape[0]:
            raise ValueError(f"the noise is of {noise.batch} pictures; expected {self.shape[0]}, or one item of it")
        # A noise that says how it was made, but of no sampler, was made by steps of `sde_step`.
        known = {"sampler": None, **noise.settings} if "sigmas" in noise.settings else noise.settings
        for name, ours in {"sampler": None, **self.settings}.items():
            theirs = known.get(name, ours)
            if not _same_setting(theirs, ours):
                raise ValueError(
                    f"the noise was made with {name} {_short(theirs)}, but here it is {_short(ours)}: it samples to"
                    " another picture. Use the model, steps, scheduler, sampler and eta it was made with, or give the"
                    " noise without its settings (DNO Load Noise has a switch for that)"
                )

    def check(self, noise):
        """Raise ValueError unless `noise` has this map's shape; any number of candidates may be in its batch."""
        expected = (self.injected, *self.shape)
        found = tuple(noise.injected.shape)
        if found[0] != expected[0] or found[2:] != expected[2:] or found[1] % expected[1]:
            raise ValueError(
                f"noise is {tuple(noise.initial.shape)} with {found[0]} injected{_made(noise)}; expected {self.shape}"
                f" with {expected[0]} ({counted(self.shape[0], 'picture')}, {self.schedule.steps} steps,"
                f" {self._sampled_by}). Set batch size, picture size, steps and eta as they were when it was made"
            )

    @property
    def _sampled_by(self):
        return f"eta {self.eta}"

    def calls(self, candidates):
        """Return how many calls it takes to sample `candidates` batches, at most `most_rows` pictures in each."""
        in_one = max(self.most_rows // self.shape[0], 1) if self.most_rows else candidates
        return math.ceil(candidates / in_one)

    def candidates_in_one_call(self, candidates):
        """Return how many of `candidates` batches are sampled in one call, about as many in each."""
        return math.ceil(candidates / self.calls(candidates))

    def randn(self, seed=0):
        """Draw true noise for this map (`Noise.randn`)."""
        noise = Noise.randn(self.shape, self.injected, seed)
        return noise if self.device is None else noise.to(self.device)

    @property
    def optimises_everything(self):
        """Whether every entry of z is optimised, so that no mask is needed."""
        return self.mask is None and self.part == "all"

    def moved(self, noise, flat):
        """Return flat noise (.., B, n) where z is optimised, and `noise`'s own entries elsewhere: those stay."""
        if self.optimises_everything:
            return flat
        return torch.where(self.active_entries(noise), flat, noise.flat())

    def active(self, noise):
        """Return B flat vectors, each picture's entries of z that are optimised, x_T's first: a list, or (B, n)."""
        if self.optimises_everything:
            return noise.flat()
        return [z.index_select(0, place) for z, place in zip(noise.flat(), self._places(noise), strict=True)]

    def active_initial(self, noise):
        """Return B flat vectors, each picture's optimised entries of x_T alone, as `active`."""
        return self.active(Noise(noise.initial, noise.injected[:0]))

    def active_noises(self, noise):
        """Return of how many noises there are entries in `active`: x_T, 0 or 1, and the injected ones."""
        injected = optimised_injected(self.part, self.injected)[: len(noise.injected)]
        return int(self.part in ("all", "initial")), len(injected)

    def masked(self, noise):
        """Return `noise` (of gradients) with the entries that are not optimised set to 0."""
        if self.optimises_everything:
            return noise
        return noise.with_flat(torch.where(self.active_entries(noise), noise.flat(), 0.0))

    def with_active(self, noise, vectors):
        """Return a Noise of zeros but for its optimised entries, from what `active` returns: a list, or (B, n)."""
        if self.optimises_everything:
            flat = vectors if torch.is_tensor(vectors) else torch.stack(vectors)
            return noise.with_flat(flat.to(noise.initial))
        flat = torch.zeros_like(noise.flat())
        for row, place, vector in zip(flat, self._places(noise), vectors, strict=True):
            row.index_add_(0, place, vector.to(row))
        return noise.with_flat(flat)

    @torch.no_grad()
    def latent(self, noise):
        """Return the latent that `noise` samples to, of `shape`, without gradient."""
        (x,) = deque(self._walk(self.here(noise)), maxlen=1)  # nothing is kept of the earlier ones
        return self.to_latent(x)

    def noisy_latent(self, noise):
        """Return the latent with the noise that the schedule leaves in it; with `judge_denoised` alone it differs."""
        return replace(self, judge_denoised=False).latent(noise)

    def to_latent(self, x):
        """Return the latent of the last x; denoised is one already."""
        return x if self.judge_denoised else self.finish(x)

    @torch.no_grad()
    def images(self, latent):
        """Return the pictures of a latent, (B, 3, H, W), without gradient."""
        self.report("decode", 0, 1)
        return self.decode(latent)

    def sample(self, noise):
        """Return the pictures that `noise` samples to, (B, 3, H, W), without gradient."""
        return self.images(self.latent(noise))

    def pullback(self, noise):
        """Sample with what the backward pass needs.

        Returns:
            images: (B, 3, H, W), detached.
            vjp: a `Pullback`; vjp(d_images) is the Noise of gradients, once.
        """
        vjp = Pullback(self, self.here(noise))
        return vjp.images, vjp

    def here(self, noise):
        """Return `noise` on this map's device: one that was loaded from a file is on the CPU.

        One that was made in inference mode is copied, so that autograd accepts it.
        """
        noise = noise if self.device is None else noise.to(self.device)
        made_in_inference = noise.initial.is_inference() or noise.injected.is_inference()
        return noise.to(noise.initial.device, copy=True) if made_in_inference else noise

    def _walk(self, noise, denoise=None):
        """Yield the T + 1 samples x_t of one run, each denoised by denoise(x, index)."""
        denoise = denoise or self._denoise
        self.check(noise)
        x = self.start(noise.initial)
        yield x
        for index in range(self.schedule.steps):
            self.report("forward", index)
            x = self.step(x, denoise(x, index), index, noise)
            yield x

    def step(self, x, denoised, index, noise):
        """Return the x that follows step `index` from x (B, ..) and its denoised, with the noise that it injects."""
        if self.is_judged(index):
            return denoised
        sigma, sigma_next = self.schedule.intervals[index]
        injected = noise.injected[index] if index < len(noise.injected) else None
        return sde_step(x, denoised, sigma, sigma_next, self.eta, injected, self.schedule.family, self.schedule.s_noise)

    def coefficients(self, index):
        """Return (c_x, c_denoised, c_noise) of step `index`, what `step` multiplies its three inputs by."""
        if self.is_judged(index):
            return 0.0, 1.0, 0.0
        schedule = self.schedule
        return step_coefficients(*schedule.intervals[index], self.eta, schedule.family, schedule.s_noise)

    def is_judged(self, index):
        """Whether the denoised of step `index` is the latent, so that the noise injected there has no effect."""
        return self.judge_denoised and index == self.schedule.steps - 1

    def _denoise(self, x, index):
        return self.denoise(x, x.new_full((x.shape[0],), self.schedule.sigmas[index]))

    def denoise_with_graph(self, x, index):
        """Return x (B, ..) as a leaf of autograd's graph and the denoised of step `index` that depends on it."""
        x = x.detach().requires_grad_()
        with torch.enable_grad(), self.plan.graph(STEP):
            denoised = self._denoise(x, index)
        if not denoised.requires_grad:
            raise RuntimeError(LOST_GRADIENT.format(stage=f"model (step {index + 1} of {self.schedule.steps})"))
        return x, denoised

    def decode_with_graph(self, latent):
        """Return the pictures of a latent (B, C, H, W) that may have a graph, and theirs."""
        with torch.enable_grad(), self.plan.graph(DECODER):
            return self.decode(latent)

    def report(self, phase, index, total=None):
        """Tell `on_step`, where there is one, that a stage begins."""
        if self.on_step is not None:
            self.on_step(phase, index, total or self.network_calls)

    def _pure_noise(self, initial):
        sigma = self.schedule.sigmas[0]
        return initial * (sigma if self.schedule.family != "vp" else (1 + sigma**2) ** 0.5)

    def active_entries(self, noise):
        """Return (batch, n) booleans, the layout of `Noise.flat`: which entries of z are optimised."""
        if self.optimises_everything:
            count = (1 + len(noise.injected)) * noise.initial[0].numel()
            return torch.ones((), dtype=torch.bool, device=noise.initial.device).expand(noise.batch, count)
        return self._entries(noise)[0].repeat(noise.batch // self.shape[0], 1)

    def _places(self, noise):
        """Return the places of the optimised entries of each picture of `noise`, candidates among them."""
        return self._entries(noise)[1] * (noise.batch // self.shape[0])

    def _entries(self, noise):
        """Return (B, n) booleans, which entries are optimised, and B vectors of the places where; made once."""
        key = noise.initial.device, len(noise.injected), self.part
        made_for, *_ = self._kept_entries.get(key, (None,))
        if key not in self._kept_entries or made_for is not self.mask:
            mask = torch.ones(self.shape, dtype=torch.bool) if self.mask is None else self.mask
            one = (mask > 0).to(noise.initial.device).expand(self.shape)
            injected = torch.zeros((len(noise.injected), *self.shape), dtype=torch.bool, device=one.device)
            for index in optimised_injected(self.part, self.injected)[: len(injected)]:
                injected[index] = one
            initial = one if self.part in ("all", "initial") else torch.zeros_like(one)
            entries = Noise(initial, injected).flat()
            places = [row.nonzero().flatten().to(torch.int32) for row in entries]
            self._kept_entries[key] = self.mask, entries, places
        return self._kept_entries[key][1:]


class Pullback:
    """The backward pass of one sampling run: gradients by images or latent in, a Noise of gradients out.

    Single use: whatever happens inside, every graph and every stored sample is freed when it has been called.

    Example:
        >>> sample_map = SampleMap(lambda x, sigma: x / 2, Schedule([1.0, 0.0]), shape=(1, 3, 1, 1), eta=0.0)
        >>> images, vjp = sample_map.pullback(sample_map.randn(seed=0))
        >>> vjp(torch.ones_like(images)).initial.flatten()  # images = x / 2 and x = sqrt(1 + 1) x_T
        tensor([0.7071, 0.7071, 0.7071])

    Attributes:
        images: as the map's `decode` gives them, detached.
        latent: of the map's `shape`, detached.
        graphs: those that are kept: number of a call -> its x and denoised; of whoever asks the model about the picture
            too. Where memory runs out, it is emptied.
    """

    rerun_name = "step"
    """What is run again, in an error's words."""

    def __init__(self, sample_map, noise):
        if torch.is_inference_mode_enabled():
            raise RuntimeError("gradients cannot be taken inside torch.inference_mode(); leave it before optimising")
        self._map, self._noise, self._plan = sample_map, noise, sample_map.plan
        self.graphs = {}  # number of a call -> its x and denoised, with the graph
        self._plan.runs.add(self)
        self._reruns = []  # (index, difference and what is allowed) of each step that was run again
        with torch.no_grad():
            self._samples = self.spared(self._forward)
            self.latent = sample_map.to_latent(self._samples[-1])
            self._plan.longest = max(self.latent.shape[2:], default=0)
            self.images = self.spared(self._decoded)
        if not fits(self.latent, self.images):
            self._plan.longest, self._plan.tile = 0, None

    def _forward(self):
        """Return the samples that the backward pass needs, the last x at the end."""
        return list(self._map._walk(self._noise, self._denoised))

    def _denoised(self, x, index, *sigma):
        """Return denoised without a graph, which is kept, or counted, where the plan says so."""
        sample_map, plan = self._map, self._plan
        if plan.counts(STEP):
            return plan.counted(STEP, lambda: sample_map.denoise_with_graph(x, index, *sigma)[1].detach())
        if index < sample_map.network_calls - plan.kept or "model" in sample_map.in_place.found:
            return sample_map.denoise(x, *sigma) if sigma else sample_map._denoise(x, index)
        self.graphs[index] = sample_map.denoise_with_graph(x, index, *sigma)
        return self.graphs[index][1].detach()

    def _decoded(self):
        self._map.report("decode", 0, 1)
        if not self._plan.counts(DECODER):
            return self._map.decode(self.latent)
        latent = self.latent.detach().requires_grad_()
        return self._plan.counted(DECODER, lambda: self._map.decode_with_graph(latent).detach())

    def spared(self, run, stage=None):
        """Return run(), what runs beside the graphs that are kept: once more without them where memory runs out."""
        return self._plan.retried(run, self.graphs.clear, stage)

    def __call__(self, d_images, d_latent=None):
        """Return d/dz of <d_images, images>: a Noise of gradients, float32 or wider, masked entries 0.

        Args:
            d_images: the shape of `images`, the gradient of the scores by them.
            d_latent: the shape of `latent`, a gradient by it whose <d_latent, latent> is added; or None.
        """
        x = self._stored()[-1].detach().requires_grad_()
        by_decoder = partial(self._decoder_vjp, x, d_images)

        def gradient():
            self._map.report("backward", 0, self._map.stages)
            found = self.spared(partial(self._map.in_place.differentiate, "decoder", by_decoder), DECODER)
            return found if d_latent is None else found + self._latent_vjp(x, d_latent)

        return self._back(gradient)

    def from_latent(self, d_latent):
        """Return d/dz of <d_latent, latent>, for a gradient by the latent where `__call__` takes one by the images."""
        x = self._stored()[-1].detach().requires_grad_()
        return self._back(partial(self._latent_vjp, x, d_latent))

    def _back(self, gradient):
        """Return the Noise of gradients for gradient(), that by the last x; again where blocks must be left whole."""
        try:
            found = self._through_steps(gradient())
            while self._plan.unlike():
                self.graphs.clear()
                found = self._through_steps(gradient())
        finally:
            self.release()
        self._plan.settle()
        return found

    def release(self):
        """Free every graph and stored sample; calling the pullback afterwards is an error."""
        self._samples = self.graphs = self._reruns = None
        self._plan.runs.discard(self)

    def _stored(self):
        if self._samples is None:
            raise RuntimeError("this pullback was used or released already; take a new one from sample_map.pullback")
        return self._samples

    def _decoder_vjp(self, x, d_images):
        if self._plan.tile is not None:
            d_latent = gradient_by_tiles(self._decoded_with_graph, vjp, self.latent, d_images, self._plan.tile)
            return self._latent_vjp(x, d_latent)
        with torch.enable_grad():
            latent = self._map.to_latent(x)
        return vjp(self._decoded_with_graph(latent), x, d_images)

    def _decoded_with_graph(self, latent):
        images = self._map.decode_with_graph(latent)
        if not images.requires_grad:
            raise RuntimeError(LOST_GRADIENT.format(stage="decoder"))
        return images

    def _latent_vjp(self, x, d_latent):
        with torch.enable_grad():
            latent = self._map.to_latent(x)
        return vjp(latent, x, d_latent) if latent is not x else d_latent

    def _through_steps(self, gradient):
        sample_map, schedule = self._map, self._map.schedule
        injected = torch.zeros_like(self._noise.injected, dtype=gradient.dtype)
        for index in reversed(range(schedule.steps)):
            sample_map.report("backward", schedule.steps - index, sample_map.stages)
            c_x, c_denoised, c_noise = sample_map.coefficients(index)
            if index < len(injected):
                injected[index] = c_noise * gradient
            by_denoised = partial(self._step_vjp, index, c_denoised * gradient)
            differentiated = partial(sample_map.in_place.differentiate, "model", by_denoised)
            by_x = self.spared(differentiated, STEP)
            gradient = by_x + c_x * gradient if c_x else by_x  # denoised alone may have another shape than x
        self._check_reruns()
        return sample_map.masked(Noise(self._start_vjp(gradient), injected, self._noise.settings))

    def _step_vjp(self, index, cotangent):
        x, denoised = self._step_graph(index)
        return vjp(denoised, x, cotangent)

    def _step_graph(self, index):
        """Return step `index`'s (x, denoised): kept from the forward pass, or re-run and compared with it."""
        if "model" in self._map.in_place.found:
            self.graphs.clear()  # kept without copies of what the model has changed since
        if index in self.graphs:
            return self.graphs.pop(index)
        x, denoised = self._map.denoise_with_graph(self._samples[index], index)
        again = self._map.step(self._samples[index], denoised.detach(), index, self._noise)
        _, c_denoised, _ = self._map.coefficients(index)
        allowed = self._map.rerun_tolerance * abs(c_denoised) * _size(denoised.detach()) + 1e-6 * _size(again)
        # Read later, all at once: each reading makes the host wait for the device.
        self._reruns.append((index, torch.stack([_size(again - self._samples[index + 1]), allowed])))
        return x, denoised

    def _check_reruns(self):
        """Raise RuntimeError where a step that was run again gave another result than in the forward pass."""
        if not self._reruns:
            return
        indices, found = zip(*self._reruns, strict=True)
        for index, (error, allowed) in zip(indices, torch.stack(found).tolist(), strict=True):
            if error > allowed and error > self._difference_of_kernels(index, most=5 * allowed):
                raise RuntimeError(
                    f"{self.rerun_name} {index + 1} gave another result when it was run again (difference {error:.3g},"
                    f" allowed {allowed:.3g}): the model keeps a state between calls. Remove step caches (TeaCache,"
                    " EasyCache, DeepCache) or random augmentation, or use a solver that needs no gradient"
                )

    @torch.no_grad()
    def _difference_of_kernels(self, index, most):
        """Return what a step's result may differ by from run to run, where a device's kernels add up in any order.

        Four times the difference of two more runs, at most `most`. In half precision at a high guidance scale that can
        be more than the tolerance; a model with a state gives the same twice, or leaves far more.
        """
        first, second = (self._again(index) for _ in range(2))
        return min(4 * _size(first - second).item(), most)

    def _again(self, index):
        x = self._samples[index]
        return self._map.step(x, self._map._denoise(x, index), index, self._noise)

    def _start_vjp(self, gradient):
        initial = self._noise.initial.detach().requires_grad_()
        with torch.enable_grad():
            x = self._map.start(initial)
        if not x.requires_grad:
            raise RuntimeError(LOST_GRADIENT.format(stage="model's noise scaling"))
        return vjp(x, initial, gradient)


def optimised_injected(part, injected):
    """Return the indices of the injected noises that `part` optimises; see `SampleMap.part`."""
    if part in ("all", "initial", "injected"):
        return range(0 if part == "initial" else injected)
    side, _, count = part.partition(" ")
    if side not in ("first", "last") or not count.isdigit() or not 1 <= int(count) <= injected:
        raise ValueError(
            f"part is {part!r}; expected 'all', 'initial', 'injected', 'first K' or 'last K' with K in 1 .. {injected},"
            " the number of injected noises of this schedule and eta"
        )
    return range(int(count)) if side == "first" else range(injected - int(count), injected)


def vjp(output, x, cotangent):
    """Return the gradient of <cotangent, output> by x in the cotangent's dtype, or float32, freeing output's graph.

    Each item's cotangent enters the network scaled to a largest entry of 1, and the factor comes back outside: half
    precision would lose small gradients otherwise.
    """
    cotangent = wide(cotangent)
    scale = cotangent.abs().flatten(1).amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    with outside_autocast(x.device.type):  # it would round the gradients of a float32 graph too
        (gradient,) = torch.autograd.grad(output, x, (cotangent / of_items(scale, cotangent)).to(output))
    gradient = gradient.to(cotangent.dtype)
    return gradient * of_items(scale, gradient)


def of_items(values, like):
    """Return values (B,) in the dtype and on the device of `like`, (B, ..), to multiply its items."""
    return values.to(like).view(-1, *[1] * (like.ndim - 1))


def _size(tensor):
    """Return the root mean square of a tensor's numbers, 0-dim, float32 or wider.

    What is not finite counts as 0: a picture that breaks is ended elsewhere, and must not hide what others have.
    """
    return wide(tensor).square().nan_to_num(0.0, 0.0, 0.0).mean().sqrt()


def _same(value):
    return value


def _same_setting(theirs, ours):
    """Compare two settings; sigmas up to rounding, since they are computed on different devices."""
    if isinstance(ours, list):
        pairs = zip(theirs, ours, strict=False)
        return len(theirs) == len(ours) and all(math.isclose(a, b, rel_tol=1e-4) for a, b in pairs)
    return math.isclose(theirs, ours) if isinstance(ours, float) else theirs == ours


def _made(noise):
    """Return in words what a noise was made with, as far as it records that."""
    steps, eta = (noise.settings.get(name) for name in ("sigmas", "eta"))
    parts = [] if steps is None else [f"{len(steps) - 1} steps"]
    parts += [] if eta is None else [f"eta {eta}"]
    return f" ({', '.join([counted(noise.batch, 'picture'), *parts])})"


def _short(value):
    if isinstance(value, list):
        return f"{', '.join(f'{sigma:.4g}' for sigma in value[:3])}, .. ({len(value)} of them)"
    return repr(value)
