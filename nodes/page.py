"""What a person sees on the page: the progress of a search, its best picture so far, and texts on nodes."""

import math
import sys
import time

import comfy.model_management as mm
import comfy.utils
from comfy_api.latest import ui
from comfy_execution.utils import get_executing_context
from tqdm import tqdm

from ..core import plots
from ..core.words import duration, listed, probability

SIDE = 512
"""Pixels of the picture that is shown on the running node."""


class Progress:
    """A search's progress bar over every network call, its best pictures and numbers each iteration, its interruption.

    The page shows them on the node that runs, whatever ComfyUI's own previews are set to; the console shows a line.

    Args:
        iterations: of the search; 0 samples alone.
    """

    def __init__(self, iterations):
        self.iterations, self.first = iterations, None
        self.console = tqdm(total=iterations, desc="DNO", unit="iteration", disable=not iterations or not sys.stderr)

    def begin(self, stages):
        """Start the bar, of as many steps as `core.stages` says."""
        self.bar, self.started = comfy.utils.ProgressBar(stages), time.perf_counter()

    def on_step(self, phase, index, total):
        """Count one network call or decode; raise ComfyUI's exception where the user has cancelled."""
        mm.throw_exception_if_processing_interrupted()
        self.bar.update(1)

    def on_iteration(self, evaluation, best):
        """Show the best pictures so far, and the numbers of this iteration."""
        self.first = evaluation.iteration if self.first is None else self.first
        # A search that goes on from an earlier one counts on.
        done = evaluation.iteration - self.first
        self.bar.update_absolute(self.bar.current, preview=("JPEG", plots.side_by_side(best.images, SIDE), SIDE))
        numbers = numbers_of(evaluation, best)
        self.console.update(done - self.console.n)
        self.console.set_postfix_str(", ".join(numbers))
        place = f"iteration {evaluation.iteration} of {self.first + self.iterations}" if self.iterations else "sampled"
        show("\n".join([place + self._left(done), *numbers]))

    def _left(self, done):
        """Return how long the rest will take, in words; '' where it is not known or there is none."""
        if not 0 < done < self.iterations or not self.bar.current:
            return ""
        spent = time.perf_counter() - self.started
        return f", about {duration(spent * (self.bar.total / self.bar.current - 1))} left"

    def end(self):
        """Fill the bar: a spent budget ends a run early."""
        self.bar.update_absolute(self.bar.total)

    def close(self):
        """End the console's line, however the search ended."""
        self.console.close()


def numbers_of(evaluation, best):
    """Return what an iteration found, a text each: reward, probability of the noise, watched rewards."""
    log_p = [min(pair) for pair in zip(evaluation.log_p.tolist(), evaluation.log_p_initial.tolist(), strict=True)]
    lowest = min(log_p) if all(map(math.isfinite, log_p)) else None
    return [
        f"reward {listed(evaluation.scores)} (best {listed(best.scores)})",
        f"P {probability(lowest)}",
        *(f"{name} {listed(scores)}" for name, scores in evaluation.watched.items()),
    ]


def shown(text):
    """Write `text` on the node that runs, and return it as what the node shows in ComfyUI's queue and history."""
    show(text)
    return ui.PreviewText(text)


def show(text):
    """Write `text` on the node that runs, in the browser that queued it, in place of what stood there.

    Args:
        text: a line or several.
    """
    server = getattr(sys.modules.get("server"), "PromptServer", None)  # programs use ComfyUI without one
    running = get_executing_context()
    if server is None or running is None or server.instance.client_id is None:  # no client: any browser would show it
        return
    server.instance.send_progress_text(text, running.node_id, server.instance.client_id)
