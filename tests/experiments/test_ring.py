"""The paper's toy: a model trained once for all tests, its exact counterpart, and what each experiment must show."""

import json

import pytest
import torch
from comfyui_dno.core.diagnostics import Diagnosis
from comfyui_dno.experiments import ring, ring_figures, ring_models
from PIL import Image


@pytest.fixture(scope="module")
def denoise():
    return ring_models.train(ring_models.ring, iterations=1500, batch=256)


@pytest.fixture(scope="module")
def denoise_line():
    return ring_models.train(ring_models.line, iterations=1500, batch=256)


@pytest.fixture(scope="module")
def climbed(denoise):
    return ring.climb(ring.point_map(denoise, 60), ring.waves, 100, (0, 10, 50, 100))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def posterior_mean(draw, x, sigma):
    """E[x0 | x] by weighting a million points, (2,)."""
    points = draw(1_000_000, generator()).double()
    weight = (-(points - x).square().sum(dim=1) / (2 * sigma**2)).softmax(dim=0)
    return weight @ points


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_samples_lie_on_the_ring_all_around(denoise, eta):
    sample_map = ring.point_map(denoise, 600, eta)
    points = sample_map.sample(sample_map.randn())
    assert ring_models.on_ring(points).float().mean() > 0.96
    for sign1, sign2 in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        assert 0.19 < ((points[:, 0] * sign1 > 0) & (points[:, 1] * sign2 > 0)).float().mean() < 0.31


def test_training_points_are_uniform_on_the_ring():
    points = ring_models.ring(100_000, generator())
    radius = points.norm(dim=1)
    assert radius.min() >= 0.8 and radius.max() <= 1.2
    inner_area = (1.0**2 - 0.8**2) / (1.2**2 - 0.8**2)
    assert float((radius < 1).float().mean()) == pytest.approx(inner_area, abs=0.01)
    assert points.mean(dim=0).abs().max() < 0.01


@pytest.mark.parametrize("draw, exact", [
    (ring_models.ring, ring_models.exact_ring), (ring_models.line, ring_models.exact_line),
])
@pytest.mark.parametrize("x, sigma", [((0.9, 0.3), 0.1), ((0.2, -0.1), 0.5), ((-1.4, 0.4), 0.3), ((3.0, -4.0), 4.0)])
def test_exact_denoisers_are_the_posterior_mean(draw, exact, x, sigma):
    found = exact(torch.tensor([x]), torch.tensor([sigma]))[0]
    torch.testing.assert_close(found.double(), posterior_mean(draw, torch.tensor(x), sigma), atol=0.005, rtol=0)


@pytest.mark.parametrize("exact, end", [(ring_models.exact_ring, 1.2), (ring_models.exact_line, 1.0)])
def test_exact_denoisers_and_their_gradients_hold_far_outside(exact, end):
    x = torch.tensor([[4.0, 0.0], [-4.0, 0.0]], requires_grad=True)
    found = exact(x, torch.full((2,), 0.05))
    (gradient,) = torch.autograd.grad(found.sum(), x)
    assert torch.isfinite(gradient).all()
    torch.testing.assert_close(found, torch.tensor([[end, 0.0], [-end, 0.0]]), atol=0.01, rtol=0)


def test_the_trained_denoiser_is_near_the_exact_one(denoise):
    for sigma in (0.1, 0.5, 3.0):
        x = ring_models.ring(500, generator()) + sigma * torch.randn(500, 2, generator=generator(1))
        sigmas = torch.full((500,), sigma)
        assert (denoise(x, sigmas) - ring_models.exact_ring(x, sigmas)).abs().mean() < 0.03


