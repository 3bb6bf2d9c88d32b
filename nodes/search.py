"""A search inside ComfyUI's sampling: a `comfy.samplers.Sampler` that any guider can run, and its settings.

`comfy_map` tells the way of one noise tensor through here.
"""

import contextlib
import logging
from dataclasses import dataclass, field, replace
from functools import partial

import comfy.model_management as mm
import comfy.sampler_helpers
import comfy.samplers
import torch

from .. import core
from ..core.memory import DECODER, STEP
from ..core.picture_regularizer import refuse_without_gradient
from ..core.scoring import require_differentiable
from ..core.slopes import refuse_a_wrong_gradient
from . import gradients, graph_sizes, hooks, page, patches, recast, residency, weights
from .comfy_map import ComfyRun, decode_raw, seen_by, stays
from .rewards.combine import calibrated, pictures_wanted
from .stock_samplers import StockSampler

log = logging.getLogger(__name__)

WHOLE, BY_BLOCKS = 0, 1
WAYS = {"fast": [WHOLE], "step": [WHOLE], "low": [BY_BLOCKS]}
"""Memory -> how its graphs are made; for every other one whole where that fits, else by blocks."""

# Of the free memory, the part that one call's candidates may take; and the most pictures worth one call.
CANDIDATES_SHARE, MOST_PICTURES = 0.5, 64


