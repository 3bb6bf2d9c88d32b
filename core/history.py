"""What every iteration recorded: scores, watched scores, probabilities, norms, seconds, and a small picture."""

import json
from dataclasses import dataclass, field

import torch
from torch.nn import functional as F

THUMBNAIL = 128
"""Longest side of the pictures kept for the trajectory, in pixels."""


@dataclass
class Evaluation:
    """One noise, sampled and scored. Everything is per picture and detached.

    Attributes:
        noise: what was evaluated.
        latent: (B, C, H, W).
        images: (B, 3, H, W), not clamped.
        scores: (B,), the reward's.
        watched: name -> (B,), scores that are recorded and never optimised.
        log_p: (B,), ln P of the whole z.
        log_p_initial: (B,), ln P of x_T alone.
        gradient_norm: (B,) Euclidean norm of the reward's noise gradient; None where none was taken.
        penalty: (B,) the regulariser's term; None without one.
        iteration: number of updates made before it.
        seconds: since the run began, when it was complete.
    """

    noise: object
    latent: torch.Tensor
    images: torch.Tensor
    scores: torch.Tensor
    watched: dict
    log_p: torch.Tensor
    log_p_initial: torch.Tensor
    gradient_norm: torch.Tensor | None = None
    penalty: torch.Tensor | None = None
    iteration: int = 0
    seconds: float = 0.0


@dataclass
class History:
    """The record of one run, one row an iteration (N updates give N + 1 rows).

    Attributes:
        reward: name of the reward.
        rows: one dict an evaluation: iteration, seconds, and lists of B floats under "score", "log_p",
            "log_p_initial", "norm" (of z, in units of sqrt(n)), "gradient_norm", "penalty" and "watch/<name>".
        pictures: one uint8 tensor (B, 3, h, w) an evaluation, at most 128 pixels a side.
        best: the iteration of each picture's best so far.
        stopped: why the run ended.
        settings: what made the run.
    """

    reward: str = "reward"
    rows: list = field(default_factory=list)
    pictures: list = field(default_factory=list)
    best: list = field(default_factory=list)
    stopped: str = ""
    settings: dict = field(default_factory=dict)

    def record(self, evaluation):
        """Append one evaluation."""
        flat = evaluation.noise.flat().float()
        row = {
            "iteration": evaluation.iteration,
            "seconds": round(evaluation.seconds, 3),
            "score": evaluation.scores,
            "log_p": evaluation.log_p,
            "log_p_initial": evaluation.log_p_initial,
            "norm": flat.norm(dim=1) / flat.shape[1] ** 0.5,
            "gradient_norm": evaluation.gradient_norm,
            "penalty": evaluation.penalty,
            **{f"watch/{name}": scores for name, scores in evaluation.watched.items()},
        }
        self.rows.append({key: value.tolist() if torch.is_tensor(value) else value for key, value in row.items()})
        self.pictures.append(_thumbnail(evaluation.images))

    def column(self, key, item=0):
        """Return one picture's values of `key` over the iterations; None where a row has none."""
        return [row[key][item] if row.get(key) is not None else None for row in self.rows]

    @property
    def watched(self):
        """The names of the watched rewards."""
        prefix = "watch/"
        return [key.removeprefix(prefix) for key in (self.rows[0] if self.rows else {}) if key.startswith(prefix)]

    def to_json(self):
        """Return everything but the pictures as a JSON text."""
        keys = ("reward", "settings", "stopped", "best", "rows")
        return json.dumps({key: getattr(self, key) for key in keys}, indent=1)


def _thumbnail(images):
    images = images.detach().float().clamp(0, 1)
    longest = max(images.shape[-2:])
    if images.ndim == 4 and longest > THUMBNAIL:
        size = [max(round(side * THUMBNAIL / longest), 1) for side in images.shape[-2:]]
        images = F.interpolate(images, size=size, mode="area")
    return (images * 255).round().to(torch.uint8).cpu()
