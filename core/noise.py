"""The noise z = (x_T, w_1, w_2, ..) of one sampling run: everything that is optimised, and the file it is kept in."""

import json
import math
import os
from dataclasses import dataclass, field, replace

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .checks import check_finite, check_whole
from .files import to_json, whole_file
from .precision import normal, wide

FORMAT = "dno_noise_1"
TENSORS = ("initial", "injected")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Noise:
    """The sampling noise of a batch, unit variance.

    Example:
        >>> noise = Noise.randn((2, 4, 8, 8), injected=3, seed=0)
        >>> noise.flat().shape  # of each picture x_T and three steps' noises, 4 * 4 * 8 * 8 numbers
        torch.Size([2, 1024])
        >>> noise.item(1).batch
        1

    Attributes:
        initial: (B, C, H, W), x_T before the model's own scaling; further dimensions (video) are kept as they are.
        injected: (L, B, C, H, W), the noises of the steps that inject one, in sampling order; L is 0 for the ODE.
        settings: what made it and what replays it, JSON types only; saved with the tensors.
        kept: (B, C, H, W), what an inpainting noises its kept part with; None: nothing was kept.
        checkpoint: where the search that found it goes on, or None.
    """

    initial: torch.Tensor
    injected: torch.Tensor
    settings: dict = field(default_factory=dict, compare=False)
    kept: torch.Tensor | None = field(default=None, compare=False)
    checkpoint: "Checkpoint | None" = field(default=None, compare=False)

    def __post_init__(self):
        if self.injected.ndim != self.initial.ndim + 1 or self.injected.shape[1:] != self.initial.shape:
            raise ValueError(
                f"injected noise is {tuple(self.injected.shape)}; expected (L, *{tuple(self.initial.shape)}), one noise"
                " of the initial noise's shape per step"
            )

    @classmethod
    def randn(cls, shape, injected=0, seed=0):
        """Draw true noise by ComfyUI's rule: x_T from `seed`, the injected noises one after another from `seed + 1`.

        Drawn on the CPU in float32 whatever the model runs on, so that a seed means the same picture everywhere.

        Args:
            shape: (B, C, H, W).
            injected: L, the number of steps that inject noise.
            seed: any integer; taken modulo 2^64.

        Raises:
            ValueError: a number is not whole, or below 0 where it counts something.
        """
        for side in shape:
            check_whole(0, side=side)
        check_whole(0, injected=injected)
        check_whole(-math.inf, seed=seed)
        seed = int(seed)  # of NumPy's numbers, sums overflow
        # The type is named: PyTorch's default may be another, and would make other numbers of the same seed.
        kind = {"dtype": torch.float32, "device": "cpu"}
        initial = torch.randn(shape, generator=_generator(seed), **kind)
        generator = _generator(seed + 1)
        steps = [torch.randn(shape, generator=generator, **kind) for _ in range(injected)]
        return cls(initial, torch.stack(steps) if steps else initial.new_zeros((0, *initial.shape)))

    @property
    def batch(self):
        """B, the number of pictures."""
        return self.initial.shape[0]

    def flat(self):
        """Return z as (B, n): each picture's x_T, then its injected noises in order."""
        rest = self.injected.transpose(0, 1).reshape(self.batch, -1)
        return torch.cat([self.initial.reshape(self.batch, -1), rest], dim=1)

    def norm(self):
        """Return (B,), the Euclidean length of each picture's z, in float32 or wider."""
        initial, injected = (wide(z).flatten(1 - self.initial.ndim).norm(dim=-1) for z in (self.initial, self.injected))
        return torch.cat([initial[None], injected]).norm(dim=0)

    def with_flat(self, flat):
        """Return the Noise whose `flat()` is `flat`, (rows, n): any number of pictures of this noise's shape."""
        size, shape = self.initial[0].numel(), self.initial.shape[1:]
        initial = flat[:, :size].reshape(-1, *shape)
        rest = flat[:, size:].reshape(len(flat), self.injected.shape[0], *shape)
        return Noise(initial, rest.transpose(0, 1), self.settings)

    def map(self, function):
        """Apply an elementwise `function` to both tensors."""
        return Noise(function(self.initial), function(self.injected), self.settings)

    def to(self, *args, **kwargs):
        """Move or cast every tensor, as `torch.Tensor.to`."""
        moved = self.map(lambda tensor: tensor.to(*args, **kwargs))
        kept = None if self.kept is None else self.kept.to(*args, **kwargs)
        checkpoint = self.checkpoint and self.checkpoint.map(lambda noise: noise.to(*args, **kwargs))
        return replace(moved, kept=kept, checkpoint=checkpoint)

    def item(self, index):
        """Return picture `index`'s own noise, a batch of one, with its own checkpoint."""
        return self.items([index])

    def items(self, indices):
        """Return the noise of some pictures, in the order of `indices`, each with its own part of the checkpoint.

        Example:
            >>> noise = Noise.randn((3, 4, 8, 8), injected=2, seed=0)
            >>> torch.equal(noise.items([2, 0]).initial, noise.initial[[2, 0]])
            True
        """
        for index in indices:
            if not -self.batch <= index < self.batch:
                raise ValueError(f"picture {index} of a batch of {self.batch}; expected 0 .. {self.batch - 1}")
        rows = [index % self.batch for index in indices]
        return Noise(
            self.initial[rows],
            self.injected[:, rows],
            self.settings,
            None if self.kept is None else self.kept[rows],
            self.checkpoint and self.checkpoint.map(lambda noise: noise.items(rows)),
        )

    def variations(self, count, beta=0.2, seed=0):
        """Return a batch of neighbours of one picture's noise: itself, then `sqrt(1 - beta^2) z + beta xi`.

        True noise stays true noise (the proposal of preconditioned Crank-Nicolson). The first few are the same whatever
        their number.

        Example:
            >>> noise = Noise.randn((1, 4, 8, 8), injected=2, seed=0)
            >>> some = noise.variations(4, beta=0.3)
            >>> some.batch, torch.equal(some.item(0).flat(), noise.flat())
            (4, True)

        Args:
            count: number of pictures, the noise itself among them.
            beta: in [0, 1], the share of a neighbour's noise that is new: 0 nothing, 1 all of it.
            seed: of xi.

        Raises:
            ValueError: it is of several pictures, or a number is out of range.
        """
        check_whole(1, count=count)
        check_finite(beta=beta)
        if self.batch != 1 or not 0 <= beta <= 1:
            raise ValueError(f"beta is {beta} and the noise of {self.batch} pictures; expected 0 to 1, and one picture")
        flat = self.flat()
        drawn = [normal(flat.shape, flat, "variation", seed, index) for index in range(1, count)]
        near = [math.sqrt(1 - beta**2) * flat + beta * xi for xi in drawn]
        kept = None if self.kept is None else self.kept.expand(count, *self.kept.shape[1:])
        return replace(self.with_flat(torch.cat([flat, *near])), kept=kept)

    def save(self, path):
        """Write the tensors, the settings and the checkpoint to a safetensors file, whole or not at all.

        Raises:
            ValueError: `path` is no name of a file.
            OSError: it could not be written; what was there before is unchanged.
        """
        parts = {"": self} | ({} if self.checkpoint is None else self.checkpoint.parts())
        tensors = {f"{name}{key}": getattr(part, key) for name, part in parts.items() for key in TENSORS}
        if self.kept is not None:
            tensors["kept"] = self.kept
        record = {"format": FORMAT, "settings": self.settings}
        if self.checkpoint is not None:
            record |= {"solver": self.checkpoint.solver, "iteration": self.checkpoint.iteration}
        # One entry: safetensors writes several in any order, and equal noises shall be equal files.
        metadata = {"dno": to_json(record, sort_keys=True)}
        # safetensors refuses tensors that share memory, as the best noise and the last one may.
        tensors = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
        with whole_file(path) as partial:
            partial.touch()
            usual = partial.stat().st_mode
            save_file(tensors, partial, metadata)
            partial.chmod(usual)  # safetensors 0.8 makes files that nobody but their owner may read

    @classmethod
    def load(cls, path):
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a noise file, or one that is damaged; the message names it.
        """
        if not os.path.lexists(path):
            raise FileNotFoundError(f"no noise file at {path}")
        if not os.path.isfile(path):
            raise ValueError(f"{path} is not a file; expected one written by Noise.save")
        text, tensors = _read(path)
        try:
            record = _record_of(text)
            _check_numbers(tensors)
            checkpoint = Checkpoint.of(tensors, record) if "solver" in record else None
            noise = cls(tensors["initial"], tensors["injected"], record["settings"], tensors.get("kept"), checkpoint)
            noise._check_parts()
        except KeyError as error:
            raise ValueError(f"{path} lacks {error}; expected all that Noise.save writes") from error
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        return noise

    def _check_parts(self):
        """Raise ValueError unless all that lies beside the noise has its shape."""
        parts = {} if self.checkpoint is None else self.checkpoint.parts()
        shapes = {
            f"{name}{key}": (getattr(part, key), getattr(self, key)) for name, part in parts.items() for key in TENSORS
        }
        if self.kept is not None:
            shapes["kept"] = self.kept, self.initial
        for name, (found, expected) in shapes.items():
            if found.shape != expected.shape:
                raise ValueError(f"{name} is {tuple(found.shape)}; expected {tuple(expected.shape)}, as the noise is")


@dataclass(frozen=True)
class Checkpoint:
    """Where a search goes on: its last noise, and what its solver remembers of the way there.

    Example:
        >>> sample_map = core.SampleMap(lambda x, sigma: x / 2, core.Schedule([2.0, 1.0, 0.0]), shape=(1, 3, 4, 4))
        >>> noise, solver = sample_map.randn(seed=0), core.GradientAscent()
        >>> found = core.optimize(sample_map, rewards.Brightness(), noise, solver, iterations=3).noise
        >>> found.checkpoint.solver, found.checkpoint.iteration, sorted(found.checkpoint.memory)
        ('GradientAscent(adam)', 3, ['exp_avg', 'exp_avg_sq'])

    Attributes:
        noise: of the next iteration; the best may be an earlier one.
        solver: name of the solver; only the same one goes on.
        iteration: number of updates made.
        memory: name -> a Noise of that quantity for each entry of z, e.g. Adam's moments "exp_avg" and "exp_avg_sq".
    """

    noise: Noise
    solver: str
    iteration: int
    memory: dict

    def map(self, function):
        """Apply `function` to every Noise of it."""
        memory = {name: function(noise) for name, noise in self.memory.items()}
        return replace(self, noise=function(self.noise), memory=memory)

    def parts(self):
        """Return its Noises by the prefix that they have in a file."""
        return {"checkpoint/": self.noise} | {f"memory/{name}/": noise for name, noise in self.memory.items()}

    @classmethod
    def of(cls, tensors, record):
        """Read it back from a file's tensors and record."""
        names = sorted({key.split("/")[1] for key in tensors if key.startswith("memory/")})
        memory = {name: Noise(*(tensors[f"memory/{name}/{key}"] for key in TENSORS)) for name in names}
        noise = Noise(*(tensors[f"checkpoint/{key}"] for key in TENSORS))
        if not isinstance(record["solver"], str) or not _is_whole(record["iteration"]) or record["iteration"] < 0:
            found = f"{record['solver']!r} and {record['iteration']!r}"
            raise ValueError(f"solver and iteration are {found}; expected a name and a number of 0 or more")
        return cls(noise, record["solver"], record["iteration"], memory)


