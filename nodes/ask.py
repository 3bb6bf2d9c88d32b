"""DNO Ask: a person in the place of a reward, a round each time that the workflow is queued.

The node keeps nothing from one run to the next: the picks that are typed into it, the seed and the settings lead from
the first noise to the current one again, without sampling, and a round alone is sampled.
"""

import math
import re
from dataclasses import dataclass, field, replace

import comfy.sample
import comfy.samplers
import torch
from comfy_api.latest import io

from .. import core
from ..core import plots
from ..core.history import thumbnail
from . import gradients, page, requirements, sockets
from .report import as_image, files
from .sampler import checked_latent, decoded, inputs_of_ksampler
from .search import Optimization, OptimizedSampler, told

TILE = 256
"""Pixels of a picture on the sheet."""


class DNOAsk(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DNOAsk",
            display_name="DNO Ask",
            category=sockets.CATEGORY,
            **sockets.aliases("choose", "pick", "evolve", "human in the loop", "preference", "ksampler"),
            is_output_node=True,
            description=(
                "Samples like KSampler, but several pictures: what you have, and others near it. Type the number of the"
                " one that you like behind your picks and queue again: that one is what you have then."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model used for denoising the input latent."),
                # Not named seed: the front end would draw another one after every run.
                io.Int.Input(
                    "start_seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF,
                    tooltip="The random seed of the first picture and of all that are near it. Another seed begins"
                    " anew: empty the picks then.",
                ),
                *inputs_of_ksampler(
                    steps="Denoising steps of one picture; the time of a round grows with them.",
                    latent_image="The latent image to denoise, of one picture; with its mask.",
                ),
                io.Vae.Input("vae", tooltip="Decodes the latents to the pictures that you judge."),
                io.Float.Input(
                    "eta", default=1.0, min=0.0, max=1.0, step=0.01, round=0.001,
                    tooltip="Noise injected in each step: 1 is the SDE, where all noises are varied; 0 the ODE, where"
                    " only the first noise counts.",
                ),
                io.String.Input(
                    "picks", default="",
                    tooltip="What you liked in each round so far, numbers of pictures: 2, 0, 3. Of several alike: 1+4."
                    " 0 keeps what you have and shows nearer ones. Take numbers away to go back.",
                ),
                io.Int.Input(
                    "count", default=6, min=2, max=64,
                    tooltip="Pictures of a round, what you have among them. Each is one sampling run.",
                ),
                io.Float.Input(
                    "strength", default=0.3, min=0.01, max=1.0, step=0.01, round=0.001,
                    tooltip="How far the others are, the share of their noise that is new: 0.1 changes details, 0.4 the"
                    " layout. It counts for all rounds, also for those behind you.",
                ),
                sockets.Noise.Input(
                    "start_noise", optional=True,
                    tooltip="Begin at this noise instead of the seed's: of an earlier asking, which then goes on, or of"
                    " a DNO Sampler; of one picture.",
                ),
            ],
            outputs=[
                io.Latent.Output("latent", display_name="latent", tooltip="Of the picture that you have."),
                io.Image.Output("image", display_name="image", tooltip="The picture that you have, number 0."),
                sockets.Noise.Output(
                    "noise", display_name="noise",
                    tooltip="Its noise, with your picks: to save, to search on by a DNO Sampler, or to ask on.",
                ),
                io.Image.Output("sheet", display_name="sheet", tooltip="All pictures of the round, numbered."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, picks=None):
        try:
            answers_of(picks or "")
        except ValueError as error:
            return str(error)
        return requirements.met("matplotlib")

    @classmethod
    def execute(
        cls, model, start_seed, steps, cfg, scheduler, positive, negative, latent_image, denoise, vae, eta, picks,
        count, strength, start_noise=None,
    ) -> io.NodeOutput:  # fmt: skip
        model = gradients.without_dynamic_memory(model)
        latent = checked_latent(model, vae, latent_image)
        sigmas = comfy.samplers.KSampler(model, steps, model.load_device, "euler", scheduler, denoise).sigmas
        if len(sigmas) < 2:
            raise ValueError(f"denoise is {denoise}: no step is left to vary the noise of; expected more than 0")
        settings = {"steps": steps, "cfg": cfg, "scheduler": scheduler, "denoise": denoise}
        asking = Asking(
            eta=eta, start=start_noise,
            settings=settings if start_noise is not None else {"seed": start_seed, **settings},
            preference=core.Preference(count, strength, start_seed), answers=answers_of(picks),
        )  # fmt: skip
        sampler = OptimizedSampler(vae, asking)
        samples = comfy.sample.sample_custom(
            model, comfy.sample.prepare_noise(latent, start_seed, latent_image.get("batch_index")), cfg, sampler,
            sigmas, positive, negative, latent, noise_mask=latent_image.get("noise_mask"), disable_pbar=True,
            seed=start_seed,
        )  # fmt: skip
        kept = {name: value for name, value in latent_image.items() if not name.startswith("downscale_ratio")}
        sheet = as_image(sheet_of(sampler.result.images))
        shown = {"images": files(sheet)} | page.shown(standing(sampler.result)).as_dict()
        noise = sampler.result.noise.to("cpu")
        return io.NodeOutput({**kept, "samples": samples}, decoded(vae, samples), noise, sheet, ui=shown)


@dataclass(frozen=True)
class Round:
    """What a round of asking shows.

    Attributes:
        noise: of the picture that there is, with the answers so far.
        images: (K, 3, H, W), that picture and its neighbours.
        warnings: what the user should know, sentences.
    """

    noise: core.Noise
    images: torch.Tensor
    warnings: list


@dataclass(frozen=True)
class Asking(Optimization):
    """The settings of a round of asking: it takes the place of a search inside ComfyUI's sampling.

    Attributes:
        preference: what is shown.
        answers: of the rounds before, see `core.Preference.after`.
    """

    reward: object = None
    iterations: int = 0
    preference: core.Preference = field(default_factory=core.Preference)
    answers: list = field(default_factory=list)

    searches = True

    @property
    def candidates(self):
        return self.preference.candidates

    def _search(self, run, decode, most_rows, progress):
        sample_map, noise = self._prepared(run, decode, most_rows, progress)
        sample_map.check_settings(noise)
        for answer in self.answers:
            noise = self.preference.after(sample_map, noise, answer)
        progress.begin(sample_map.calls(self.candidates) * sample_map.stages)
        noise = self._with_kept(run, noise)
        latent, images = self.preference.shown(sample_map, noise)
        progress.end()
        noise = replace(noise, settings=noise.settings | sample_map.settings)
        return Round(noise, images, told(run.resident)), latent[:1]


def answers_of(picks):
    """Return the answers in a text, a list of numbers each.

    Example:
        >>> answers_of("2, 0 1 + 3")
        [[2], [0], [1, 3]]
    """
    rounds = re.sub(r"\s*\+\s*", "+", picks.replace(",", " ")).split()
    try:
        return [[int(number) for number in each.split("+")] for each in rounds]
    except ValueError as error:
        raise ValueError(
            f"the picks are {picks!r}; expected a number of a picture for each round, such as 2, 0, 3, or of several"
            " that are liked alike: 1+4"
        ) from error


def sheet_of(images):
    """Return a contact sheet of a round, its pictures numbered, in about as many rows as columns."""
    pictures = plots.to_pictures(thumbnail(images, TILE))
    captions = ["0 (what you have)", *map(str, range(1, len(pictures)))]
    return plots.contact_sheet(pictures, captions, columns=math.ceil(math.sqrt(len(pictures))), size=TILE)


def standing(shown):
    """Return which round it is, what was picked so far, and what to do next, a line each."""
    picks = core.picks_of(shown.noise)
    so_far = ", ".join("+".join(map(str, picked)) for picked in picks) or "nothing"
    return "\n".join(
        [
            f"Round {len(picks) + 1}; picked so far: {so_far}.",
            "Type the number of the one you like behind the picks, and queue again.",
            *shown.warnings,
        ]
    )