def test_training_repeats_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second = (ring_models.train(ring_models.ring, seed=3, iterations=5, batch=32) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    x, sigma = torch.randn(4, 2), torch.ones(4)
    assert torch.equal(first(x, sigma), second(x, sigma))
    assert not torch.equal(first(x, sigma), ring_models.train(ring_models.ring, 4, 5, 32)(x, sigma))


def test_the_points_climb(climbed):
    means = [climbed.means[iteration] for iteration in (0, 10, 50, 100)]
    assert means[0] + 0.8 < means[1] and means[1] + 0.3 < means[2] and means[2] < means[3]
    assert len(climbed.means) == 101 and list(climbed.snapshots) == [0, 10, 50, 100]


def test_an_interrupted_experiment_is_none(denoise):
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ring.climb(ring.point_map(denoise, 2), ring.waves, 3, (3,), tick=interrupt)


def test_the_sde_climbs_faster_than_the_ode_under_adam_alone(denoise):
    means = ring.ode_and_sde(denoise, iterations=15, batch=100)
    lead = {name: sum(curves["SDE"]) / 16 - sum(curves["ODE"]) / 16 for name, curves in means.items()}
    assert lead["Adam"] > 0.3 and abs(lead["plain gradient ascent"]) < 0.15


def test_the_ring_ends_in_type_one_the_line_in_type_three_and_the_lines_end_in_type_two(denoise, denoise_line, climbed):
    stopped = ring.stops(denoise, denoise_line, climbed.snapshots[100].noise, iterations=100, batch=40)
    kinds = {name: stop.diagnosis.types for name, stop in stopped.items()}
    assert set(kinds["line"]) == {"III"}
    assert kinds["ring"].count("I") > 30 and "II" not in kinds["ring"]
    assert kinds["end"].count("II") > 5 and set(kinds["end"]) == {"II", "none"}
    assert stopped["end"].points[:, 0].min() > 0.5


def test_points_leave_the_ring_without_the_regulariser_and_their_noise_tells(denoise):
    found = ring.out_of_distribution(denoise, iterations=20, batch=40, lr=0.2)
    share = {name: float(ring_models.on_ring(found[name].images).float().mean()) for name in found}
    assert share["before"] > 0.9 and share["without"] < 0.1 and share["with"] > 0.8
    assert found["with"].scores.mean() > found["before"].scores.mean() + 2
    assert ring.separation(found["before"].log_p, found["without"].log_p) > 0.95
    assert ring.separation(found["before"].log_p, found["with"].log_p) < 0.7
    # The same improbable noise leads nowhere else where the denoiser makes no errors.
    assert torch.equal(found["exact"].noise.flat(), found["without"].noise.flat())
    assert share["exact"] == 1


def test_distances_are_to_the_nearer_edge():
    points = torch.tensor([[0.5, 0.0], [0.0, -0.9], [1.2, 0.0], [0.9, 1.2]])
    assert ring_models.distance_to_ring(points).tolist() == pytest.approx([0.3, 0.0, 0.0, 0.3], abs=1e-6)
    assert ring_models.on_ring(points).tolist() == [False, True, True, False]


def test_separation_is_the_area_under_the_roc():
    assert ring.separation(torch.tensor([2.0, 3.0]), torch.tensor([0.0, 1.0])) == 1
    assert ring.separation(torch.tensor([0.0, 1.0]), torch.tensor([2.0, 3.0])) == 0
    assert ring.separation(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0])) == pytest.approx(0.375)


def test_rewards_have_the_papers_values():
    points = torch.tensor([[1.125, 0.125], [0.0, 0.0]])
    assert ring.waves(points).tolist() == pytest.approx([1 + 1 - (0.125**2 - 0.125**2) / 5, -0.2])
    assert ring.nearness(points).tolist() == pytest.approx([-(0.275**2) - 1.275**2, -2 * 1.4**2])
    edge = torch.tensor([[1.2 / 2**0.5] * 2])
    assert float(ring.nearness(edge)) == pytest.approx(-0.61, abs=0.005)


def test_figures_writes_every_picture_and_the_numbers(tmp_path):
    size = ring.Size(training=200, points=16, iterations=10, far=3)
    numbers = ring.figures(tmp_path / "new", progress=False, size=size)
    names = ["02_evolution", "03_ode_and_sde", "04_out_of_distribution", "12_types", "13_probability"]
    expected = [f"figure_{name}.png" for name in names] + ["toy.json"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == expected
    for path in (tmp_path / "new").glob("*.png"):
        with Image.open(path) as picture:
            assert picture.width > 600 and picture.height > 300
            assert picture.convert("RGB").resize((60, 30)).getcolors(maxcolors=20) is None  # more than 20 colours
    assert json.loads((tmp_path / "new" / "toy.json").read_text()) == json.loads(json.dumps(numbers))
    assert list(numbers["evolution"]["mean_reward"]) == [0, 1, 5, 10]
    counts = {name: sum(types.values()) for name, types in numbers["types"].items()}
    assert counts == {"ring": 16, "line": 4, "end": 4}


def test_every_type_has_its_colour_and_count():
    points = torch.tensor([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.0], [0.0, -1.0]])
    nothing = torch.zeros(4)
    diagnosis = Diagnosis(*[nothing] * 6, opposed=None, types=["I", "II", "none", "none"])
    figure = ring_figures.stops({name: ring.Stop(points, ring.waves, diagnosis) for name in ("ring", "line", "end")})
    for axes in figure.axes:
        labels = [text.get_text() for text in axes.get_legend().get_texts()]
        assert labels == ["still improving: 2", "type I: 1", "type II: 1"]
        drawn = {tuple(dots.get_facecolor()[0]): len(dots.get_offsets()) for dots in axes.collections}
        assert len(drawn) == 3 and sorted(drawn.values()) == [1, 1, 2]
