"""The pack's own sockets, and where its nodes are found in ComfyUI's menu."""

from dataclasses import fields

from comfy_api.latest import io

Reward = io.Custom("DNO_REWARD")
Solver = io.Custom("DNO_SOLVER")
Regularizer = io.Custom("DNO_REGULARIZER")
Noise = io.Custom("DNO_NOISE")
History = io.Custom("DNO_HISTORY")

CATEGORY = "sampling/dno"
REWARDS, SOLVERS, NOISE, REPORTS = (f"{CATEGORY}/{name}" for name in ("rewards", "solvers", "noise", "reports"))


def aliases(*words):
    """Return, as arguments of a Schema, other words that find a node; ComfyUI 0.3.75 knows none."""
    known = "search_aliases" in {field.name for field in fields(io.Schema)}
    return {"search_aliases": list(words)} if known else {}


def out_of_sight(widget):
    """Return an Input that is on the node, so that saved workflows stay valid, and that the page does not show."""
    widget.extra_dict = {**(widget.extra_dict or {}), "hidden": True}
    return widget