def _read(path):
    """Return the text of a noise file's record, and its tensors by name; raise ValueError for another kind of file."""
    try:
        with safe_open(path, framework="pt") as file:
            text, keys = (file.metadata() or {}).get("dno"), set(file.keys())
            # Before any tensor is read: the user may have chosen a model of many gigabytes.
            if text is not None and set(TENSORS) <= keys:
                return text, {key: file.get_tensor(key) for key in keys}
    except (SafetensorError, OSError, ValueError) as error:
        message = f"{path} is not a safetensors file ({error}); expected one written by Noise.save"
        raise ValueError(message) from error
    found = ", ".join(sorted(keys)[:8]) or "nothing"
    raise ValueError(f"{path} is not a noise file: it holds {found}; expected one written by Noise.save")


def _record_of(text):
    """Return what a file says about its noise, a dict of the types that it must have."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its record is not JSON ({error})") from error
    if not isinstance(record, dict) or not isinstance(record.get("settings"), dict):
        raise ValueError("its record is not a table with a table of settings; expected what Noise.save writes")
    if record.get("format") != FORMAT:
        raise ValueError(f"its format is {record.get('format')!r}; expected {FORMAT!r}")
    for name, (expected, fits) in SETTINGS.items():
        if name in record["settings"] and not fits(record["settings"][name]):
            raise ValueError(f"its setting {name} is {str(record['settings'][name])[:40]}; expected {expected}")
    return record


def _check_numbers(tensors):
    """Raise ValueError unless all tensors hold finite floats."""
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise ValueError(f"{name} holds {tensor.dtype}; expected one of {', '.join(map(str, DTYPES))}")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds NaN or infinity; expected finite numbers")
    if tensors["initial"].ndim < 2 or not tensors["initial"].numel():
        raise ValueError(f"initial is {tuple(tensors['initial'].shape)}; expected (B, C, H, W), one picture or more")


def _is_whole(value):
    return isinstance(value, int) and not isinstance(value, bool)


def _are_whole(values):
    return isinstance(values, list) and all(map(_is_whole, values))


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


SETTINGS = {
    "sigmas": ("a list of numbers", lambda value: isinstance(value, list) and all(map(_is_number, value))),
    "eta": ("a number", _is_number),
    "family": ("a text", lambda value: isinstance(value, str)),
    "model": ("a text", lambda value: isinstance(value, str)),
    "seed": ("a whole number", _is_whole),
    "sampler": ("a text", lambda value: isinstance(value, str)),
    "sampler_options": ("a table", lambda value: isinstance(value, dict)),
    "picks": ("lists of whole numbers", lambda value: isinstance(value, list) and all(map(_are_whole, value))),
}
"""What a file may say about the settings that others go by: each in words, and whether a value is of that kind."""


def _generator(seed):
    return torch.Generator("cpu").manual_seed(seed % 2**64)
