"""Noise nodes: keep a search's noise, go on from it, replay it in the stock samplers, and judge it."""

import hashlib
import itertools
from dataclasses import replace
from pathlib import Path

import comfy.model_management as mm
import comfy.samplers
import folder_paths
import torch
from comfy_api.latest import io

from .. import core
from ..core import plots
from . import page, requirements, sockets, stock_samplers
from .comfy_map import ComfyRun
from .names import checked_prefix, listed
from .report import as_image
from .stock_samplers import StockSampler

FOLDER = "dno"
"""Where DNO Save Noise writes by default, in ComfyUI's output folder, and where DNO Load Noise looks."""
PREFIX = f"{FOLDER}/noise"


class DNOSaveNoise(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DNOSaveNoise",
            display_name="DNO Save Noise",
            category=sockets.NOISE,
            description=(
                "Writes the noise of a search to a file, with all that replays it and with the solver's state, so"
                " that the search can go on another day."
            ),
            inputs=[
                sockets.Noise.Input("noise", tooltip="From a DNO Sampler."),
                io.String.Input(
                    "filename_prefix", default=PREFIX,
                    tooltip="Name of the file in ComfyUI's output folder; a number is added. DNO Load Noise looks in"
                    " dno/.",
                ),
            ],
            outputs=[],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(cls, noise, filename_prefix) -> io.NodeOutput:
        output = folder_paths.get_output_directory()
        prefix = checked_prefix(filename_prefix, PREFIX)
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, output)
        file = f"{name}_{counter:05}_.safetensors"
        noise.save(Path(folder) / file)
        return io.NodeOutput(ui=page.shown(f"saved as {Path(subfolder) / file} in the output folder"))