class OptimizedSampler(comfy.samplers.Sampler):
    """Search the noise of one sampling run for a higher reward.

    Attributes:
        vae: the comfy VAE that turns latents into the pictures the reward sees.
        optimization: the rest of the settings.
        result: after `sample`, the `core.Result`. Its latent is what `sample` returned; where the sigmas leave noise in
            that, it is the last step's denoised, which the reward has judged.
    """

    def __init__(self, vae, optimization):
        self.vae, self.optimization, self.result = vae, optimization, None

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        if self.optimization.iterations > 0:
            refuse_an_empty_mask(denoise_mask)
        if self.optimization.searches:
            patches.refuse_clips(model_wrap.inner_model, extra_args["model_options"], noise.shape)
        patcher = model_wrap.model_patcher
        vae_patcher = gradients.without_dynamic_memory(self.vae.patcher)
        guide = self._guide()
        guide_patcher = vae_patcher if guide is None else gradients.without_dynamic_memory(guide.patcher)
        model_options, differentiates = extra_args["model_options"], self.optimization.differentiates
        if self.optimization.differentiates_decoder:
            gradients.refuse_undifferentiable(guide_patcher)
        if differentiates:
            patches.refuse_a_state(model_options)
            model_options = weights.thaw(gradients.with_plain_attention(model_options))
            gradients.refuse_undifferentiable(patcher)
        watched = gradients.watched_for_gradients(model_wrap.inner_model)
        enabled = gradients.gradients_enabled(of_models=differentiates)
        with enabled, watched as expect_gradient, residency.of_a_search() as resident:
            models = [patcher, *getattr(model_wrap, "loaded_models", ())]
            sigmas, noise, latent_image, denoise_mask = weights.thaw((sigmas, noise, latent_image, denoise_mask))
            seed = extra_args.get("seed") or 0
            stock = self._stock(model_wrap, model_options, seed, sigmas)
            stages, most_rows, load_models, load_vae, load_guide = self._loaders(
                resident, model_wrap, models, vae_patcher, (guide or self.vae, guide_patcher), noise.shape,
                calls=stock.traits.calls if stock else len(sigmas) - 1,
                one_at_a_time=patches.has_cache(model_options),
            )  # fmt: skip
            model_wrap.conds = weights.thaw(model_wrap.conds)
            keyframes = hooks.Keyframes(patcher, model_wrap.conds, sigmas)
            run = ComfyRun(
                model_wrap, sigmas, noise, latent_image, denoise_mask, model_options, seed, expect_gradient,
                load_models, keyframes.go_to, self.optimization.searches, stock=stock,
            )  # fmt: skip
            if self.optimization.differentiates_decoder:
                run.load_again = load_models

            def decoder(vae, patcher, load):
                settings = model_wrap.inner_model, load, self.optimization.every
                return partial(weights.Renewal(), decode_raw, vae, patcher.model, *settings)

            decode = decoder(self.vae, vae_patcher, load_vae)
            run.decoder_blocks = core.Blocks([vae_patcher.model], decode.func)
            guide_decode = None if guide is None else decoder(guide, guide_patcher, load_guide)
            options = self.optimization.guided_by(guide_decode)
            run.resident, run.stages = resident, stages
            with contextlib.ExitStack() as kept:
                kept.callback(keyframes.close)
                if differentiates:
                    kept.enter_context(hooks.weights_kept(patcher))
                if self.optimization.differentiates_decoder:
                    hooked = bool(getattr(patcher, "hook_patches", None))
                    kept.enter_context(recast.casting_again([*models, vae_patcher, guide_patcher], hooked))
                self.result, latent = options.search(run, decode, most_rows)
            stages.remember()
        return latent

    def _guide(self):
        """Return the VAE that decodes for the solver's guidance alone, or None; raise ValueError if it does not fit."""
        guide = getattr(self.optimization.solver, "guide_decode", None)
        if guide is None:
            return None
        guide.vae.throw_exception_if_invalid()
        if guide.vae.latent_channels != self.vae.latent_channels or guide.vae.output_channels != 3:
            raise ValueError(
                f"guide_vae decodes latents of {guide.vae.latent_channels} channels but the sampler's VAE"
                f" {self.vae.latent_channels}; expected a smaller VAE of the same latents, such as this model's TAESD"
            )
        return guide.vae

    def _stock(self, model_wrap, model_options, seed, sigmas):
        """Return the `StockSampler` of the run, or None; raise ValueError where it cannot be searched."""
        if self.optimization.sampler is None:
            return None
        stock = StockSampler(self.optimization.sampler, model_wrap, model_options, seed, sigmas)
        if self.optimization.differentiates:
            stock.refuse_a_wrong_gradient()
        return stock

    def _loaders(self, resident, model_wrap, models, vae_patcher, guide, shape, calls, one_at_a_time):
        """Return the `Stages`, how many pictures are worth a call, and what loads models, VAE and guide.

        Candidates are sampled one call's worth at a time, so that a call's memory is all that they take. A call's worth
        is one candidate where `one_at_a_time`, as a step cache needs, which goes by all rows of a call.

        Where something is differentiated, the `Residency` keeps all in memory together or loads each in its turn. Else
        each stage loads what it runs, as ComfyUI's own nodes do, which may move out the others where memory is short.
        `guide` is the VAE that is differentiated, and its patcher.
        """
        guide, guide_patcher = guide
        network = model_wrap.inner_model
        call = memory_of_a_call(model_wrap, models, shape)
        seen = seen_by(self.vae, torch.empty(shape, device="meta")).shape
        decode, guided = (vae.memory_used_decode(seen, vae.vae_dtype) for vae in (self.vae, guide))
        # Decoders of videos work through the frames one after another, but autograd keeps what it needs of all.
        frames = seen[2] if len(seen) == 5 else 1
        guesses = self.optimization.guesses(calls)
        decoded = guided * frames * max(guesses, 1)
        stages = graph_sizes.Stages({STEP: (network, call), DECODER: (guide_patcher.model, decoded)})
        hooked = 0
        # What graphs take, whole and by blocks.
        steps, decodes = (call, call), (decode, decode)
        if self.optimization.differentiates:
            hooked = hooks.memory_kept(model_wrap.model_patcher, model_wrap.conds)
            count = self.optimization.graphs(calls)
            steps = [count * (each + hooked) for each in stages.sizes(STEP)]
        if self.optimization.differentiates_decoder:
            decodes = [max(each, decode) for each in stages.sizes(DECODER)]
            # One stage's graph is there at a time, unless the steps' are kept, or one waits for the decoder's.
            together = sum if self.optimization.memory == "fast" or guesses else max
            ways = WAYS.get(self.optimization.memory, [WHOLE, BY_BLOCKS])
            sizes = {way: together((steps[way], decodes[way])) for way in ways}
            guided = decodes[resident.begin([*models, vae_patcher, guide_patcher], sizes)]
        alone = self.optimization.differentiates_decoder and not self.optimization.differentiates
        one_at_a_time = one_at_a_time or alone or not resident.together
        free = mm.get_free_memory(model_wrap.model_patcher.load_device)
        batches = int(CANDIDATES_SHARE * free / max(call, decode, guided, 1))
        most = 1 if one_at_a_time else min(MOST_PICTURES // shape[0], self.optimization.candidates)
        batches = max(min(batches, most), 1)
        if not self.optimization.differentiates_decoder:
            load_vae = partial(residency.load, [vae_patcher], batches * decode)
            load_models = partial(residency.load, models, batches * call)
            return stages, shape[0] * batches, load_models, load_vae, load_vae

        def step_needs():
            return call if alone else stages.needed(STEP) + hooked

        def decode_needs():
            waiting = step_needs() if guesses else 0
            return max(stages.needed(DECODER), decode) + waiting

        load_guide, load_vae = (
            resident.stage([patcher], needs, whole=getattr(each, "disable_offload", False))
            for each, patcher, needs in ((guide, guide_patcher, decode_needs), (self.vae, vae_patcher, lambda: decode))
        )
        load_vae = load_guide if guide is self.vae else load_vae
        return stages, shape[0] * batches, resident.stage(models, step_needs), load_vae, load_guide


def told(resident):
    """Return what a user should know of models that took turns in memory, sentences."""
    if resident.together or not resident.loads:
        return []
    return [
        "model, VAE and reward were not in memory together, so each was loaded when it ran,"
        f" {resident.loads} times, {resident.seconds:.1f} s in all. Free memory, or take a smaller picture or model"
    ]


def memory_of_a_call(guider, models, shape):
    """Return the bytes that one call of a guider's models takes beside their weights, without autograd.

    ComfyUI's estimate is for the model alone. A ControlNet runs in the same call; it is taken to need as much for its
    weights as the model does.

    Args:
        guider: ComfyUI's, its prompts prepared.
        models: patchers, the guider's model first.
        shape: of the latent.
    """
    model, *others = models
    alone, _ = comfy.sampler_helpers.estimate_memory(model, shape, guider.conds)
    _, extra = comfy.sampler_helpers.get_additional_models(guider.conds, model.model_dtype())
    weights = {id(each.model): each.model_size() for each in others}
    return alone * (1 + sum(weights.values()) / model.model_size()) + extra


def refuse_an_empty_mask(denoise_mask):
    """Raise ValueError where no pixel of any picture would be made anew, so that there is nothing to search.

    Where that is so of some pictures, the log says of which.
    """
    if denoise_mask is None:
        return
    empty = [item for item, mask in enumerate(denoise_mask) if not mask.any()]
    if len(empty) < len(denoise_mask):
        for item in empty:
            log.warning("picture %d: its mask is empty, so it stays as it is and there is nothing to search", item)
    else:
        raise ValueError(
            "the mask is empty: no part of the picture is made anew, so there is nothing to search. Paint a mask,"
            " invert it, or set iterations to 0"
        )


@dataclass(frozen=True)
class Optimization:
    """The settings of one optimisation.

    Attributes:
        reward: reward(images, prompts) -> scores.
        eta: in [0, 1].
        iterations: updates of the noise; 0 only samples.
        solver, regularizer: of `core`, or None for the default and for none.
        seconds: time budget, or None.
        watch: rewards that are recorded, not optimised.
        settings: what else made the noise, kept with it and with the history.
        start: the noise to start from, of an earlier search; None draws that of the seed.
        part: which noises are searched, as `core.SampleMap.part`.
        diagnose: find out at the end why the search stopped improving.
        every: of a video, each how many frames one is judged.
        sampler: a SAMPLER of ComfyUI's to sample with, instead of by `core.sde_step` with `eta`; or None.
        floors: watched reward's name -> the least score of a picture that may become the best, as `core.optimize`.
        target: of every picture's best score, at which the search stops; or None.
        memory: what of the graphs is kept, as `core.SampleMap.memory`.

    Raises:
        ValueError: the solver needs a gradient that the reward has not, or takes none that a regularizer of the picture
            could add to: here, before a model is loaded.
    """

    reward: object
    eta: float = 1.0
    iterations: int = 20
    solver: object = None
    regularizer: object = None
    seconds: float | None = None
    watch: tuple = ()
    settings: dict = field(default_factory=dict)
    start: core.Noise | None = None
    part: str = "all"
    diagnose: bool = False
    every: int = 1
    sampler: object = None
    floors: dict = field(default_factory=dict)
    target: float | None = None
    memory: str | float = "auto"

    def __post_init__(self):
        if self.iterations > 0 and getattr(self.solver or core.default_solver(), "needs_gradient", False):
            require_differentiable(self.reward)
        if self.iterations > 0:
            refuse_without_gradient(self.solver or core.default_solver(), self.regularizer)

    @property
    def searches(self):
        """Whether noises are sampled more than once."""
        return self.iterations > 0 or self.diagnose

    @property
    def differentiates(self):
        """Whether model and VAE are differentiated, and not only run."""
        return self.diagnose or self._asked_of_solver is True

    @property
    def differentiates_decoder(self):
        """Whether the VAE is differentiated, with the model or by itself."""
        return self.differentiates or self._asked_of_solver == "decoder"

    @property
    def _asked_of_solver(self):
        """What the solver differentiates: True, "decoder" or False, as `core.Solver` says."""
        return self.iterations > 0 and getattr(self.solver or core.default_solver(), "differentiates", True)

    def guesses(self, calls):
        """Return how many pictures are decoded at once beside a call's graph, as `core.Solver` says; 0: none are."""
        guesses = getattr(self.solver or core.default_solver(), "guesses", None)  # a solver need not know
        return guesses(calls) if guesses and self.iterations > 0 else 0

    def graphs(self, calls):
        """Return how many graphs of calls must fit into memory together, of a run of so many calls."""
        if self.memory != "fast":
            return 1
        graphs = getattr(self.solver, "graphs", None)  # a solver need not know
        asked = self.regularizer.calls if isinstance(self.regularizer, core.PictureRegularizer) else 0
        return (graphs(calls, self.iterations) if graphs else calls) + asked

    @property
    def candidates(self):
        """How many candidates of each picture the solver compares in an iteration."""
        solver = self.solver or core.default_solver()
        counts = [getattr(solver, name, 0) for name in ("candidates", "samples")]
        counts.append(getattr(getattr(solver, "estimator", None), "q", 0))
        counts += [belief.noises for belief in self._beliefs]  # which are sampled like candidates
        return max(count for count in counts if isinstance(count, int)) + 1  # some compare them with the noise itself

    @property
    def _beliefs(self):
        return [each for each in self.watch if isinstance(each, core.Belief)]

    def guided_by(self, decode):
        """Return these settings with a solver that decodes by `decode` for its guidance; None changes nothing."""
        return self if decode is None else replace(self, solver=replace(self.solver, guide_decode=decode))

    def search(self, run, decode, most_rows):
        """Optimise the noise of a `ComfyRun`; return the `core.Result` of the best, and what it samples to."""
        with contextlib.closing(page.Progress(self.iterations)) as progress:
            return self._search(run, decode, most_rows, progress)

    def _prepared(self, run, decode, most_rows, progress):
        """Return the SampleMap of a `ComfyRun`, gradient and patches of its model checked, and the first noise."""
        sample_map = run.sample_map(
            self.eta, decode, part=self.part, most_rows=most_rows,
            memory=self.memory, on_step=progress.on_step,
        )  # fmt: skip
        sample_map.plan.always_counts = True
        run.stages.plan = sample_map.plan
        run.resident.when_in_turns(partial(self._keep_nothing, sample_map))
        if self.start is None:
            noise = run.first_noise(sample_map.injected, self.settings)
        else:
            # Copied: what a node loaded is an inference tensor.
            noise = replace(self.start, settings=self.start.settings | self.settings).to(run.noise.device, copy=True)
            sample_map.check(noise)
        if self.differentiates:
            progress.say("checking the model's gradient ..")
        if self.searches:
            self._probe(run, sample_map)
        if self.differentiates:
            sample_map.plan.retried(partial(self._check_gradient, run, sample_map), stays, STEP)
        return sample_map, noise

    @staticmethod
    def _with_kept(run, noise):
        """Let `run.denoise` noise the kept part of an inpainting as `noise` says; return the noise with that in it."""
        run.noise = noise.initial if noise.kept is None else noise.kept
        return replace(noise, kept=run.noise if run.denoise_mask is not None else None)

    def _search(self, run, decode, most_rows, progress):
        solver = self.solver or core.default_solver()
        sample_map, noise = self._prepared(run, decode, most_rows, progress)
        extra = self._calibration_batches(sample_map) * sample_map.stages
        extra += sample_map.network_calls * sample_map.judge_denoised
        extra += sum(belief.stages(sample_map) for belief in self._beliefs)
        if isinstance(self.regularizer, core.PictureRegularizer):
            extra += self.regularizer.stages(sample_map)
        progress.begin(core.stages(sample_map, solver, self.iterations) + extra)
        reward, *watch = self._calibrated(run, sample_map)
        noise = self._with_kept(run, noise)
        result = core.optimize(
            sample_map, reward, noise, solver=solver, regularizer=self.regularizer, iterations=self.iterations,
            seconds=self.seconds, watch=watch, callback=progress.on_iteration, target=self.target,
            diagnose=self.diagnose, stop=lambda: progress.stopped, floors=self.floors,
            preview=progress.on_preview,
        )  # fmt: skip
        latent = sample_map.noisy_latent(result.noise) if sample_map.judge_denoised else result.latent
        progress.end()
        result.history.settings |= result.noise.settings
        result.history.warnings += told(run.resident)
        return result, latent

    def _keep_nothing(self, sample_map):
        """Keep no step's graph from now on: it would hold the model in the memory that the VAE or a tower needs."""
        sample_map.memory = "step" if self.memory in ("fast", "step") else "low"
        log.info("memory is %s, since the models are loaded in turn", sample_map.plan.memory)

    @staticmethod
    def _check_gradient(run, sample_map):
        x, sigma = run.halfway()
        network = run.guider.inner_model.diffusion_model
        with sample_map.plan.graph(STEP):
            refuse_a_wrong_gradient(sample_map.denoise, network, x, sigma.expand(len(x)), sample_map.in_place)

    def _probe(self, run, sample_map):
        """Find out by a few calls what patches of any pack do, and set how many pictures may be in a call.

        Raises:
            RuntimeError: the model keeps a state, and is to be differentiated.
            ValueError: the pictures of the batch depend on each other.
        """
        batch, several = sample_map.shape[0], sample_map.most_rows > sample_map.shape[0]
        if patches.has_cache(run.model_options) or not (self.differentiates or batch > 1 or several):
            return
        probe = patches.Probe(run)
        if probe.keeps_a_state():
            # Then runs may be alike though calls are not, and calls of other sizes may break.
            sample_map.most_rows = batch
            if self.differentiates:
                raise RuntimeError(
                    "the same call of the model gives another result the second time: it keeps a state between calls,"
                    " or draws random numbers of its own, so that there is no gradient to follow. Remove patches that"
                    " skip or remember steps (TeaCache, DeepCache), or use a solver that needs none (ZeNO, Search,"
                    " Zeroth-Order's zo-sgd)"
                )
        elif batch > 1 and probe.couples_pictures():
            raise ValueError(
                f"the {batch} pictures of this batch depend on each other, by a patch or guider (Perp-Neg, Mahiro,"
                " motion modules) or by the kind of model, so that none has a noise of its own; expected pictures that"
                " do not. Set the batch size to 1, or remove the patch"
            )
        elif several and probe.mixes_candidates():
            log.warning("a patch of the model mixes the pictures of a call, so candidates are sampled one at a time")
            sample_map.most_rows = batch

    def _calibrated(self, run, sample_map):
        """Return the reward and the watched ones, z-scored where they ask for it by unsearched noises of the run.

        The noises are those of the seeds 0, 1, .. whatever the run's: scores of runs with different seeds compare.
        """
        judges, images, own = (self.reward, *self.watch), [], run.noise
        for seed in range(self._calibration_batches(sample_map)):
            noise = sample_map.randn(seed).to(own.device)
            run.noise = noise.initial
            images.append(sample_map.sample(noise))
        run.noise = own
        return [calibrated(judge, images) for judge in judges] if images else judges

    def _calibration_batches(self, sample_map):
        return -(-max(map(pictures_wanted, (self.reward, *self.watch))) // sample_map.shape[0])
