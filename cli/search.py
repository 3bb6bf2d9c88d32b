"""One search as the options describe it, and the files that it leaves."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from tqdm import tqdm

from .. import core
from ..core import plots
from .options import DTYPES
from .output import say
from .rewards import reward_of, watch_of
from .solvers import check_reward, solver_of, solver_settings

SAMPLING = ("negative", "steps", "cfg", "eta", "part", "memory", "most_rows", "height", "width")
EMBEDDED = {"steps": 20, "cfg": 3.0, "memory": "fast", "most_rows": None}
# A full-size model keeps the graphs that fit and samples one candidate at a time; None is its own default.
PIPELINE = {"steps": None, "cfg": None, "memory": "auto", "most_rows": 1}

REPORT, CURVES = "report.html", "curves.png"
FILES_OF_A_SEARCH = re.compile(r"(\d\d+_)?(before|after|trajectory)\.png|report\.html")
"""Names of what a search may leave: pictures, which of a batch begin with their numbers, and its report."""


@dataclass(frozen=True)
class Setup:
    """What the searches of one command share: settings, reward and model, loaded once.

    Attributes:
        settings: all that decides the pictures but prompt, seed and model, JSON types; recorded with every result.
        sample_map: called with a list of prompts, one a picture; returns their SampleMap.
        reward: what is optimised.
        watch: rewards that are recorded only.
        floors: on watched rewards, as `core.optimize` takes them.
        target: of every picture's best score, or None.
        device: where everything runs.
    """

    settings: dict
    sample_map: Callable
    reward: Callable
    watch: tuple
    floors: dict
    target: float | None
    device: str

    @classmethod
    def of(cls, options, device=None):
        """Load what `options` name, onto `device` or theirs; raise ValueError for what does not go together."""
        device, embedded = device or options.device, options.model is None
        _check_device(device)
        if embedded and (options.height or options.width):
            raise ValueError("--height and --width are for --model; the embedded model draws at 128 x 128")
        if embedded and getattr(options, "download", False):
            raise ValueError("--download fetches --model; the embedded model is here already")
        asked = {name: value for name, value in vars(options).items() if name in SAMPLING and value is not None}
        settings = {name: getattr(options, name) for name in ("reward", "device", "dtype")}
        names = ("reward_file", "clip_file", "reference")
        files = {name: str(getattr(options, name)) for name in names if getattr(options, name)}
        settings |= files | (EMBEDDED if embedded else PIPELINE) | asked | solver_settings(options)
        reward = reward_of(options, device, DTYPES[options.dtype])
        check_reward(reward, options)
        if options.reference:  # a picture that is drawn anew keeps its name
            settings["reference_sha256"] = hashlib.sha256(options.reference.read_bytes()).hexdigest()[:16]
        for name, asked in (("reward", [options.reward]), ("watch", options.watch)):
            if "consistency" in asked and not embedded:
                raise ValueError(
                    f"--{name} consistency knows the embedded model's pictures alone; take another for --model"
                )
        watch = watch_of(options, device)
        floors = core.floors_of(options.floors, core.watched_names(reward, watch))
        limits = {"watch": options.watch or None, "floors": options.floors or None, "target": options.target}
        settings |= {name: value for name, value in limits.items() if value is not None}
        maps = _maps(options, settings, device)
        return cls(settings, maps, reward, watch, floors, options.target, device)

    def noise(self, sample_map, seed, start=None):
        """Return the noise to start from, true noise of `seed` or that of file `start`, with the settings on record."""
        noise = sample_map.randn(seed) if start is None else core.Noise.load(start)
        ours = self.settings | {"prompt": sample_map.prompts[0], "steps": sample_map.schedule.steps}
        ours |= {"seed": seed} if start is None else {}
        # What a file says about its model and schedule stays: the map is compared with it.
        ours = {name: value for name, value in ours.items() if name not in sample_map.settings}
        return replace(noise, settings=noise.settings | ours).to(self.device)

    def search(self, sample_map, noise, callback, floor=core.P_SUSPICIOUS, seconds=None, check_gradient=False):
        """Optimise `noise`; see `core.optimize`.

        Returns:
            core's Result, its history with all settings, and the pictures (B, 3, H, W) that the search began with.
        """
        before = []

        def keep_first(evaluation, best):
            if not before:
                before.append(evaluation.images)
            callback(evaluation)

        solver, regularizer = solver_of(self.settings)
        result = core.optimize(
            sample_map, self.reward, noise, solver, regularizer, self.settings["iterations"], seconds, self.watch,
            keep_first, self.target, floor=floor, check_gradient=check_gradient, floors=self.floors,
        )  # fmt: skip
        result.history.settings |= result.noise.settings
        # A Ctrl-C just before the first callback leaves its small picture alone.
        return result, before[0] if before else result.history.pictures[0]

    def search_with_bar(self, sample_map, noise, label, **limits):
        """Do the same behind a progress bar; `limits` are `search`'s."""
        solver, _ = solver_of(self.settings)
        total = core.stages(sample_map, solver, self.settings["iterations"])
        total += sum(each.stages(sample_map) for each in self.watch if isinstance(each, core.Belief))
        with tqdm(total=total, desc=label, unit="stage") as bar:
            sample_map.on_step = lambda phase, index, total: bar.update()
            return self.search(sample_map, noise, lambda found: bar.set_postfix_str(state(found)), **limits)


def _maps(options, settings, device):
    """Return prompts -> SampleMap of the embedded model, or of the diffusers pipeline --model, which is loaded here."""
    dtype, sampling = DTYPES[options.dtype], {name: settings[name] for name in SAMPLING if name in settings}
    if options.model is None:
        return lambda prompts: core.load_embedded(prompts, device=device, dtype=dtype, **sampling)
    pipeline = core.load_pipeline(options.model, dtype, device, options.download)
    return lambda prompts: core.from_pipeline(pipeline, prompts, **sampling)


def _check_device(device):
    """Raise ValueError for a device that torch does not have here."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        found = f"cuda with {torch.cuda.device_count()} devices" if torch.cuda.is_available() else "cpu"
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {device!r} cannot be used here ({reason}); this machine has {found}") from error


def state(evaluation):
    """Return what a progress bar says about an evaluation."""
    watched = "".join(f", {name} {scores.mean():.2f}" for name, scores in evaluation.watched.items())
    probability = evaluation.log_p.exp().min()
    return f"iteration {evaluation.iteration}: reward {evaluation.scores.mean():.3f}{watched}, P {probability:.1e}"


def save(result, before, folder, prefix=""):
    """Write before and after pictures, the trajectory, the curves, the noise and the history of one search."""
    history = result.history
    (folder / f"{prefix}history.json").write_text(history.to_json())
    result.noise.to("cpu").save(folder / f"{prefix}noise.safetensors")
    plots.curves(history).save(folder / f"{prefix}{CURVES}")
    pairs = zip(plots.to_pictures(before), plots.to_pictures(result.images), strict=True)
    for item, (first, best) in enumerate(pairs):
        name = f"{prefix}{item:02d}_" if len(result.images) > 1 else prefix
        first.save(folder / f"{name}before.png")
        best.save(folder / f"{name}after.png")
        plots.trajectory(history, item).save(folder / f"{name}trajectory.png")


def tell(label, history):
    """Say what a search did, and where it ended early how far it came."""
    early = f"ended early, after {history.made} of {history.iterations} iterations: "
    say(f"{label}: {early if history.ended_early else ''}{history.summary()}")
    if "gradient_error" in history.settings:
        say(f"relative error of the gradient in one direction: {max(history.settings['gradient_error']):.1e}")
