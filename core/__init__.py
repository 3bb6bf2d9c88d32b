"""The method: noise in, pictures out, gradients back. Knows nothing of ComfyUI, and of no particular reward.

Start at `optimize` for the loop, `SampleMap` for the map from noise to pictures and its backward pass, and
`ProbabilityRegularizer` for what keeps the noise probable.

The examples in docstrings are run by a test. They begin, each, after

    import torch
    from comfyui_dno import core, rewards

and may use the names of their own module as they are.
"""

from .asking import Asked, Preference, ask, picks_of
from .belief import Belief
from .blocks import Blocks
from .coarse import CoarseMap
from .diagnostics import Diagnosis, diagnose
from .estimators import Exact, Hybrid1, Hybrid2, ZerothOrder
from .floors import Drop, floors_of, watched_names
from .generator import generator_map
from .history import Evaluation, History
from .models.denoiser import DiscreteDenoiser, Guided
from .models.embedded.load import load_embedded
from .models.fingerprint import fingerprint
from .models.pipelines import from_pipeline, load_pipeline
from .noise import Checkpoint, Noise
from .optimize import Result, fast, optimize, reno, stages
from .picture_regularizer import PICTURE_KINDS, PictureRegularizer
from .problem import Problem
from .regularizer import P_SUSPICIOUS, NormRegularizer, ProbabilityRegularizer, log_probabilities, noise_probability
from .sample_map import Pullback, SampleMap
from .sampler_map import SamplerMap, SamplerPullback, SamplerTraits
from .sampler_trial import CannotBeSearchedError, try_sampler, wavy
from .schedule import Schedule, sde_step, step_coefficients
from .scoring import NotFiniteError
from .solvers import LGD, TRS, Fast, GradientAscent, Search, Solver, Tilt, TrustAscent, ZeNO, default_solver

__all__ = [
    "PICTURE_KINDS",
    "P_SUSPICIOUS",
    "Asked",
    "Belief",
    "Blocks",
    "CannotBeSearchedError",
    "Checkpoint",
    "CoarseMap",
    "Diagnosis",
    "DiscreteDenoiser",
    "Drop",
    "Evaluation",
    "Exact",
    "Fast",
    "GradientAscent",
    "Guided",
    "History",
    "Hybrid1",
    "Hybrid2",
    "LGD",
    "Noise",
    "NormRegularizer",
    "NotFiniteError",
    "PictureRegularizer",
    "Preference",
    "ProbabilityRegularizer",
    "Problem",
    "Pullback",
    "Result",
    "SampleMap",
    "SamplerMap",
    "SamplerPullback",
    "SamplerTraits",
    "Schedule",
    "Search",
    "Solver",
    "TRS",
    "Tilt",
    "TrustAscent",
    "ZeNO",
    "ZerothOrder",
    "ask",
    "default_solver",
    "diagnose",
    "fast",
    "fingerprint",
    "floors_of",
    "from_pipeline",
    "generator_map",
    "load_embedded",
    "load_pipeline",
    "log_probabilities",
    "noise_probability",
    "optimize",
    "picks_of",
    "reno",
    "sde_step",
    "stages",
    "step_coefficients",
    "try_sampler",
    "watched_names",
    "wavy",
]
