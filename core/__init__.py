"""The method: noise in, pictures out, gradients back. Knows tensors only.

Start at `optimize` for the loop, `SampleMap` for the map from noise to pictures and its backward pass, and
`ProbabilityRegularizer` for what keeps the noise probable.
"""

from .denoiser import DiscreteDenoiser, Guided
from .embedded.load import load_embedded
from .history import Evaluation, History
from .noise import Noise
from .optimize import NotFiniteError, Problem, Result, optimize
from .regularizer import P_SUSPICIOUS, ProbabilityRegularizer, log_probabilities, noise_probability
from .sample_map import Pullback, SampleMap
from .schedule import Schedule, sde_step, step_coefficients
from .solvers import GradientAscent

__all__ = [
    "P_SUSPICIOUS",
    "DiscreteDenoiser",
    "Evaluation",
    "GradientAscent",
    "Guided",
    "History",
    "Noise",
    "NotFiniteError",
    "ProbabilityRegularizer",
    "Problem",
    "Pullback",
    "Result",
    "SampleMap",
    "Schedule",
    "load_embedded",
    "log_probabilities",
    "noise_probability",
    "optimize",
    "sde_step",
    "step_coefficients",
]
