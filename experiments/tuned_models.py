"""The systems of Table 1 that tune the model: AlignProp, DDPO and SPIN-Diffusion, each in its smallest honest form.

All three put the same LoRA into the attention of the embedded model's U-Net and are told the same prompts and reward.
They differ in what they learn from:

    AlignProp   the reward's gradient, taken back through the last K steps of a sampling run, K drawn anew each update
                (Prabhudesai et al. 2023, arXiv 2310.03739: randomised truncated backpropagation)
    DDPO        the rewards alone: each step of a run is an action, p(x_s | x_t) = N(c_x x + c_D D, c_noise^2); the
                clipped policy gradient with importance weights and with advantages normalised by prompt
                (Black et al. 2023, arXiv 2305.13301: DDPO-IS)
    SPIN        pictures that are liked, and none of the reward: against pictures of its own former self,
                loss = -ln sigmoid(-beta (e(liked) - e_old(liked) - e(own) + e_old(own))), e the error of the predicted
                v at one noise level (Yuan et al. 2024, arXiv 2402.10210). The liked ones are the best of some samples
                of the model itself, since there are no pictures that people chose. [ours]

What is smaller than in the papers: the model, the batches, the number of updates; there is one process. `peft` is
needed (`pip install ".[experiments]"`).
"""

import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .. import core
from ..core.models.embedded.networks import build_unet

RANK = 4
LAYERS = ["to_q", "to_k", "to_v", "to_out.0"]
STEPS, CFG = 8, 3.0


@dataclass(frozen=True)
class Tuning:
    """One way to tune the model, and what the training spends.

    Attributes:
        name: "alignprop", "ddpo" or "spin".
        updates: of the weights; of DDPO the number of batches that are sampled.
        lr: of AdamW.
        batch: pictures an update.
        eta: of the runs that are learnt from.
    """

    name: str
    updates: int
    lr: float
    batch: int
    eta: float = 1.0


TUNINGS = {
    "spin": Tuning("spin", updates=60, lr=2e-3, batch=8),
    "ddpo": Tuning("ddpo", updates=8, lr=2e-3, batch=24),
    "alignprop": Tuning("alignprop", updates=20, lr=2e-3, batch=8),
}
"""What each is given here: one to three minutes of one core. Of 5e-3 AlignProp paints one picture for every prompt."""
CLIP, ADVANTAGE = 1e-4, 5.0
"""DDPO's: how far the importance weights count, and the largest advantage."""
BETA, ROUNDS, CHOSEN_OF = 1000.0, 2, 6
"""SPIN's: beta of the loss; how often the opponent becomes the model; of how many samples a liked one is the best."""


def tunable_unet():
    """Return the embedded model's U-Net with a fresh LoRA that changes nothing yet, and alone has gradients."""
    from peft import LoraConfig

    unet = build_unet()
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=LAYERS))
    return unet


def tune(tuning, reward, prompts, seed=0, each=None):
    """Tune the embedded model for a reward.

    Args:
        tuning: a Tuning.
        reward: images (B, 3, H, W), prompts -> scores (B,).
        prompts: what it is trained on.
        seed: of everything random.
        each: called with (update, mean reward) after each.

    Returns:
        the tuned U-Net in eval mode, and the seconds of one process that it took.
    """
    started = time.process_time()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = tunable_unet()
        learn = {"alignprop": _alignprop, "ddpo": _ddpo, "spin": _spin}[tuning.name]
        learn(tuning, unet, reward, list(prompts), each or (lambda update, mean: None))
    return unet.requires_grad_(False), time.process_time() - started


def sampled(sample_map, noise, differentiated=0):
    """Return the pictures of a noise, with a graph through the last `differentiated` steps and the decoder."""
    x, steps = sample_map.start(noise.initial), sample_map.schedule.steps
    for index, sigma in enumerate(sample_map.schedule.sigmas[:-1]):
        with torch.set_grad_enabled(index >= steps - differentiated):
            x = sample_map.step(x, sample_map.denoise(x, x.new_full((len(x),), sigma)), index, noise)
    with torch.set_grad_enabled(differentiated > 0):
        return sample_map.decode(x)


def _map(unet, prompts, eta, cfg=CFG):
    return core.load_embedded(prompts, steps=STEPS, cfg=cfg, eta=eta, unet=unet)


def _some(prompts, count):
    return [prompts[int(index)] for index in torch.randint(len(prompts), (count,))]


def _noise(sample_map):
    return sample_map.randn(int(torch.randint(2**31, ())))


def _optimizer(unet, lr):
    return torch.optim.AdamW([p for p in unet.parameters() if p.requires_grad], lr, weight_decay=0.0)


