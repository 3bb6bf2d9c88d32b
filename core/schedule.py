"""The noise schedule and one step of the sampling SDE, for every model family.

Symbols (Tang et al. 2024, Song et al. 2020, k-diffusion):

    x          x_t, the scaled sample at noise level sigma
    denoised   D, the model's x0 estimate at (x, sigma), classifier-free guidance applied
    sigma_next noise level of x_s, the next sample
    eta        0 is the ODE (DDIM), 1 the paper's SDE
    noise      w_t ~ N(0, I), the step's injected noise

Families differ in the signal level alpha(sigma) of x = alpha * x0 + sigma * eps:

    "vp"       k-diffusion's sigma space, alpha = 1: eps and v models; eta 1 is DDIM(eta = 1) and `euler_ancestral`
    "flow"     rectified flow, alpha = 1 - sigma, the same SDE
    "flow_rf"  rectified flow with the smaller injected noise of ComfyUI's `sample_euler_ancestral_RF`
"""

import math
from dataclasses import dataclass

import torch

FAMILIES = ("vp", "flow", "flow_rf")


def check_eta(eta):
    """Return `eta` as a float; raise ValueError outside [0, 1]."""
    if not 0.0 <= float(eta) <= 1.0:
        raise ValueError(f"eta is {eta}; expected a number in [0, 1]: 0 is the ODE, 1 the SDE")
    return float(eta)


def signal_level(sigma, family="vp"):
    """Return alpha of x = alpha * x0 + sigma * eps: 1 in k-diffusion's sigma space, 1 - sigma for rectified flow."""
    return 1.0 if family == "vp" else 1.0 - sigma


def step_coefficients(sigma, sigma_next, eta=1.0, family="vp", s_noise=1.0):
    """Return (c_x, c_denoised, c_noise) of one step: x_next = c_x * x + c_denoised * denoised + c_noise * noise.

    With alpha_t, alpha_s the signal levels at sigma and sigma_next,

        q  = alpha_t * sigma_next / (alpha_s * sigma)
        nu = eta * sigma_next * sqrt(1 - q^2)
        x_next = alpha_s D + sqrt(sigma_next^2 - nu^2) * (x - alpha_t D) / sigma + nu * noise

    which is DDIM(eta) of Song et al. (2020), Eq. (12), in every parametrisation; nu is `get_ancestral_step`'s sigma_up
    when alpha = 1. The step is linear in its three inputs, so its backward pass is three multiplications and one
    vector-Jacobian product of the network. "flow_rf" is ComfyUI's own rule for rectified flow, with a smaller nu:

        sigma_down = sigma_next * (1 + (sigma_next / sigma - 1) * eta),  a = (1 - sigma_next) / (1 - sigma_down)
        nu = sqrt(sigma_next^2 - (a * sigma_down)^2)
        x_next = a * (r x + (1 - r) D) + nu * noise,  r = sigma_down / sigma

    Either nu is multiplied by s_noise, which is 1 but for models whose noise has another variance.

    Example:
        >>> step_coefficients(2.0, 1.0, eta=0.0)  # the ODE's step goes half of the way to denoised, without noise
        (0.5, 0.5, 0.0)

    Args:
        sigma: noise level of x, > 0; at most 1 for flow.
        sigma_next: noise level of the next sample, in [0, sigma].
        eta: in [0, 1].
        family: "vp", "flow" or "flow_rf".
        s_noise: k-diffusion's factor of the injected noise.

    Returns:
        Three floats; (0, 1, 0) when sigma_next is 0.
    """
    sigma, sigma_next, eta = float(sigma), float(sigma_next), check_eta(eta)
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}; expected one of {FAMILIES}")
    if sigma_next == 0.0:
        return 0.0, 1.0, 0.0
    if family == "flow_rf":
        sigma_down = sigma_next * (1 + (sigma_next / sigma - 1) * eta)
        ratio = sigma_down / sigma
        scale = (1 - sigma_next) / (1 - sigma_down) if sigma_next < 1 else 1.0
        nu = math.sqrt(max(sigma_next**2 - (scale * sigma_down) ** 2, 0.0))
        return scale * ratio, scale * (1 - ratio), s_noise * nu if eta > 0 else 0.0
    alpha, alpha_next = signal_level(sigma, family), signal_level(sigma_next, family)
    q = alpha * sigma_next / (alpha_next * sigma) if alpha_next > 0 else 1.0
    nu = eta * sigma_next * math.sqrt(max(1 - q * q, 0.0))
    c_x = math.sqrt(max(sigma_next**2 - nu**2, 0.0)) / sigma
    return c_x, alpha_next - c_x * alpha, s_noise * nu


