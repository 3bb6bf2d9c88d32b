"""What every iteration recorded: scores, watched scores, probabilities, norms, seconds, and a small picture."""

import math
from dataclasses import dataclass, field

import torch
from torch.nn import functional as F

from .files import to_json
from .scoring import is_video

EARLIER = -1
"""The iteration of a best that an earlier search had found."""

THUMBNAIL, LARGE = 128, 512
"""Longest side of the pictures kept for the trajectory, in pixels."""
MOST_PICTURES, LEAST_PICTURES, MOST_BYTES = 256, 16, 64 * 2**20
"""How many of them are kept: 256, or what 64 MiB hold where that is less, but never fewer than 16."""


@dataclass
class Evaluation:
    """One noise, sampled and scored. Everything is per picture and detached.

    Example:
        >>> sample_map = core.SampleMap(lambda x, sigma: x / 2, core.Schedule([2.0, 1.0, 0.0]), shape=(1, 3, 4, 4))
        >>> noise = sample_map.randn(seed=0)
        >>> evaluation = core.Problem(sample_map, rewards.Brightness(), watch=[rewards.Contrast()]).evaluate(noise)
        >>> evaluation.images.shape, list(evaluation.watched)
        (torch.Size([1, 3, 4, 4]), ['contrast'])

    Attributes:
        noise: what was evaluated.
        latent: (B, C, H, W).
        images: (B, 3, H, W), of videos (B, F, 3, H, W), not clamped.
        scores: (B,), the reward's.
        watched: name -> (B,), what is recorded beside the score: watched rewards, and each part of combined ones.
        log_p: (B,), ln P of the whole z.
        log_p_initial: (B,), ln P of x_T alone.
        gradient_norm: (B,) Euclidean norm of the reward's noise gradient, with that of the picture's term in it; None
            where none was taken.
        penalty: (B,) the term of the regulariser of the noise; None without one.
        picture_term: (B,) the term of the regulariser of the picture; None without one.
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
    picture_term: torch.Tensor | None = None
    iteration: int = 0
    seconds: float = 0.0

    @property
    def objective(self):
        """The scores with the picture's term (B,): what a solver climbs that compares whole noises."""
        return self.scores if self.picture_term is None else self.scores + self.picture_term.to(self.scores)


