"""ZeNO: protein backbones, for a secondary structure that DSSP assigns: a count of hydrogen bonds' patterns.

The paper searches the noise of a large protein model, which cannot be had here. This generator is one of ideal geometry
and nothing of it is trained: noise becomes torsion angles, and those a chain N, CA, C, O, .. of fixed bond lengths and
angles, atom by atom. Each residue leans towards the helix's or the strand's angles by a field that is smooth along the
chain, and varies around them.
"""

import math
from functools import partial

import torch
from matplotlib.figure import Figure
from torch.nn import functional as F

from .. import core
from . import noise_searches
from .experiment import Claim, Experiment

RESIDUES = 40
EVALUATIONS = 801
ARMS = ("ZeNO", "best of N", "pCN")
HELIX, STRAND, SPREAD = (-57.0, -47.0), (-120.0, 130.0), 35.0
"""phi and psi in degrees (Pauling's alpha helix; an antiparallel strand), and what they vary by."""
BONDS = {"N": (1.329, 121.7), "CA": (1.458, 121.7), "C": (1.525, 111.0)}
"""Atom -> its distance from the atom before, angstrom, and the angle of the bonds there, degrees (Engh and Huber)."""
CARBONYL = 1.231
CLASH = 3.6
"""CA atoms nearer than this are in one another's place, angstrom."""


def backbone(noise):
    """Return the atoms N, CA, C, O of each residue, (rows, L, 4, 3) in angstrom, for noise (rows, 3, L)."""
    kernel = noise.new_full((1, 1, 7), 1 / 7**0.5)
    lean = torch.sigmoid(3 * F.conv1d(F.pad(noise[:, :1], (3, 3)), kernel))
    helix, strand = (noise.new_tensor(angles)[None, :, None] for angles in (HELIX, STRAND))
    phi, psi = torch.deg2rad(strand + lean * (helix - strand) + SPREAD * noise[:, 1:]).unbind(1)
    return _with_oxygen(_chain(phi, psi))


def _chain(phi, psi):
    """Place N, CA, C of each residue by its torsion angles (rows, L), and one more N at the end: (rows, 3 L + 1, 3)."""
    rows, residues = phi.shape
    omega = torch.full_like(phi[:, 0], math.pi)
    start = phi.new_tensor([[-1.0, 1.0, 0.0], [0.0, 0.5, 0.3], [0.0, 0.0, 0.0]])
    atoms = list(start.expand(rows, 3, 3).unbind(1))
    for index in range(residues):
        # About the bond before the last: of N that is psi of the residue before, of CA omega, of C phi.
        torsions = {"N": psi[:, index - 1] if index else omega, "CA": omega, "C": phi[:, index]}
        for name, (length, angle) in BONDS.items():
            atoms.append(_next_atom(*atoms[-3:], length, math.radians(angle), torsions[name]))
    length, angle = BONDS["N"]
    atoms.append(_next_atom(*atoms[-3:], length, math.radians(angle), psi[:, -1]))
    return torch.stack(atoms[3:], dim=1)


def _next_atom(a, b, c, length, angle, torsion):
    """Return the atom d (rows, 3) at a distance from c, with the angle b c d and the torsion a b c d (rows,)."""
    along = F.normalize(c - b, dim=1)
    normal = F.normalize(torch.linalg.cross(b - a, along), dim=1)
    across = torch.linalg.cross(normal, along)
    radius = length * math.sin(angle)
    sideways = torsion.cos()[:, None] * across + torsion.sin()[:, None] * normal
    return c - length * math.cos(angle) * along + radius * sideways


def _with_oxygen(chain):
    """Add O to the N, CA, C of a `_chain`, in the plane of CA, C and the next N, away from both: (rows, L, 4, 3)."""
    atoms, following = chain[:, :-1].unflatten(1, (-1, 3)), chain[:, 3::3]
    _, ca, c = atoms.unbind(2)
    away = F.normalize(F.normalize(c - ca, dim=2) + F.normalize(c - following, dim=2), dim=2)
    return torch.cat([atoms, (c + CARBONYL * away)[:, :, None]], dim=2)


class Helical:
    """How many residues DSSP assigns to helices, less one for every two CA atoms that clash: whole numbers.

    DSSP looks for patterns of hydrogen bonds that are there or not, so nothing of this has a gradient.
    """

    name, differentiable = "residues in helices", False

    def __call__(self, samples, prompts=None):
        atoms = samples.unflatten(2, (4, 3))
        return self.in_helices(atoms) - clashes(atoms)

    def in_helices(self, atoms):
        import pydssp

        return torch.as_tensor(pydssp.assign(atoms, out_type="index") == 1).sum(dim=1).float()


def clashes(atoms):
    """Return how many pairs of CA atoms, three residues apart or more, are nearer than `CLASH`: (rows,)."""
    ca = atoms[:, :, 1]
    near = torch.cdist(ca, ca) < CLASH
    return near.triu(diagonal=3).sum(dim=(1, 2)).float()


def backbone_map():
    """Return the generator as a map; a sample is (L, 12), four atoms a residue."""
    return core.generator_map(lambda noise: backbone(noise).flatten(2), (3, RESIDUES), name="ideal backbone")


def cases(seeds):
    return [{"arm": arm, "seed": seed} for seed in range(seeds) for arm in ARMS]


def run(arm, seed):
    found, result = noise_searches.search(backbone_map(), Helical(), arm, EVALUATIONS, seed)
    atoms = result.images.unflatten(2, (4, 3))
    return found | {"clashes": clashes(atoms).item(), "CA": atoms[0, :, 1].round(decimals=2).tolist()}


def draw(results):
    figure = Figure(figsize=(9, 3.8), dpi=100, layout="constrained")
    left, right = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2, projection="3d")
    noise_searches.draw_curves(left, results, "evaluations", ARMS)
    left.set_ylabel("residues in helices, gained")
    for index, arm in enumerate(ARMS):
        first = next(iter(noise_searches.chosen(results, arm=arm).values()), None)
        if first:
            x, y, z = zip(*first["CA"], strict=True)
            right.plot([20 * index + value for value in x], y, z, color=f"C{index}", label=arm)
    right.set_title("chains of CA atoms, first seed", fontsize=9)
    return figure


EXPERIMENT = Experiment(
    name="zeno_protein",
    title="ZeNO: protein backbones",
    question="Does it search what is no picture, for a reward that is a program: secondary structure by DSSP?",
    setting=(
        f"A generator of ideal geometry, nothing trained: {3 * RESIDUES} numbers to torsion angles to a backbone of"
        f" {RESIDUES} residues (the paper's is a large protein model). Reward: residues that DSSP (pydssp) assigns to"
        f" helices, minus clashing pairs. ZeNO with 16 candidates, geometric schedule, against best-of-N and pCN;"
        f" {EVALUATIONS} evaluations."
    ),
    cases=cases,
    run=run,
    claims=tuple(
        Claim(
            "Abstract: strong performance including a protein task where backpropagation is infeasible.",
            f"residues in helices minus those of {arm} at equal evaluations",
            partial(noise_searches.leads, unit="evaluations", second=arm),
        )
        for arm in ARMS[1:]
    ),
    draw=draw,
    needs={"pydssp": "pydssp"},
)
