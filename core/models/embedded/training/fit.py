"""One resumable training loop, for every stage."""

import copy
import math
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm import tqdm


def learning_rate(progress, peak):
    """Return the rate at `progress` in [0, 1]: 2 % warm-up, then a cosine to 1 % of the peak."""
    if progress < 0.02:
        return peak * (0.05 + 0.95 * progress / 0.02)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


@torch.no_grad()
def _follow(average, model, step, decay):
    """Move the exponential moving average towards the model; early steps count for more."""
    weight = max(1 - decay, 9 / (10 + step))
    for a, p in zip(average.parameters(), model.parameters(), strict=True):
        a.lerp_(p, weight)


def _average_over_workers(parameters, took):
    """Average gradients and the step's seconds over the workers, if there are several; returns the seconds.

    The clock is averaged with the gradients, so that every worker has the same rate and stops at the same step.
    """
    if not dist.is_initialized():
        return took
    gradients = [p.grad for p in parameters]
    flat = torch.cat([g.flatten() for g in gradients] + [torch.tensor([took])])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, mean in zip(gradients, flat[:-1].split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))
    return flat[-1].item()


def fit(name, model, loss, seconds, peak, out, decay=0.999):
    """Train `model` for a time budget and return its moving average; continues a checkpoint left in `out`.

    Where torch.distributed is set up, every worker computes its own loss and the gradients are averaged; the first one
    keeps the checkpoint. The rate follows the elapsed time over the budget, so a run always ends well at its budget,
    on a slow machine too.

    Args:
        name: of the stage; the checkpoint is `<out>/<name>.pt`.
        model: nn.Module, trained in place.
        loss: called as loss(progress) with progress in [0, 1]; returns a scalar tensor.
        seconds: budget of training time, checkpoints of earlier runs included.
        peak: the largest learning rate.
        out: folder of the checkpoints.
        decay: of the moving average.

    Returns:
        The moving average of the model, in eval mode.
    """
    path = Path(out) / f"{name}.pt"
    first = not dist.is_initialized() or dist.get_rank() == 0
    parameters = [p for p in model.parameters() if p.requires_grad]
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(parameters, lr=peak, betas=(0.9, 0.99), weight_decay=0.01)
    state = {"elapsed": 0.0, "step": 0}
    if path.exists():
        saved = torch.load(path, weights_only=True)
        model.load_state_dict(saved["model"])
        average.load_state_dict(saved["average"])
        optimizer.load_state_dict(saved["optimizer"])
        state = saved["state"]
    torch.manual_seed(state["step"] + (0 if first else 10**6 * dist.get_rank()))

    def save():
        if first:
            part = path.with_suffix(".part")
            tensors = {
                "model": model.state_dict(),
                "average": average.state_dict(),
                "optimizer": optimizer.state_dict(),
            }
            torch.save({**tensors, "state": state}, part)
            part.replace(path)

    model.train()
    smooth, saved_at = None, state["elapsed"]
    start = time.monotonic()
    with tqdm(
        total=round(seconds), initial=round(state["elapsed"]), unit="s", desc=name, mininterval=5, disable=not first
    ) as bar:
        while state["elapsed"] < seconds:
            progress = state["elapsed"] / seconds
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(progress, peak)
            value = loss(progress)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            now = time.monotonic()
            took = _average_over_workers(parameters, now - start)
            start = now
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            _follow(average, model, state["step"], decay)
            state = {"elapsed": state["elapsed"] + took, "step": state["step"] + 1}
            smooth = value.item() if smooth is None else 0.98 * smooth + 0.02 * value.item()
            bar.set_postfix(loss=f"{smooth:.4f}", step=state["step"], refresh=False)
            bar.update(round(state["elapsed"]) - bar.n)
            if state["elapsed"] > saved_at + 60:
                save()
                saved_at = state["elapsed"]
    if state["elapsed"] > saved_at:
        save()
    return average.eval()


def _work(rank, workers, meeting, stage, arguments):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo", meeting, rank=rank, world_size=workers)
    stage(*arguments)
    dist.destroy_process_group()


def in_parallel(stage, workers, *arguments):
    """Run stage(*arguments) in single-threaded processes, where `fit` averages gradients over them.

    A quarter faster than one process with as many threads. What a stage trained is in its checkpoint.
    """
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{folder}/meeting"
        torch.multiprocessing.spawn(_work, (workers, meeting, stage, arguments), workers)
