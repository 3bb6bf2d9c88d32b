"""From a network that predicts eps or v at training timesteps to `denoise(x, sigma) -> denoised`, with guidance.

The same split as k-diffusion's `external.py`: what a network predicts is settled here, samplers see only `denoised`.
"""

import torch

from ..checks import check_finite


class DiscreteDenoiser:
    """A network trained on discrete timesteps in VP coordinates, seen in sigma space.

    With x = x0 + sigma * eps and c_in = 1 / sqrt(1 + sigma^2) the network is called on c_in * x, and

        eps model:  denoised = x - sigma * eps
        v model:    denoised = c_in^2 * x - sigma * c_in * v

    Example:
        >>> def network(x, timesteps, condition):  # predicts eps = 1 whatever it sees
        ...     return torch.ones_like(x)
        >>> denoise = DiscreteDenoiser(network, alphas_cumprod=[0.9, 0.5, 0.1])
        >>> denoise.timestep(torch.tensor([1.0]))  # sigma is 1 where the cumulative alpha is 0.5
        tensor([1])
        >>> denoise(torch.tensor([[3.0]]), torch.tensor([2.0]), condition=None)  # x - sigma * eps
        tensor([[1.]])

    Args:
        network: (x_in (B, ...), timesteps (B,) int64, condition (B, ...)) -> prediction, shape of x_in.
        alphas_cumprod: (N,) cumulative alphas of the training timesteps.
        prediction: "eps" or "v".
    """

    def __init__(self, network, alphas_cumprod, prediction="eps"):
        if prediction not in ("eps", "v"):
            raise ValueError(f"unknown prediction {prediction!r}; expected 'eps' or 'v'")
        self.network, self.prediction = network, prediction
        # In float64 on the CPU, as not every device has it, and a scheduler's may be there: diffusers moves them. Kept
        # in float32: neighbours differ by 0.001 or more, rounding by 1e-6.
        alphas_cumprod = torch.as_tensor(alphas_cumprod).cpu().double()
        self.log_sigmas = ((1 - alphas_cumprod) / alphas_cumprod).sqrt().log().float()

    def timestep(self, sigma):
        """Return the training timestep nearest to each sigma in log sigma, (B,) int64."""
        if self.log_sigmas.device != sigma.device:
            self.log_sigmas = self.log_sigmas.to(sigma.device)
        distance = sigma.float().log()[:, None] - self.log_sigmas
        return distance.abs().argmin(dim=1)

    def __call__(self, x, sigma, condition):
        """Return the x0 estimate at (x, sigma): x (B, ...), sigma (B,)."""
        sigmas = sigma.view(-1, *[1] * (x.ndim - 1))
        c_in = (1 + sigmas.square()).rsqrt()
        output = self.network(c_in * x, self.timestep(sigma), condition)
        if self.prediction == "eps":
            return x - sigmas * output
        return c_in.square() * x - sigmas * c_in * output


class Guided:
    """Classifier-free guidance around a conditional denoiser: uncond + cfg * (cond - uncond), in one network call.

    Example:
        >>> def denoise(x, sigma, condition):  # a model that paints its condition
        ...     return condition
        >>> guided = Guided(denoise, condition=torch.tensor([[2.0]]), negative=torch.tensor([[1.0]]), cfg=3.0)
        >>> guided(torch.zeros(1, 1), torch.ones(1))  # 1 + 3 * (2 - 1)
        tensor([[4.]])

    Args:
        denoise: (x, sigma, condition) -> denoised.
        condition, negative: (B, ...) each; candidates beyond B repeat them, candidate-major.
        cfg: guidance scale; at 1 the negative is not evaluated.
    """

    def __init__(self, denoise, condition, negative, cfg):
        check_finite(cfg=cfg)
        self.denoise, self.condition, self.negative, self.cfg = denoise, condition, negative, cfg

    def __call__(self, x, sigma):
        """Return the guided x0 estimate at (x, sigma); x holds a multiple of B rows."""
        if self.cfg == 1:
            return self.denoise(x, sigma, self._rows(self.condition, x))
        cond, uncond = self.unguided(x, sigma)
        return uncond + self.cfg * (cond - uncond)

    def unguided(self, x, sigma):
        """Return the x0 estimates that guidance is made of: with the condition, and with the negative."""
        conditions = torch.cat([self._rows(self.negative, x), self._rows(self.condition, x)])
        uncond, cond = self.denoise(torch.cat([x, x]), torch.cat([sigma, sigma]), conditions).chunk(2)
        return cond, uncond

    @staticmethod
    def _rows(condition, x):
        return condition.repeat(len(x) // len(condition), *[1] * (condition.ndim - 1))
