"""The experiments on ZeNO: how searches are compared, that the generators are what they say, and claims in small."""

import math

import pytest
import torch
from comfyui_dno import core, rewards
from comfyui_dno.experiments import (
    noise_searches,
    real_network,
    zeno_black_box,
    zeno_deterministic,
    zeno_gan,
    zeno_process,
    zeno_protein,
    zeno_scaling,
    zeno_tilted_law,
)
from comfyui_dno.experiments.experiment import verdict


def curve(best, **case):
    spent = list(range(1, len(best) + 1))
    seconds = [2.0 * each for each in spent]
    return {"case": case, "start": 0.0, "evaluations": spent, "processor seconds": seconds, "best": best}


def drawn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_two_searches_are_compared_when_the_cheaper_one_is_done():
    ours, theirs = curve([0.0, 3.0], arm="ZeNO", seed=0), curve([0.0, 1.0, 9.0], arm="best of N", seed=0)
    alone = curve([5.0], arm="ZeNO", seed=1)
    assert noise_searches.leads([ours, theirs, alone], "evaluations") == [3.0 - 1.0]
    slow = theirs | {"processor seconds": [1.0, 7.0, 9.0]}
    assert noise_searches.leads([ours, slow], "processor seconds") == [3.0 - 0.0]
    assert noise_searches.leads([ours, theirs], "processor seconds", first="best of N", second="ZeNO") == [1.0 - 3.0]


def test_scaling_takes_the_least_rise_from_budget_to_budget():
    generator = "random network"
    ends = dict(zip(zeno_scaling.BUDGETS[generator], (1.0, 3.0, 4.5, 5.0), strict=True))
    results = [
        curve([0.0, end], generator=generator, arm="ZeNO", evaluations=budget, seed=0) for budget, end in ends.items()
    ]
    results.append(curve([0.0, 2.0], generator=generator, arm="best of N", evaluations=6401, seed=0))
    assert zeno_scaling.least_rises(results, generator) == [0.5]
    assert zeno_scaling.leads(results, generator) == [3.0]
    zeno_scaling.EXPERIMENT.draw(results)


def test_which_beta_is_best_is_chosen_by_the_other_seeds():
    def result(variant, seed, gain):
        case = {"reward": "brightness", "variant": variant, "seed": seed}
        return {"case": case, "start": 1.0, "best": [1.0 + gain / 2, 1.0 + gain]}

    by_variant = {"linear": (1.0, 2.0, 9.0), "beta 0.01": (3.0, 3.0, 1.0), "beta 0.5": (0.0, 0.0, 0.5)}
    results = [result(v, seed, gain) for v, gains in by_variant.items() for seed, gain in enumerate(gains)]
    # Without seed 2 beta 0.01 is the best, 3 in the mean; else 0.1, 5.5 and 5. The worst is always 0.5.
    assert zeno_process.of_beta(results, "brightness") == [1.0 - 0.0, 2.0 - 0.0, 1.0 - 0.5]
    results += [result("softmax", 0, 0.25), result("softmax", 2, 8.0)]
    assert zeno_process.of_the_approximation(results, "brightness") == [1.0 - 0.25, 9.0 - 8.0]
    assert zeno_process.of_beta([r for r in results if r["case"]["seed"] == 0], "brightness") == []
    zeno_process.EXPERIMENT.draw(results)


def test_linear_weights_gain_more_than_the_softmax_within_the_same_evaluations():
    """The claim of ZeNO's approximation, on three seeds of the experiment's own."""
    wanted = [case for case in zeno_process.cases(3) if case["variant"] in ("linear", "softmax")]
    results = [{"case": case} | zeno_process.run(**case) for case in wanted if case["reward"] == "brightness"]
    assert verdict(zeno_process.of_the_approximation(results, "brightness")).mean > 0
    sample_map = noise_searches.random_network()
    plain = rewards.Brightness()(sample_map.sample(sample_map.randn(2))).item()
    assert results[-1]["case"]["seed"] == 2 and results[-1]["start"] == pytest.approx(plain)


