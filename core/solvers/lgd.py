"""Loss-guided diffusion (Song et al. 2023a), the paper's tuning-free baseline (Section 1.1.3), on the same map.

LGD steers one sampling run: at each step the score of p(x_t) is joined by the gradient of ln E[exp(scale r(x_0))], the
expectation over x_0 ~ N(D, s_t^2 I) around the denoised D, s_t = sigma / sqrt(alpha^2 + sigma^2), by n samples:

    g_t = d/dx_t ln mean_i exp(scale * r(decode(D(x_t) + s_t xi_i)))

By Tweedie's formula the score's change g_t shifts D by (sigma^2 / alpha) g_t.

[derived] With eta > 0 such a shift is a change of the step's injected noise, w_t' = w_t + c_denoised (sigma^2 / alpha)
g_t / c_noise (the coefficients of `step_coefficients`). So a guided run is M(z') of an ordinary noise z': its
probability can be judged, it can be saved, replayed, and optimised further. The last step, which injects nothing, is
not guided.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch

from ..checks import check_finite, check_whole
from ..guided import guidance
from ..noise import Noise
from ..sample_map import of_items
from ..schedule import signal_level, step_coefficients
from ..scoring import exact
from .base import Solver, refuse_another_sampler


@dataclass(frozen=True)
class LGD(Solver):
    """Loss-guided diffusion: one iteration is one guided run; use `optimize(.., iterations=1)`.

    A second iteration guides the run of the noise that the first one found once more.

    Example:
        >>> sample_map = core.SampleMap(lambda x, sigma: x / 2, core.Schedule([2.0, 1.0, 0.0]), shape=(1, 3, 4, 4))
        >>> noise = sample_map.randn(seed=0)
        >>> result = core.optimize(sample_map, rewards.Brightness(), noise, LGD(samples=4), iterations=1)
        >>> rewards.Brightness()(result.images) > rewards.Brightness()(sample_map.sample(noise))
        tensor([True])

    Attributes:
        samples: n, samples of x_0 decoded and scored in each step; the paper's 10 or 100.
        scale: of the reward in the exponent, 1 / lambda of the tilted law p(x) exp(r(x) / lambda).
        seed: of the samples.
    """

    samples: int = 10
    scale: float = 1.0
    seed: int = 0
    needs_gradient = True

    def __post_init__(self):
        if self.samples < 1 or not self.scale > 0:
            raise ValueError(f"samples is {self.samples} and scale {self.scale}; expected 1 or more, and more than 0")
        check_whole(1, samples=self.samples)
        check_finite(scale=self.scale)

    def graphs(self, calls, iterations):
        return 1

    def guesses(self, calls):
        return self.samples

    def stages(self, sample_map):
        return sample_map.stages + sample_map.injected

    def step(self, problem, noise):
        """Evaluate `noise`; return (the noise of the guided run that begins with it, the Evaluation of `noise`)."""
        sample_map = problem.sample_map
        refuse_another_sampler(self, sample_map)
        if len(noise.injected) == 0:
            raise ValueError(
                "LGD steers through the noise that each step injects, and here none does; expected eta > 0 and two"
                " steps or more"
            )
        evaluation = problem.evaluate(noise)
        free = noise.with_flat(sample_map.active_entries(noise)).injected
        injected, norms = noise.injected.clone(), {}
        x = sample_map.start(noise.initial)
        for index, (sigma, sigma_next) in enumerate(sample_map.schedule.intervals[: len(injected)]):
            if sample_map.is_judged(index):
                break  # what it injects is left in the sample, and nobody judges it
            sample_map.report("forward", index)
            family, s_noise = sample_map.schedule.family, sample_map.schedule.s_noise
            c_x, c_denoised, c_noise = step_coefficients(sigma, sigma_next, sample_map.eta, family, s_noise)
            alpha, level = signal_level(sigma, family), s_noise * sigma
            denoised, gradient = self._guidance(problem, x, index, level / math.hypot(alpha, level))
            norms[f"the guidance of step {index + 1}"] = gradient.flatten(1).norm(dim=1)
            gradient = torch.where(gradient.isfinite(), gradient, 0.0)
            if c_noise > 0 and alpha > 0:
                injected[index] += free[index] * (c_denoised * level**2 / alpha / c_noise * gradient).to(injected)
            x = c_x * x + c_denoised * denoised + c_noise * injected[index]
        if norms:
            problem.end_where_not_finite(norms)  # all at once: each look makes the host wait
        return Noise(noise.initial, injected, noise.settings), evaluation

    def _guidance(self, problem, x, index, spread):
        """Return the denoised at x (B, ..) and d/dx ln mean_i exp(scale * r(x_0 sample i)), the shape of x."""
        xi = spread * torch.stack([problem.draw(sample, x, (self.seed, index)) for sample in range(self.samples)])
        return guidance(problem.sample_map, x, index, partial(self._by_images, problem), around=xi)

    def _by_images(self, problem, images):
        """Return the gradient of ln mean_i exp(scale * r(image i)) by the images, (samples B, ..)."""
        prompts = problem.sample_map.prompts
        scores, d_images = exact(problem.reward, images, prompts and list(prompts) * self.samples)
        usable = scores.isfinite()  # a sample without a score has no say
        scores = scores.masked_fill(~usable, -torch.inf)
        weights = (self.scale * scores.unflatten(0, (self.samples, -1))).softmax(dim=0)
        d_images = torch.where(of_items(usable, d_images) > 0, d_images, 0.0)
        return self.scale * of_items(weights.flatten(), d_images) * d_images
