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
from ..core.models.embedded import vocabulary
from ..core.words import duration, listed, probability

CONSOLE = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
"""The console's line: tqdm's own, but with the time left that the node shows in place of tqdm's, which is another."""

STOPPING = "stopping .."

SIDE = 512
"""Pixels of the picture that is shown on the running node."""


class Progress:
    """A search's progress bar over every network call, its best pictures and numbers each iteration, its interruption.

    The page shows them on the node that runs, whatever ComfyUI's own previews are set to; the console shows a line.

    Args:
        iterations: of the search; 0 samples alone.
    """

    def __init__(self, iterations):
        self.iterations, self.first, self.node = iterations, None, node_that_runs() or ""
        self.numbers = []
        """What the last evaluation found, as `numbers_of` says it."""
        self.stopped = False
        """Whether the user wants the search to end with what it has."""
        self.console = tqdm(total=iterations, desc="DNO", bar_format=CONSOLE, disable=not iterations or not sys.stderr)
        _running.append(self)

    def begin(self, stages):
        """Start the bar, of as many steps as `core.stages` says, and say that the first noise is sampled."""
        self.bar, self.started = comfy.utils.ProgressBar(stages), time.perf_counter()
        self.say("sampling the start ..")

    def say(self, place):
        """Write on the search's node where it is, a line, above the numbers that it has so far."""
        write(self.node, "\n".join([STOPPING if self.stopped else place, *self.numbers]))

    def stop(self):
        """End the search with what it has, as soon as the network call is over that runs; say so at once."""
        self.stopped = True
        self.say(STOPPING)

    def on_step(self, phase, index, total):
        """Count one network call or decode; raise ComfyUI's exception where the user has cancelled."""
        mm.throw_exception_if_processing_interrupted()
        self.bar.update(1)

    def on_iteration(self, evaluation, best):
        """Show the best pictures so far, and the numbers of this iteration."""
        self.first = evaluation.iteration if self.first is None else self.first
        # A search that goes on from an earlier one counts on.
        done = evaluation.iteration - self.first
        self.console.update(done - self.console.n)
        place = f"iteration {evaluation.iteration} of {self.first + self.iterations}" if self.iterations else "sampled"
        self.on_preview(place, evaluation, best, self._left(done))

    def on_preview(self, place, evaluation, best, left=""):
        """Show the best pictures so far with the numbers of one evaluation, and a line above that says where it is.

        Args:
            left: how long the rest will take, in words.
        """
        self.bar.update_absolute(self.bar.current, preview=("JPEG", plots.side_by_side(best.images, SIDE), SIDE))
        self.numbers = numbers_of(evaluation, best)
        rest = [left] if left else []
        self.console.set_postfix_str(", ".join([*rest, *self.numbers]))
        self.say(", ".join([place, *rest]))

    def _left(self, done):
        """Return how long the rest will take, in words; '' where it is not known or there is none."""
        if not 0 < done < self.iterations or not self.bar.current:
            return ""
        spent = time.perf_counter() - self.started
        return f"{duration(spent * (self.bar.total / self.bar.current - 1))} left"

    def end(self):
        """Fill the bar: a spent budget ends a run early."""
        self.bar.update_absolute(self.bar.total)

    def close(self):
        """End the console's line and the way to stop it, however the search ended."""
        self.console.close()
        if self in _running:
            _running.remove(self)


_running = []
"""The searches that run: one, or none."""


def stop(node):
    """End the search on a node with the best that it has, so that the workflow goes on from there.

    Args:
        node: its id; inside a subgraph ComfyUI puts those of the subgraphs before it. "any" is whatever node runs.

    Returns:
        whether a search runs there.
    """
    found = [progress for progress in _running if node in ("any", progress.node, progress.node.rpartition(":")[2])]
    for progress in found:
        progress.stop()
    return bool(found)


def offer_to_stop():
    """Let the button on the sampler nodes (`web/stop.js`) reach `stop`: POST /dno/stop with {"node": id}."""
    server = prompt_server()
    if server is None:
        return
    from aiohttp import web

    @server.routes.post("/dno/stop")
    async def answer(request):
        node = str((await request.json()).get("node", ""))
        return web.json_response({"stopped": stop(node)})


def numbers_of(evaluation, best):
    """Return what an iteration found, a text each: the best reward, this one's with its P, the watched rewards."""
    log_p = [min(pair) for pair in zip(evaluation.log_p.tolist(), evaluation.log_p_initial.tolist(), strict=True)]
    lowest = min(log_p) if all(map(math.isfinite, log_p)) else None
    return [
        f"best {listed(best.scores)}",
        f"now {listed(evaluation.scores)}, P {probability(lowest)}",
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
    write(node_that_runs(), text)


def write(node, text):
    """Write `text` on the node of this id; without an id, nowhere."""
    server = prompt_server()
    if server is None or not node or server.client_id is None:  # no client: any browser would show it
        return
    # Nodes 2.0 reads it as Markdown, where a line ends with two spaces.
    server.send_progress_text(text.replace("\n", "  \n"), node, server.client_id)


def show_unknown_words(prompt):
    """Write on the node that runs which words of its prompt the embedded model ignores, where there are any."""
    unknown = vocabulary.unknown_words(prompt)
    if unknown:
        show(vocabulary.ignored(unknown))


def prompt_server():
    """Return ComfyUI's server, or None: programs use ComfyUI without one."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def node_that_runs():
    """Return the id of the node that ComfyUI runs now, or None."""
    running = get_executing_context()
    return None if running is None else str(running.node_id)