def test_the_arms_of_a_search_make_as_many_evaluations():
    """Trust stops counting with its iterations: each is one or two."""
    sample_map = core.generator_map(lambda z: z.sigmoid().expand(-1, 3, -1, -1), (1, 8, 8))
    for arm in noise_searches.arms(97, 0):
        found, result = (
            noise_searches.search(sample_map, noise_searches.Detector(0.5), arm, 97, 0)
            if (arm != "DNO, Trust")
            else noise_searches.search(sample_map, Mean(), arm, 97, 0)
        )
        assert 49 <= found["evaluations"][-1] <= 98, arm
        assert found["best"][-1] > found["start"] and found["best"] == sorted(found["best"]), arm
        assert found["best"][-1] == pytest.approx(result.history.best_row["score"][0], abs=1e-4)


class Mean:
    name = "mean"

    def __call__(self, images, prompts=None):
        return images.mean(dim=(1, 2, 3))


def test_more_evaluations_find_more_and_zeno_more_than_best_of_n():
    """In small: 97 and 401 evaluations of a generator that costs nothing."""
    sample_map, reward = noise_searches.random_network(), zeno_black_box.REWARDS["JPEG size"]
    best = {
        (arm, evaluations): noise_searches.search(sample_map, reward, arm, evaluations, 0)[0]["best"][-1]
        for arm in ("ZeNO", "best of N") for evaluations in (97, 401)
    }  # fmt: skip
    assert best["ZeNO", 401] > best["ZeNO", 97] > best["best of N", 97]
    assert best["ZeNO", 401] > best["best of N", 401]


def test_zeno_climbs_deterministic_generators(monkeypatch):
    monkeypatch.setattr(zeno_deterministic, "EVALUATIONS", 33)
    results = [
        {"case": {"generator": "one step", "arm": arm, "seed": 0}} | zeno_deterministic.run("one step", arm, 0)
        for arm in zeno_deterministic.ARMS
    ]
    (lead,) = noise_searches.leads(results, "evaluations", generator="one step")
    assert lead > 0
    zeno_deterministic.EXPERIMENT.draw(results)


@pytest.mark.parametrize("law", zeno_tilted_law.LAWS)
def test_sampling_goes_most_of_the_way_to_the_tilted_law(monkeypatch, law):
    for name, value in {"CHAINS": 48, "CANDIDATES": 24, "BETA": 0.1, "BURN_IN": 60, "KEPT": 30}.items():
        monkeypatch.setattr(zeno_tilted_law, name, value)
    found = zeno_tilted_law.run(law, 0)
    assert found["left"] < 0.2, "twice what it was"
    assert found["others' deviation"] == pytest.approx(1, abs=0.1)


def test_the_tilted_laws_are_those_of_the_rewards():
    """By importance weights exp(r / lambda) of true noise: mean and standard deviation, up to 1 in a hundred."""
    z = torch.linspace(-12, 12, 200001, dtype=torch.float64)
    for reward, mean, deviation in zeno_tilted_law.LAWS.values():
        weights = (-z.square() / 2 + reward(z) / zeno_tilted_law.TEMPERATURE).softmax(dim=0)
        found = (weights * z).sum()
        assert found.item() == pytest.approx(mean, abs=1e-6)
        assert (weights * (z - found).square()).sum().sqrt().item() == pytest.approx(deviation, abs=1e-6)


def test_the_backbone_has_the_lengths_the_angles_and_the_hand_of_proteins():
    atoms = zeno_protein.backbone(drawn(20, 3, 40).double())
    n, ca, c, o = atoms.unbind(2)
    for (first, second), length in {
        (n, ca): 1.458, (ca, c): 1.525, (c, o): 1.231, (c[:, :-1], n[:, 1:]): 1.329,
    }.items():  # fmt: skip
        torch.testing.assert_close((first - second).norm(dim=2), torch.full_like(first[..., 0], length))
    # A trans peptide: neighbouring CA atoms are 3.8 angstrom apart whatever the torsions; by these angles 3.85.
    assert (ca[:, 1:] - ca[:, :-1]).norm(dim=2).sub(3.83).abs().max() < 0.05
    # O is in the plane of the peptide, away from the next N: 2.2 to 2.3 angstrom.
    assert (o[:, :-1] - n[:, 1:]).norm(dim=2).sub(2.25).abs().max() < 0.06


