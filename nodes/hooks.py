"""ComfyUI's hooks: LoRAs and models that one prompt of several brings along, in a strength that keyframes may change.

ComfyUI has one set of weights. Before a call of the network it writes those of the call's hooks over them, in place. It
goes on to the next keyframe when the steps have come down to it. For one sampling run that is right. A search runs
forwards many times, and backwards: its gradient needs the weights that each call ran with (`weights_kept`), and each
step its own keyframe, whatever was run before (`Keyframes`).
"""

import contextlib
import math

import comfy.utils
import torch


@contextlib.contextmanager
def weights_kept(patcher):
    """Let autograd keep the weights that each call of the network ran with.

    Each time that the hooks change, the weights that they change move to new memory first: what autograd has saved
    stays as it was. So a graph that ran with several hooks holds the hooked weights once for each.

    Args:
        patcher: the ComfyUI model of the guider, loaded, its hooks registered.
    """
    names = _hooked(patcher)
    write = patcher.patch_hooks

    def write_elsewhere(hooks):
        for name in names:
            comfy.utils.set_attr(patcher.model, name, _copy(comfy.utils.get_attr(patcher.model, name)))
        write(hooks)

    patcher.patch_hooks = write_elsewhere  # of this one object, where it hides the method
    try:
        yield
    finally:
        del patcher.patch_hooks


def memory_kept(patcher, conds):
    """Return the bytes of the weights that `weights_kept` makes one step's graph hold."""
    groups = {id(cond.get("hooks")) for prompt in conds.values() for cond in prompt or ()}
    return len(groups) * sum(comfy.utils.get_attr(patcher.model, name).nbytes for name in _hooked(patcher))


def _hooked(patcher):
    """Return the names of the weights that any hook changes."""
    return {name for patches in patcher.hook_patches.values() for name in patches}


def _copy(weight):
    copy = weight.detach().clone()
    if isinstance(weight, torch.nn.Parameter):
        copy = torch.nn.Parameter(copy, requires_grad=False)
    copy.__dict__.update(weight.__dict__)
    return copy


class Keyframes:
    """The strengths of the prompts' hooks over a sampling run.

    ComfyUI only goes from one keyframe to the next. `go_to` sets what a run has that came down to a sigma from the
    first one, so that every run begins at the first keyframe and a step that is run again finds its own. `close` gives
    the hooks their own keyframes back, since ComfyUI keeps prompts for its next run.

    Args:
        patcher: the ComfyUI model of the guider.
        conds: the guider's prompts: name -> list of conditionings, in each "hooks" or none.
        sigmas: (T + 1,), of the run.
    """

    def __init__(self, patcher, conds, sigmas):
        self._patcher, self._sigmas, self._strengths = patcher, sigmas.cpu(), None
        uses = [
            (cond, hook)
            for prompt in conds.values()
            for cond in prompt or ()
            for hook in getattr(cond.get("hooks"), "hooks", ())
            if not hook.hook_keyframe.is_empty()
        ]
        groups = {id(hook.hook_keyframe): hook.hook_keyframe for _, hook in uses}
        # Hooks of several prompts may share their keyframes, which go on when any of them is used.
        self._users = [(group, [use for use in uses if use[1].hook_keyframe is group]) for group in groups.values()]

    def go_to(self, sigma):
        """Set the strengths of the step at `sigma`, (B,), and forget the weights of others."""
        if not self._users:
            return
        sigma, strengths = float(sigma[0]), []
        for group, uses in self._users:
            at_sigma = self._at(group, sigma, [cond for cond, _ in uses])
            for _, hook in uses:
                hook.hook_keyframe = at_sigma
            strengths.append(float(at_sigma.strength))
        if strengths != self._strengths:
            self._patcher.clear_cached_hook_weights()
            self._strengths = strengths

    def close(self):
        """Put back the keyframes that the hooks came with."""
        for group, uses in self._users:
            for _, hook in uses:
                hook.hook_keyframe = group

    def _at(self, group, sigma, conds):
        """Return a copy of `group` that has seen every step down to `sigma` in which a prompt of it is used."""
        group = group.clone()  # begins at the first keyframe
        for passed in (*(each for each in self._sigmas.tolist() if each > sigma), sigma):
            if any(_used(cond, passed) for cond in conds):
                group.prepare_current_keyframe(passed, {"sample_sigmas": self._sigmas})
        return group


def _used(cond, sigma):
    """Whether a conditioning's range of timesteps has this one."""
    return cond.get("timestep_end", -math.inf) <= sigma <= cond.get("timestep_start", math.inf)
