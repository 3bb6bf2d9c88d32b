"""Solvers of max_z r(M(z)) + regulariser: each one's `step(problem, noise)` evaluates the noise and proposes the next.

    GradientAscent   Adam or Nesterov SGD on a gradient, exact or estimated (the paper's Sections 2 to 4)
    TrustAscent      the gradient again, by steps whose length is found by trial
    ZeNO             path-integral control from candidates' rewards; nothing is differentiated
    Search           keep the best of N candidates around a pivot: best-of-N, zero-order search, pCN hill-climb
    TRS              trust-region search: parallel regions around the best noises, which grow and shrink
    LGD              loss-guided diffusion, which steers one sampling run
    Tilt             one sampling run whose injected noises lean towards the reward and stay white
    Fast             TrustAscent on a few of the steps, and one run of all steps that makes the same picture

A solver object holds settings; `fresh()` gives the copy with state that one run uses up, so that a solver can be
shared between runs. The state can be kept with a noise (`Noise.checkpoint`) and given to `fresh` to go on.
"""

from .ascent import GradientAscent
from .base import Solver
from .fast import Fast
from .lgd import LGD
from .search import Search
from .tilt import Tilt
from .trs import TRS
from .trust import TrustAscent
from .zeno import ZeNO

__all__ = ["LGD", "TRS", "Fast", "GradientAscent", "Search", "Solver", "Tilt", "TrustAscent", "ZeNO", "default_solver"]


def default_solver():
    """Return the solver of a search for which none is chosen: TrustAscent, which has nothing to tune.

    Of many steps it begins with a tilted run. With the same floors it was ahead of Adam at three learning rates on a
    map of 8 steps, and on the few pairs that were run of 4 and 20 steps, see docs/results.md.

    Example:
        >>> default_solver().name
        'TrustAscent'
    """
    return TrustAscent(tilt=None)