def test_torsion_angles_are_those_that_were_asked_for():
    """By the usual formula of a dihedral angle, atan2, which the generator does not use."""
    helix = torch.zeros(1, 3, 20, dtype=torch.float64)
    helix[:, 0] = 20.0
    n, ca, c, _ = zeno_protein.backbone(helix)[0].unbind(1)
    phi = [dihedral(c[i - 1], n[i], ca[i], c[i]) for i in range(1, 20)]
    psi = [dihedral(n[i], ca[i], c[i], n[i + 1]) for i in range(19)]
    omega = [abs(dihedral(ca[i], c[i], n[i + 1], ca[i + 1])) for i in range(19)]
    assert phi == pytest.approx([zeno_protein.HELIX[0]] * 19, abs=1e-4)
    assert psi == pytest.approx([zeno_protein.HELIX[1]] * 19, abs=1e-4)
    assert omega == pytest.approx([180.0] * 19, abs=1e-4)


def dihedral(a, b, c, d):
    """The torsion angle about b c, degrees, by IUPAC's sign."""
    first, axis, last = b - a, c - b, d - c
    y = axis.norm() * first @ torch.linalg.cross(axis, last)
    x = torch.linalg.cross(first, axis) @ torch.linalg.cross(axis, last)
    return math.degrees(math.atan2(y, x))


def test_chains_that_cross_clash():
    atoms = torch.zeros(1, 10, 4, 3)
    atoms[..., 0] = 3.8 * torch.arange(10).view(1, 10, 1)
    assert zeno_protein.clashes(atoms).item() == 0
    bent = atoms.clone()
    bent[0, 2] = bent[0, 0] + 1  # a sharp bend of three residues is none
    assert zeno_protein.clashes(bent).item() == 0
    atoms[0, 9] = atoms[0, 2]
    # At the place of residue 2, which is 3.8 from its neighbours: one clash.
    assert zeno_protein.clashes(atoms).item() == 1


def test_zeno_finds_helices_that_dssp_sees(monkeypatch):
    pytest.importorskip("pydssp")
    monkeypatch.setattr(zeno_protein, "EVALUATIONS", 201)
    helix = torch.zeros(1, 3, 40)
    helix[:, 0] = 20.0
    reward, sample_map = zeno_protein.Helical(), zeno_protein.backbone_map()
    whole = sample_map.sample(core.Noise(helix, helix.new_zeros(0, 1, 3, 40)))
    assert reward(whole).item() >= 36, "all of an ideal helix but its ends"
    results = [
        {"case": {"arm": arm, "seed": seed}} | zeno_protein.run(arm, seed)
        for arm in ("ZeNO", "best of N") for seed in range(3)
    ]  # fmt: skip
    assert verdict(noise_searches.leads(results, "evaluations")).mean > 1
    zeno_protein.EXPERIMENT.draw(results)


def test_a_classifier_of_other_people_is_climbed(monkeypatch):
    for module in real_network.EXPERIMENT.needs:
        pytest.importorskip(module)
    monkeypatch.setattr(real_network, "EVALUATIONS", 9)
    found = {"case": {"arm": "DNO, Trust", "seed": 0}} | real_network.run("DNO, Trust", 0)
    assert real_network.gains([found])[0] > 0.2
    assert found["safe"]["start"] < 0
    real_network.EXPERIMENT.draw([found])


def test_the_faces_of_the_gan_are_pictures_and_zeno_climbs_them(monkeypatch):
    pytest.importorskip("gan_face_generate")
    monkeypatch.setattr(zeno_gan, "EVALUATIONS", 65)
    results = [
        {"case": case} | zeno_gan.run(**case) for case in zeno_gan.cases(1) if case["reward"] == "brightness"
    ]
    assert all(abs(result["start"]) < 0.9 and result["best"][-1] > result["start"] for result in results)
    assert [len(claim.values(results)) for claim in zeno_gan.EXPERIMENT.claims] == [0, 1, 1]
    zeno_gan.EXPERIMENT.draw(results)


def test_the_terrains_are_those_of_the_network_at_sigma_80():
    pytest.importorskip("terrain_diffusion")
    sample_map = noise_searches.terrain()
    heights = sample_map.sample(sample_map.randn(0))
    assert heights.shape == (1, 3, 128, 128) and 0.02 < heights.std() < 0.5
    assert 0 < noise_searches.Passable()(heights).item() < 256