@dataclass
class History:
    """The record of one run, one row an iteration (N updates give N + 1 rows).

    Attributes:
        reward: name of the reward.
        rows: one dict an evaluation: iteration, seconds, and lists of B floats under "score", "log_p",
            "log_p_initial", "norm" (of z, in units of sqrt(n)), "gradient_norm", "penalty", "picture_term" and
            "watch/<name>".
        pictures: uint8 tensors (B, 3, h, w), at most 128 pixels a side: of each row while they are few, then of every
            other, every fourth and so on, and always of the first and the last; `picture_rows` are theirs.
        best: the row of each picture's best: where it, or the candidate that it is, was evaluated.
        best_row: what the best themselves scored, as a row; where candidates are tried, no row may hold them.
        first_picture, best_picture: uint8 (B, 3, h, w), of the start and of the best, at most 512 pixels a side.
        stopped: why the run ended.
        warnings: what else the user should know of it, sentences.
        settings: what made the run.
        held: of each picture the names of the floors that a higher score than its best's did not pass: those of watched
            rewards, and "P".
        diagnosis: a `diagnostics.Diagnosis` of the best, or None.
        floors: watched reward's name -> the least score of each picture that might become the best.
        every: of every so many rows a picture is kept.
        iterations: that the run was asked for.

    Example:
        >>> history = History("brightness", rows=[{"iteration": 0, "score": [0.25], "log_p": [float("nan")]}])
        >>> import json
        >>> history.column("score")
        [0.25]
        >>> json.loads(history.to_json())["rows"][0]["log_p"]  # JSON knows no NaN
        [None]
    """

    reward: str = "reward"
    rows: list = field(default_factory=list)
    pictures: list = field(default_factory=list)
    best: list = field(default_factory=list)
    best_row: dict = field(default_factory=dict)
    first_picture: torch.Tensor | None = None
    best_picture: torch.Tensor | None = None
    stopped: str = ""
    warnings: list = field(default_factory=list)
    settings: dict = field(default_factory=dict)
    diagnosis: object = None
    held: list = field(default_factory=list)
    floors: dict = field(default_factory=dict)
    every: int = 1
    iterations: int = 0

    def record(self, evaluation):
        """Append one evaluation."""
        row = {
            "iteration": evaluation.iteration,
            "seconds": round(evaluation.seconds, 3),
            "score": evaluation.scores,
            "log_p": evaluation.log_p,
            "log_p_initial": evaluation.log_p_initial,
            "norm": _norm(evaluation.noise),
            "gradient_norm": evaluation.gradient_norm,
            "penalty": evaluation.penalty,
            "picture_term": evaluation.picture_term,
            **{f"watch/{name}": scores for name, scores in evaluation.watched.items()},
        }
        self.rows.append(_listed(row))
        self._keep(thumbnail(evaluation.images))
        if self.first_picture is None:
            self.first_picture = thumbnail(evaluation.images, LARGE)

    def _keep(self, picture):
        """Keep the last row's picture; beyond what the memory is worth, keep only every other from then on."""
        last = len(self.rows) - 1
        if last > 0 and (last - 1) % self.every:
            self.pictures.pop()  # it was kept as the last, which it no longer is
        self.pictures.append(picture)
        most = min(MOST_PICTURES, max(LEAST_PICTURES, MOST_BYTES // max(picture.numel(), 1)))
        if len(self.pictures) > most:
            self.pictures = [*self.pictures[:-1:2], self.pictures[-1]]
            self.every *= 2

    @property
    def picture_rows(self):
        """The row of each of `pictures`."""
        return [min(index * self.every, len(self.rows) - 1) for index in range(len(self.pictures))]

    def conclude(self, best, problem):
        """Record each picture's best, a `problem.Best`, at the end of the run."""
        first, last = self.rows[0]["iteration"], len(self.rows) - 1
        # An iteration that was interrupted may have found the best and has no row.
        self.best = [min(max(iteration - first, 0), last) for iteration in best.iterations.tolist()]
        keys = ("score", "log_p", "log_p_initial", "norm", *(f"watch/{name}" for name in self.watched))
        self.best_row = {key: [self.column(key, i)[row] for i, row in enumerate(self.best)] for key in keys}
        if self.best_row["score"] != best.scores.tolist():  # a candidate, or interrupted before its row was complete
            log_p, log_p_initial = problem.log_probabilities(best.noise)
            found = {"score": best.scores, "log_p": log_p, "log_p_initial": log_p_initial, "norm": _norm(best.noise)}
            self.best_row |= _listed(found)
            try:
                watched = problem.watched(best.latent, best.images)
                self.best_row |= _listed({f"watch/{name}": scores for name, scores in watched.items()})
            except KeyboardInterrupt:  # a second Ctrl-C: their iteration's values stay
                pass
            except Exception as error:  # rewards of others can raise anything, and the search is over
                problem.warn(f"the watched scores of the best are those of its iteration, since asking failed: {error}")
        self.best_row["iteration"] = best.iterations.tolist()
        self.best_picture = thumbnail(best.images, LARGE)
        self.floors = {name: least.tolist() for name, least in best.least.items()}
        self.held = best.held()

    @property
    def ended_early(self):
        """Whether the run ended before its iterations were done."""
        return not self.stopped.endswith(("iteration done", "iterations done"))

    @property
    def made(self):
        """The number of updates of the noise that the run came to."""
        own = [row["iteration"] for row in self.rows if row["iteration"] != EARLIER]
        return own[-1] - own[0] if own else 0

    def best_name(self, item):
        """Return where one picture's best was found, in words."""
        iteration = self.best_row["iteration"][item]
        return "the earlier search" if iteration == EARLIER else f"iteration {iteration}"

    def summary(self):
        """Tell in a few lines what the run did, and why it stopped improving where that was diagnosed."""
        lines = [f"{self.stopped}; {self.rows[-1]['seconds']:.0f} s"]
        for item in range(len(self.best)):
            name = f"picture {item}: " if len(self.best) > 1 else ""
            watched = "".join(
                f", {watch} {self.rows[0][f'watch/{watch}'][item]:.3f} -> {self.best_row[f'watch/{watch}'][item]:.3f}"
                for watch in self.watched
            )
            scores = f"{self.rows[0]['score'][item]:.3f} -> {self.best_row['score'][item]:.3f}"
            p, p_initial = (math.exp(self.best_row[key][item]) for key in ("log_p", "log_p_initial"))
            found = f"best from {self.best_name(item)}, P(z) {p:.2g}, P(x_T) {p_initial:.2g}"
            held = f"; higher scores were held by the floor on {', '.join(self.held[item])}" if self.held[item] else ""
            lines.append(f"{name}{self.reward} {scores}{watched}; {found}{held}")
        lines += [f"warning: {text}" for text in self.warnings]
        return "\n".join(lines + ([self.diagnosis.text()] if self.diagnosis else []))

    def column(self, key, item=0):
        """Return one picture's values of `key` over the iterations; None where a row has none."""
        return [row[key][item] if row.get(key) is not None else None for row in self.rows]

    @property
    def watched(self):
        """The names of the watched rewards."""
        prefix = "watch/"
        return [key.removeprefix(prefix) for key in (self.rows[0] if self.rows else {}) if key.startswith(prefix)]

    def to_json(self):
        """Return everything but the pictures as a JSON text; null stands for what is NaN or infinite."""
        keys = ("reward", "settings", "stopped", "warnings", "best", "best_row", "held", "rows")
        values = {key: getattr(self, key) for key in keys}
        return to_json(values | {"diagnosis": self.diagnosis and self.diagnosis.to_dict()}, indent=1)


def _listed(row):
    """Return the row with lists in place of (B,) tensors; those of one device are read at once, as the host waits."""
    found = dict(row)
    for device in {value.device for value in row.values() if torch.is_tensor(value)}:
        keys = [key for key, value in row.items() if torch.is_tensor(value) and value.device == device]
        found.update(zip(keys, torch.stack([row[key] for key in keys]).tolist(), strict=True))
    return found


def _norm(noise):
    """Return each picture's norm of z in units of sqrt(n), which true noise is near."""
    return noise.norm() / (noise.initial[0].numel() * (1 + len(noise.injected))) ** 0.5


def thumbnail(images, longest=THUMBNAIL):
    """Return small pictures, (B, 3, h, w) of 8 bits on the CPU, at most `longest` pixels a side; of a video one frame.

    Example:
        >>> thumbnail(torch.zeros(1, 3, 512, 256)).shape
        torch.Size([1, 3, 128, 64])
    """
    images = images[:, images.shape[1] // 2] if is_video(images) else images
    images = images.detach().float().nan_to_num(nan=0.0).clamp(0, 1)
    found = max(images.shape[-2:])
    if images.ndim == 4 and found > longest:
        size = [max(round(side * longest / found), 1) for side in images.shape[-2:]]
        images = F.interpolate(images, size=size, mode="area")
    return (images * 255).round().to(torch.uint8).cpu()