class DNOLoadNoise(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DNOLoadNoise",
            display_name="DNO Load Noise",
            category=sockets.NOISE,
            description="Reads a noise that DNO Save Noise or the dno command wrote.",
            inputs=[
                io.Combo.Input(
                    "file", options=noise_files(),
                    tooltip=f"A .safetensors file in ComfyUI's input folder or in output/{FOLDER}.",
                ),
                io.Boolean.Input(
                    "resume", default=True, label_on="go on where it ended", label_off="start at the best",
                    tooltip="Keep the last noise and the solver's state, so that the same kind of solver goes on where"
                    " it stopped.",
                ),
                io.Boolean.Input(
                    "check", default=True, label_on="same settings only", label_off="any settings",
                    tooltip="Refuse a model, schedule or eta other than the noise was made with: it would sample to"
                    " another picture.",
                ),
            ],
            outputs=[
                sockets.Noise.Output("noise", display_name="noise", tooltip="For a DNO Sampler or DNO Replay Noise."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, file=None) -> bool | str:
        try:
            if file is not None:  # else it comes by a link, and is known when the node runs
                path_of(file)
        except FileNotFoundError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file, resume, check):
        if file is None:  # it comes by a link: what it names may have changed, so it is read anew each time
            return float("nan")  # not math.nan, which is one object and so equal to itself for ComfyUI
        return hashlib.sha256(path_of(file).read_bytes()).hexdigest()

    @classmethod
    def execute(cls, file, resume, check) -> io.NodeOutput:
        noise = core.Noise.load(path_of(file))
        if not resume:
            noise = replace(noise, checkpoint=None)
        return io.NodeOutput(noise if check else replace(noise, settings={}))


class DNONoiseFromBatch(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DNONoiseFromBatch",
            display_name="DNO Noise From Batch",
            category=sockets.NOISE,
            description="Takes one picture's noise out of a batch, to replay it or to search on from it alone.",
            inputs=[
                sockets.Noise.Input("noise", tooltip="The noise of a batch."),
                io.Int.Input("picture", default=0, min=0, max=4096, tooltip="Number of the picture, from 0."),
            ],
            outputs=[sockets.Noise.Output("one", display_name="noise", tooltip="A batch of one.")],
        )

    @classmethod
    def execute(cls, noise, picture) -> io.NodeOutput:
        return io.NodeOutput(noise.item(picture))


class DNOVariations(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DNOVariations",
            display_name="DNO Variations",
            category=sockets.NOISE,
            **sockets.aliases("evolve", "mutate", "similar pictures"),
            description=(
                "Neighbours of one picture's noise, to choose among by eye: the picture itself first, then others that"
                " are like it. Sample them by a DNO Sampler with 0 iterations, pick one, vary that one, and so on."
            ),
            inputs=[
                sockets.Noise.Input(
                    "noise", tooltip="From a DNO Sampler or DNO Load Noise; of one picture or of a batch."
                ),
                io.Int.Input(
                    "picture", default=0, min=0, max=4096,
                    tooltip="Of a batch, the number of the picture that was chosen, from 0.",
                ),
                io.Int.Input("count", default=4, min=1, max=4096, tooltip="Pictures to make, the chosen one included."),
                io.Float.Input(
                    "strength", default=0.2, min=0.0, max=1.0, step=0.01, round=0.001,
                    tooltip="How far the others are, the share of their noise that is new: 0.1 changes details, 0.4 the"
                    " layout, 1 everything.",
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True,
                    tooltip="Random seed of what is new.",
                ),
            ],
            outputs=[
                sockets.Noise.Output(
                    "variations", display_name="noise",
                    tooltip="A batch, the chosen one first: for start_noise of a DNO Sampler with a latent of as many.",
                )
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, noise, picture, count, strength, seed) -> io.NodeOutput:
        chosen = replace(noise.item(picture), checkpoint=None)
        return io.NodeOutput(chosen.variations(count, strength, seed))


class DNOReplayNoise(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DNOReplayNoise",
            display_name="DNO Replay Noise",
            category=sockets.NOISE,
            **sockets.aliases("same picture again"),
            description=(
                "Samples a searched noise to its picture again with the stock SamplerCustomAdvanced: connect noise,"
                " sampler and sigmas to it, and the model and prompt of the search through a guider."
            ),
            inputs=[
                sockets.Noise.Input("noise", tooltip="From a DNO Sampler or DNO Load Noise."),
                io.Sampler.Input(
                    "sampler", optional=True,
                    tooltip="The sampler that the noise was searched with, where it has options that no file can hold.",
                ),
            ],
            outputs=[
                io.Noise.Output("first_noise", display_name="noise", tooltip="Its first noise."),
                io.Sampler.Output("replay", display_name="sampler", tooltip="Injects its other noises."),
                io.Sigmas.Output("sigmas", display_name="sigmas", tooltip="The noise levels it was searched at."),
            ],
        )

    @classmethod
    def execute(cls, noise, sampler=None) -> io.NodeOutput:
        if "sigmas" not in noise.settings or not {"eta", "sampler"} & set(noise.settings):
            raise ValueError(
                "the noise does not say with which sigmas and eta it was made; expected one from a DNO Sampler, or from"
                " DNO Load Noise with its check on"
            )
        if sampler is None and "sampler" in noise.settings:
            sampler = stock_samplers.named(noise.settings)
        replay = ReplaySampler(noise, sampler)
        return io.NodeOutput(ReplayedNoise(noise), replay, torch.tensor(noise.settings["sigmas"]))


class ReplayedNoise:
    """ComfyUI's NOISE: the x_T of a `core.Noise`."""

    def __init__(self, noise):
        self.noise, self.seed = noise, noise.settings.get("seed", 0)

    def generate_noise(self, input_latent):
        """Return x_T, (B, C, H, W).

        Raises:
            ValueError: the latent is not of the noise's shape.
        """
        expected, found = tuple(self.noise.initial.shape), tuple(input_latent["samples"].shape)
        # An empty latent of another channel count is made to fit the model by the sampler.
        if found[:1] + found[2:] != expected[:1] + expected[2:]:
            raise ValueError(
                f"the noise is {expected} but the latent is {found}; connect a latent of the size and batch that the"
                " noise was searched for, or take one picture's noise by DNO Noise From Batch"
            )
        return self.noise.initial.clone()


class ReplaySampler(comfy.samplers.Sampler):
    """ComfyUI's SAMPLER that injects the noises of a `core.Noise`.

    Attributes:
        noise: with its settings.
        stock: the SAMPLER that it was searched with; None: DDIM(eta).
    """

    def __init__(self, noise, stock=None):
        self.noise, self.stock = noise, stock

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        ours = self.noise.to(noise.device)
        kept = noise if ours.kept is None else ours.kept
        options, seed = extra_args["model_options"], extra_args.get("seed") or 0
        run = ComfyRun(model_wrap, sigmas, kept, latent_image, denoise_mask, options, seed)
        if self.stock is not None:
            run.stock = StockSampler(self.stock, model_wrap, options, seed, sigmas)
        sample_map = run.sample_map(ours.settings.get("eta", 1.0))
        sample_map.check_settings(ours)
        sample_map.on_step = lambda *stage: mm.throw_exception_if_processing_interrupted()
        if callback is not None:
            _tell_each_step(sample_map, callback)
        return sample_map.noisy_latent(replace(ours, initial=noise))


def _tell_each_step(sample_map, callback):
    """Let a map tell ComfyUI's callback of each step."""
    steps, index = sample_map.schedule.steps, itertools.count()
    if isinstance(sample_map, core.SamplerMap):
        sample = sample_map.sampler

        def sample_and_tell(model, x, sigmas, noise_sampler, told):
            def tell(step):
                told(step)
                callback(step["i"], step["denoised"], step["x"], steps)

            return sample(model, x, sigmas, noise_sampler, tell)

        sample_map.sampler = sample_and_tell
    else:
        denoise = sample_map.denoise

        def denoise_and_tell(x, sigma):
            denoised = denoise(x, sigma)
            callback(next(index), denoised, x, steps)
            return denoised

        sample_map.denoise = denoise_and_tell


class DNONoiseProbability(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DNONoiseProbability",
            display_name="DNO Noise Probability",
            category=sockets.NOISE,
            description=(
                "How probable a noise is under the normal distribution that the model was trained with, and where it is"
                " not: below 0.01 the model no longer believes it, and a search does not take it for the best."
            ),
            inputs=[
                sockets.Noise.Input("noise", tooltip="From a DNO Sampler or DNO Load Noise."),
                io.Int.Input("picture", default=0, min=0, max=4096, tooltip="Number of the picture, from 0."),
            ],
            outputs=[
                io.Float.Output(
                    "probability", display_name="probability", tooltip="The smaller of P(z) and P(x_T), 0 to 1."
                ),
                io.String.Output("text", display_name="text", tooltip="P of all noise and of the first, and norms."),
                io.Image.Output(
                    "image", display_name="image", tooltip="Norm of each noise, map of the first, and histogram."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, noise=None):
        return requirements.met("matplotlib")

    @classmethod
    def execute(cls, noise, picture) -> io.NodeOutput:
        one = noise.item(picture)
        p, p_initial = (
            core.noise_probability(z.flat(), noises=1 + len(z.injected)).item()
            for z in (one, replace(one, injected=one.injected[:0]))
        )
        norms = [(z.norm() / z.numel() ** 0.5).item() for z in (one.flat(), one.initial)]
        text = f"P(z) {p:.2g}, P(x_T) {p_initial:.2g}; norm of z {norms[0]:.4f}, of x_T {norms[1]:.4f} (true noise: 1)"
        return io.NodeOutput(min(p, p_initial), text, as_image(plots.shell(one)), ui=page.shown(text))


def noise_files():
    """Return the .safetensors files in the input folder, and those DNO Save Noise wrote, as ComfyUI spells them."""
    inputs, outputs = Path(folder_paths.get_input_directory()), Path(folder_paths.get_output_directory()) / FOLDER
    names = [file.name for file in sorted(inputs.glob("*.safetensors")) if file.is_file()]
    saved = sorted(file.relative_to(outputs).as_posix() for file in outputs.rglob("*.safetensors") if file.is_file())
    return names + [f"{FOLDER}/{name} [output]" for name in saved]


def path_of(name):
    """Return the path of a noise file; the name may have the slashes of another system.

    Raises:
        FileNotFoundError: it is not in the list, whatever it leads to: a workflow of others shall not read other files.
    """
    known = listed(name, noise_files())
    if known is None:
        raise FileNotFoundError(
            f"there is no noise file {name}; expected one in ComfyUI's input folder or in output/{FOLDER}. Put it there"
            " and refresh the list with R"
        )
    return Path(folder_paths.get_annotated_filepath(known))
