"""ZeNO: a public GAN of faces, which is neither a diffusion model nor trained here."""

from functools import partial

from .. import rewards
from . import noise_searches
from .experiment import Claim, Experiment

ARMS = ("ZeNO", "best of N", "DNO, Trust")
EVALUATIONS = 97
REWARDS = {"JPEG size": rewards.JPEG(), "brightness": rewards.Brightness()}


def cases(seeds):
    return [
        {"reward": reward, "arm": arm, "seed": seed}
        for seed in range(seeds) for reward in REWARDS for arm in ARMS
        if arm != "DNO, Trust" or reward == "brightness"
    ]  # fmt: skip


def run(reward, arm, seed):
    found, result = noise_searches.search(noise_searches.faces(), REWARDS[reward], arm, EVALUATIONS, seed)
    return found | {"pictures": {arm: noise_searches.small(result.images)}}


def claims():
    for reward, unit in (("JPEG size", "kB"), ("brightness", "-1 to 1")):
        yield Claim(
            "Abstract: strong performance across diverse generators and reward functions.",
            f"{reward} ({unit}) minus that of best-of-N at equal evaluations",
            partial(noise_searches.leads, unit="evaluations", reward=reward),
        )
    yield Claim(
        "Key results: competitive or superior performance compared to gradient-based methods.",
        "brightness minus that of DNO (Trust, exact gradient) at equal seconds",
        partial(noise_searches.leads, unit="processor seconds", second="DNO, Trust", reward="brightness"),
    )


EXPERIMENT = Experiment(
    name="zeno_gan",
    title="ZeNO: a public GAN",
    question="Does it search a GAN's 100 numbers as it searches the noise of a diffusion model?",
    setting=(
        "gan_face_generate 1.1.1 (MIT), a DCGAN of faces, 64 x 64, of 100 normal numbers. Rewards: minus the size as a"
        f" JPEG file, which has no gradient, and brightness; {EVALUATIONS} evaluations. ZeNO with 16 candidates,"
        " geometric schedule; best-of-N; DNO by TrustAscent with the exact gradient of brightness."
    ),
    cases=cases,
    run=run,
    claims=tuple(claims()),
    draw=partial(noise_searches.draw_panels, by="reward", values=REWARDS, names=ARMS),
    needs=noise_searches.FACES,
)