def sde_step(x, denoised, sigma, sigma_next, eta=1.0, noise=None, family="vp", s_noise=1.0):
    """Take one step of the sampling SDE (Eq. (5) of the paper) from sigma to sigma_next; see `step_coefficients`.

    Example:
        >>> sde_step(torch.tensor([3.0]), torch.tensor([1.0]), sigma=2.0, sigma_next=1.0, eta=0.0)
        tensor([2.])

    Args:
        x: (B, ...), the sample at noise level sigma.
        denoised: the model's x0 estimate, shape of x.
        sigma, sigma_next: noise levels, floats or 0-dim tensors.
        eta: in [0, 1].
        noise: unit variance, shape of x; may be None where the step injects none (eta 0 or sigma_next 0).
        family: "vp", "flow" or "flow_rf".
        s_noise: factor of the injected noise.

    Returns:
        The sample at sigma_next, shape of x.

    Raises:
        ValueError: eta or family unknown, or the noise of a step that injects some is missing.
    """
    c_x, c_denoised, c_noise = step_coefficients(sigma, sigma_next, eta, family, s_noise)
    if float(sigma_next) == 0.0:
        return denoised
    x_next = c_x * x + c_denoised * denoised
    if c_noise == 0.0:
        return x_next
    if noise is None:
        step = f"{float(sigma):.4g} -> {float(sigma_next):.4g}"
        raise ValueError(f"the step {step} at eta {eta} injects noise; pass it as noise=")
    return x_next + c_noise * noise


@dataclass(frozen=True)
class Schedule:
    """Noise levels of one sampling run.

    Example:
        >>> schedule = Schedule([10.0, 1.0, 0.0])
        >>> schedule.intervals
        ((10.0, 1.0), (1.0, 0.0))
        >>> schedule.steps, schedule.injected  # the step to 0 injects no noise
        (2, 1)

    Attributes:
        sigmas: T + 1 non-increasing noise levels, the last may be 0; any sequence or 1-d tensor.
        family: "vp", "flow" or "flow_rf".
        s_noise: factor of the injected noise, 1 but for models whose noise has another variance (HiDream O1).
    """

    sigmas: tuple
    family: str = "vp"
    s_noise: float = 1.0

    def __post_init__(self):
        object.__setattr__(self, "sigmas", tuple(float(sigma) for sigma in self.sigmas))
        if self.family not in FAMILIES:
            raise ValueError(f"unknown family {self.family!r}; expected one of {FAMILIES}")
        if len(self.sigmas) < 2:
            raise ValueError(f"a schedule of {len(self.sigmas)} sigmas has no step; expected steps >= 1, so 2 or more")
        falling = all(a >= b for a, b in zip(self.sigmas, self.sigmas[1:], strict=False))
        if not falling or self.sigmas[-1] < 0 or self.sigmas[-2] <= 0 or not math.isfinite(self.sigmas[0]):
            expected = "expected finite values that never rise and are > 0, but for the last, which may be 0"
            raise ValueError(f"sigmas are {self.sigmas}; {expected}")
        if self.family != "vp" and self.sigmas[0] > 1 + 1e-6:
            raise ValueError(
                f"flow sigmas lie in [0, 1], found {self.sigmas[0]}; an eps or v model is of the family 'vp'"
            )

    @property
    def steps(self):
        """T, the number of denoising steps."""
        return len(self.sigmas) - 1

    @property
    def intervals(self):
        """The T pairs (sigma, sigma_next), in sampling order."""
        return tuple(zip(self.sigmas[:-1], self.sigmas[1:], strict=True))

    @property
    def injected(self):
        """L, the number of intervals whose target sigma is > 0: those can inject noise."""
        return sum(sigma_next > 0 for sigma_next in self.sigmas[1:])

    @classmethod
    def ddim(cls, alphas_cumprod, steps, spacing="trailing", final_alpha=1.0):
        """Build the "vp" schedule that diffusers' DDIMScheduler walks.

        Args:
            alphas_cumprod: (N,) cumulative products of 1 - beta, N training timesteps.
            steps: number of denoising steps, 1 .. N.
            spacing: "trailing", or "leading" with an offset of 1 (Stable Diffusion's default: 981, 961, .. 1 at 50).
            final_alpha: cumulative alpha of the last target: 1 (`set_alpha_to_one`), or alphas_cumprod[0].
        """
        count = len(alphas_cumprod)
        if not 1 <= steps <= count:
            raise ValueError(f"steps is {steps}; expected 1 .. {count}")
        if spacing == "trailing":
            timesteps = [round(count - i * count / steps) - 1 for i in range(steps)]
        elif spacing == "leading":
            timesteps = [i * (count // steps) + 1 for i in reversed(range(steps))]
        else:
            raise ValueError(f"unknown spacing {spacing!r}; expected 'trailing' or 'leading'")
        alphas = [float(alphas_cumprod[t]) for t in timesteps] + [float(final_alpha)]
        return cls(tuple(math.sqrt((1 - alpha) / alpha) for alpha in alphas))


def scaled_linear_alphas_cumprod(beta_start=0.00085, beta_end=0.012, count=1000):
    """Return Stable Diffusion's cumulative alphas: (count,) float64, betas linear in their square root."""
    betas = torch.linspace(beta_start**0.5, beta_end**0.5, count, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, dim=0)
