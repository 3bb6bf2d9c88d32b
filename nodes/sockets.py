"""The pack's own sockets."""

from comfy_api.latest import io

Reward = io.Custom("DNO_REWARD")
Solver = io.Custom("DNO_SOLVER")
Regularizer = io.Custom("DNO_REGULARIZER")
Noise = io.Custom("DNO_NOISE")
History = io.Custom("DNO_HISTORY")

CATEGORY = "sampling/dno"
