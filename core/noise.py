"""The noise z = (x_T, w_1, w_2, ..) of one sampling run: everything that is optimised, and the file it is kept in."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

FORMAT = "dno_noise_1"
TENSORS = ("initial", "injected")


@dataclass(frozen=True)
class Noise:
    """The sampling noise of a batch, unit variance.

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
        """
        initial = torch.randn(shape, generator=_generator(seed), device="cpu")
        generator = _generator(seed + 1)
        steps = [torch.randn(shape, generator=generator, device="cpu") for _ in range(injected)]
        return cls(initial, torch.stack(steps) if steps else initial.new_zeros((0, *initial.shape)))

    @property
    def batch(self):
        """B, the number of pictures."""
        return self.initial.shape[0]

    def flat(self):
        """Return z as (B, n): each picture's x_T, then its injected noises in order."""
        rest = self.injected.transpose(0, 1).reshape(self.batch, -1)
        return torch.cat([self.initial.reshape(self.batch, -1), rest], dim=1)

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
        if not -self.batch <= index < self.batch:
            raise ValueError(f"picture {index} of a batch of {self.batch}; expected 0 .. {self.batch - 1}")
        rows = slice(index % self.batch, index % self.batch + 1)
        return Noise(
            self.initial[rows],
            self.injected[:, rows],
            self.settings,
            None if self.kept is None else self.kept[rows],
            self.checkpoint and self.checkpoint.map(lambda noise: noise.item(index)),
        )

    def save(self, path):
        """Write the tensors, the settings and the checkpoint to a safetensors file."""
        parts = {"": self} | ({} if self.checkpoint is None else self.checkpoint.parts())
        tensors = {f"{name}{key}": getattr(part, key) for name, part in parts.items() for key in TENSORS}
        if self.kept is not None:
            tensors["kept"] = self.kept
        record = {"format": FORMAT, "settings": self.settings}
        if self.checkpoint is not None:
            record |= {"solver": self.checkpoint.solver, "iteration": self.checkpoint.iteration}
        # One entry: safetensors writes several in any order, and equal noises shall be equal files.
        metadata = {"dno": json.dumps(record, sort_keys=True)}
        # safetensors refuses tensors that share memory, as the best noise and the last one may.
        save_file({key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}, path, metadata)

    @classmethod
    def load(cls, path):
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a noise file.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"no noise file at {path}")
        try:
            with safe_open(path, framework="pt") as file:
                metadata, keys = file.metadata() or {}, set(file.keys())
                tensors = {key: file.get_tensor(key) for key in keys}
        except SafetensorError as error:
            message = f"{path} is not a safetensors file ({error}); expected one written by Noise.save"
            raise ValueError(message) from error
        record = json.loads(metadata.get("dno", "{}"))
        if record.get("format") != FORMAT or not set(TENSORS) <= keys:
            raise ValueError(f"{path} is not a noise file: found {sorted(keys)}; expected one written by Noise.save")
        try:
            checkpoint = Checkpoint.of(tensors, record) if "solver" in record else None
            return cls(tensors["initial"], tensors["injected"], record["settings"], tensors.get("kept"), checkpoint)
        except KeyError as error:
            raise ValueError(f"{path} lacks {error}; expected all that Noise.save writes") from error


@dataclass(frozen=True)
class Checkpoint:
    """Where a search goes on: its last noise, and what its solver remembers of the way there.

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
        return cls(noise, record["solver"], record["iteration"], memory)


def _generator(seed):
    return torch.Generator("cpu").manual_seed(int(seed) % 2**64)