def _update(optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    optimizer.step()


def _alignprop(tuning, unet, reward, prompts, each):
    optimizer = _optimizer(unet, tuning.lr)
    for update in range(tuning.updates):
        sample_map = _map(unet, _some(prompts, tuning.batch), tuning.eta)
        last = int(torch.randint(1, STEPS + 1, ()))
        scores = reward(sampled(sample_map, _noise(sample_map), last), sample_map.prompts)
        _update(optimizer, -scores.mean())
        each(update, scores.mean().item())


def _ddpo(tuning, unet, reward, prompts, each):
    """Sample a batch, four pictures of each prompt, and take one update for each step of the runs."""
    optimizer, group = _optimizer(unet, tuning.lr), 4
    for update in range(tuning.updates):
        chosen = [prompt for prompt in _some(prompts, tuning.batch // group) for _ in range(group)]
        sample_map = _map(unet, chosen, tuning.eta)
        noise = _noise(sample_map)
        with torch.no_grad():
            states = _states(sample_map, noise)
            scores = reward(sample_map.decode(states[-1]), sample_map.prompts)
        grouped = scores.view(-1, group)
        advantage = (grouped - grouped.mean(1, keepdim=True)) / (grouped.std(1, keepdim=True) + 1e-6)
        advantage = advantage.flatten().clamp(-ADVANTAGE, ADVANTAGE)
        for index in torch.randperm(STEPS - 1).tolist():  # the last step injects nothing: it is no action
            log_p = _log_probability(sample_map, states, index)
            ratio = (log_p - log_p_before(noise, index)).exp()
            clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
            _update(optimizer, -torch.minimum(advantage * ratio, advantage * clipped).mean())
        each(update, scores.mean().item())


def _states(sample_map, noise):
    """Return the T + 1 samples of a run."""
    states = [sample_map.start(noise.initial)]
    for index, sigma in enumerate(sample_map.schedule.sigmas[:-1]):
        x = states[-1]
        states.append(sample_map.step(x, sample_map.denoise(x, x.new_full((len(x),), sigma)), index, noise))
    return states


def _log_probability(sample_map, states, index):
    """Return ln p(x_s | x_t) of a step, (B,), the mean over its numbers as in DDPO's code, up to a constant."""
    x, following = states[index], states[index + 1]
    c_x, c_denoised, c_noise = sample_map.coefficients(index)
    denoised = sample_map.denoise(x, x.new_full((len(x),), sample_map.schedule.sigmas[index]))
    return -((following - c_x * x - c_denoised * denoised) / c_noise).square().flatten(1).mean(1) / 2


def log_p_before(noise, index):
    """Return what `_log_probability` was as the run was sampled: then what remains is the injected noise itself."""
    return -noise.injected[index].square().flatten(1).mean(1) / 2


def _spin(tuning, unet, reward, prompts, each):
    liked = {prompt: _best_latents(unet, reward, prompt, tuning.eta) for prompt in prompts}
    old = tunable_unet().requires_grad_(False)
    optimizer = _optimizer(unet, tuning.lr)
    for update in range(tuning.updates):
        if update % (tuning.updates // ROUNDS) == 0:
            old.load_state_dict(unet.state_dict())
            own = {prompt: _map(old, [prompt] * 2, tuning.eta) for prompt in prompts}
            own = {prompt: each_map.latent(_noise(each_map)) for prompt, each_map in own.items()}
        chosen = _some(prompts, tuning.batch)
        pairs = torch.stack([torch.stack([_one_of(pool[p]) for p in chosen]) for pool in (liked, own)])
        new_map, old_map = _map(unet, chosen, tuning.eta), _map(old, chosen, tuning.eta)
        errors = _errors(new_map, old_map, pairs)
        _update(optimizer, -F.logsigmoid(-BETA * (errors[0] - errors[1])).mean())
        each(update, (errors[1] - errors[0]).mean().item())


def _one_of(latents):
    return latents[int(torch.randint(len(latents), ()))]


@torch.no_grad()
def _best_latents(unet, reward, prompt, eta, count=2):
    """Return the latents (count, C, H, W) that score best of as many samples as a choice takes."""
    sample_map = _map(unet, [prompt] * (count * CHOSEN_OF), eta)
    latent = sample_map.latent(_noise(sample_map))
    scores = reward(sample_map.decode(latent), sample_map.prompts)
    return latent[scores.topk(count).indices]


def _errors(new_map, old_map, latents):
    """Return e - e_old (2, B) of latents (2, B, C, H, W) at one noise level a column, the same for both rows."""
    levels = torch.tensor(new_map.schedule.sigmas[:-1])
    sigmas = levels[torch.randint(len(levels), (latents.shape[1],))]
    noise = torch.randn_like(latents[0])
    with torch.no_grad():
        before = torch.stack([v_error(old_map, latent, noise, sigmas) for latent in latents])
    return torch.stack([v_error(new_map, latent, noise, sigmas) for latent in latents]) - before


def v_error(sample_map, latent, noise, sigmas):
    """Return the mean square error (B,) of the predicted v, of a latent with noise at each picture's sigma.

    It is that of denoised, divided by sigma c_in.
    """
    sigma = sigmas.view(-1, 1, 1, 1)
    denoised, _ = sample_map.unguided(latent + sigma * noise, sigmas)
    return ((denoised - latent) * (1 + sigma.square()).sqrt() / sigma).square().flatten(1).mean(1)
