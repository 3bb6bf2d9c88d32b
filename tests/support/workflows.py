"""The workflow that most node tests start from: a tiny model, a reward and a DNO Sampler."""

import re
import time

from comfy_server import Graph


def error(found, expected):
    """The largest difference, relative to the largest expected value."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


class Workflow(Graph):
    """A graph with a tiny model in it.

    Attributes:
        model, positive, negative, vae, reward: links to put into other nodes; overwrite them to patch the workflow.
    """

    def __init__(self, family="eps", dtype="float32", obstacle=None, vae_channels=4, model_seed=0):
        super().__init__()
        settings = {"family": family, "seed": model_seed, "dtype": dtype, "vae_channels": vae_channels}
        video = family == "video"
        tiny = self.node("DNOTestVideoModel", seed=model_seed) if video else self.node("DNOTestModel", **settings)
        self.model, self.positive, self.negative, self.vae = (tiny[i] for i in range(4))
        if obstacle:
            self.model = self.node("DNOTestObstacle", model=self.model, kind=obstacle)[0]
        self.reward = self.node("DNOBrightnessReward", negative=False)[0]

    def latent(self, **settings):
        """A latent from `DNOTestLatent`, or without settings an empty one, a batch of 2."""
        defaults = {
            "batch": 2, "channels": 4, "size": 8, "scale": 1.0, "mask": "none", "batch_index": "", "dims": 4,
            "frames": 2,
        }  # fmt: skip
        if settings:
            return self.node("DNOTestLatent", **{**defaults, **settings})[0]
        return self.node("EmptyLatentImage", width=64, height=64, batch_size=2)[0]

    def sampling(self, latent=None, seed=3, steps=6, cfg=8.0, scheduler="normal", denoise=1.0):
        """KSampler's inputs, but for the sampler's name."""
        return {
            "model": self.model, "seed": seed, "steps": steps, "cfg": cfg, "scheduler": scheduler,
            "positive": self.positive, "negative": self.negative, "latent_image": latent or self.latent(),
            "denoise": denoise,
        }  # fmt: skip

    def dno(
        self, eta=1.0, iterations=0, solver=None, regularizer=None, watch=None, seconds=None, keep_graphs=None,
        start_noise=None, part=None, part_count=None, diagnose=None, judge_every=None, floors=None, target=None,
        memory=None, **sampling,
    ):  # fmt: skip
        """A DNO Sampler node."""
        return self.node(
            "DNOSampler", **self.sampling(**sampling), vae=self.vae, reward=self.reward, eta=eta,
            iterations=iterations, solver=solver, regularizer=regularizer, watch=watch, seconds=seconds,
            keep_graphs=keep_graphs, start_noise=start_noise, part=part, part_count=part_count, diagnose=diagnose,
            judge_every=judge_every, floors=floors, target=target, memory=memory,
        )  # fmt: skip

    def witnessed(self, checks, differentiates=True, guesses=0, **settings):
        """Run one iteration in which a witness makes `checks`; return the node that has its notes."""
        witness = self.node(
            "DNOTestWitness", model=self.model, checks=checks, differentiates=differentiates, guesses=guesses
        )
        ours = self.dno(iterations=1, solver=witness[0], **settings)
        return self.node("DNOTestNotes", witness=witness[0], after=ours[0])


class NoiseWorkflow(Workflow):
    """A graph with the nodes around SamplerCustomAdvanced too."""

    def gradient(self, lr=0.03):
        return self.node("DNOSolverGradient", lr=lr, optimizer="adam", momentum=0.9, clip=0.0)[0]

    def guider(self, cfg=8.0):
        conditionings = {"positive": self.positive, "negative": self.negative}
        return self.node("CFGGuider", model=self.model, **conditionings, cfg=cfg)[0]

    def sigmas(self, scheduler="normal", denoise=1.0, steps=6):
        return self.node("BasicScheduler", model=self.model, scheduler=scheduler, steps=steps, denoise=denoise)[0]

    def around(self, latent=None, sigmas=None, noise=None, cfg=8.0, seed=3):
        """The inputs that SamplerCustomAdvanced and DNO Sampler (Advanced) share."""
        return {
            "noise": noise or self.node("RandomNoise", noise_seed=seed)[0], "guider": self.guider(cfg),
            "sigmas": sigmas or self.sigmas(), "latent_image": latent or self.latent(),
        }  # fmt: skip

    def advanced(self, around, eta=1.0, iterations=0, **search):
        """A DNO Sampler (Advanced) node."""
        judged = {"vae": self.vae, "reward": self.reward, "eta": eta, "iterations": iterations}
        return self.node("DNOSamplerAdvanced", **around, **judged, **search)

    def replay(self, noise, latent, cfg=8.0, sigmas=None):
        """Sample a noise with the stock SamplerCustomAdvanced."""
        replay = self.node("DNOReplayNoise", noise=noise)
        return self.node(
            "SamplerCustomAdvanced", noise=replay[0], guider=self.guider(cfg), sampler=replay[1],
            sigmas=sigmas or replay[2], latent_image=latent,
        )  # fmt: skip

    def saved(self, comfy, noise, name):
        """Save a noise, run, and return its name for DNO Load Noise."""
        node = self.save(noise, name)
        return file_of(comfy.run(self), node)

    def save(self, noise, name):
        return self.node("DNOSaveNoise", noise=noise, filename_prefix=f"dno/{name}")

    def load(self, file, resume=True, check=True):
        return self.node("DNOLoadNoise", file=file, resume=resume, check=check)[0]


def file_of(run, node):
    """Return, for DNO Load Noise, what a DNO Save Noise node has written; its number depends on what was there."""
    return re.fullmatch("saved as (.+) in the output folder", run.outputs[node.id]["text"][0])[1] + " [output]"


def history_of(run):
    (history,) = [output["history"][0] for output in run.outputs.values() if "history" in output]
    return history


def rose(history):
    """Whether the best of every picture scores more than the first did."""
    first, best = history["rows"][0]["score"], history["best_row"]["score"]
    return all(after > before for before, after in zip(first, best, strict=True))


def warnings_of(run, node):
    """Return what a DNO Sampler node says beside what it gained and why it stopped."""
    return run.outputs[node.id]["text"][0].splitlines()[2:]


def notes_of(run):
    (notes,) = [output["notes"][0] for output in run.outputs.values() if "notes" in output]
    return notes


def flags(comfy):
    graph = Workflow()
    node = graph.node("DNOTestFlags", nonce=str(time.time_ns()))
    return comfy.run(graph).outputs[node.id]["flags"][0]


def stock_picture(comfy, nonce):
    """An ordinary KSampler prompt; the nonce is for ComfyUI's cache alone, float32 rounds it away."""
    graph = Workflow()
    sampled = graph.node("KSampler", **graph.sampling(cfg=8.0 + nonce * 1e-12), sampler_name="euler_ancestral")
    graph.keep("latent", sampled[0])
    return comfy.run(graph).kept["latent"]["samples"]
