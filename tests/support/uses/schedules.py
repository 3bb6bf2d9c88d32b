"""Uses of the noise levels: schedulers, the nodes that make or change SIGMAS, and runs in two parts."""

import comfy.samplers

from .measures import sampled
from .setting import Use, flow, plain, stock

SCHEDULERS = tuple(comfy.samplers.KSampler.SCHEDULERS)


def scheduled(node, start=plain, name=None, **inputs):
    """Return the use of a node that makes sigmas; `model` is the setting's where it asks for one."""

    def change(setting):
        given = {"model": setting.model} if node in ("SDTurboScheduler", "BetaSamplingScheduler") else {}
        return setting.but(sigmas=stock(node, **given, **inputs))

    return Use(name or node, "Sigmas", change, start)


def changed(node, **inputs):
    """Return the use of a node that changes sigmas."""
    return Use(node, "Sigmas", lambda s: s.but(sigmas=stock(node, sigmas=s.own_sigmas, **inputs)))


def high(setting):
    return setting.but(sigmas=stock("SplitSigmas", sigmas=setting.own_sigmas, step=1)[0])


def low(setting):
    """Return the setting with the steps that are left of another sampler's run."""
    rest = stock("SplitSigmas", sigmas=setting.own_sigmas, step=1)[1]
    begun = {"samples": sampled(high(setting), "euler")}
    return setting.but(sigmas=rest, noise=stock("DisableNoise"), latent=begun)


def noised(setting):
    """Return the setting with the noise put in by a node of its own."""
    made = stock(
        "AddNoise", model=setting.model, noise=stock("RandomNoise", noise_seed=4), sigmas=setting.own_sigmas,
        latent_image=setting.latent,
    )  # fmt: skip
    return setting.but(noise=stock("DisableNoise"), latent=made)


def split_denoise(setting):
    return setting.but(sigmas=stock("SplitSigmasDenoise", sigmas=setting.own_sigmas, denoise=0.5)[1])


def scheduler(name, steps=3):
    """Return the use of one of KSampler's schedulers: `normal` is every setting's, kl_optimal has no single step."""
    title = f"scheduler {name}" if steps == 3 else f"scheduler {name}, {steps} step"
    idle = name == "normal" and steps == 3 or name == "kl_optimal" and steps == 1
    return Use(title, "Schedulers", lambda setting: setting.but(scheduler=name, steps=steps), idle=idle)


SCHEDULES = [
    *map(scheduler, SCHEDULERS),
    *(scheduler(name, steps=1) for name in ("normal", "beta", "kl_optimal")),
    Use("2 steps", "Schedulers", lambda s: s.but(steps=2)),
    Use("6 steps", "Schedulers", lambda s: s.but(steps=6)),
    scheduled("BetaSamplingScheduler", steps=3),
    scheduled("AlignYourStepsScheduler", steps=3),
    scheduled("GITSScheduler", steps=3),
    scheduled("SDTurboScheduler", steps=2),
    scheduled("KarrasScheduler", steps=3),
    scheduled("ExponentialScheduler", steps=3),
    scheduled("PolyexponentialScheduler", steps=3),
    scheduled("VPScheduler", steps=3),
    scheduled("LaplaceScheduler", steps=3),
    scheduled("OptimalStepsScheduler", flow, steps=3),
    scheduled("LTXVScheduler", flow, steps=3),
    scheduled("Flux2Scheduler", flow, steps=3, width=64, height=64),
    scheduled("Ideogram4Scheduler", flow, steps=3, width=64, height=64),
    scheduled("ManualSigmas", sigmas="14.6, 4.0, 1.0, 0.0"),
    scheduled("ManualSigmas", name="ManualSigmas, one level", sigmas="14.6"),
    changed("ExtendIntermediateSigmas"),
    changed("SetFirstSigma", sigma=20.0),
    changed("FlipSigmas"),
    Use("SplitSigmasDenoise, low half", "Sigmas", split_denoise),
    Use("SplitSigmas, high half", "Sigmas", high),
    Use("SplitSigmas, low half with DisableNoise", "Sigmas", low, idle=True),
    Use("AddNoise and DisableNoise", "Sigmas", noised),
]
