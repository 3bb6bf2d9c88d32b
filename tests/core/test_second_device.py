"""The core on a second device: the CPU's numbers, whichever device the decoder and the reward are on.

    everything on the device        as on one GPU
    decoder and reward on the CPU   as with ComfyUI's --cpu-vae
    no float64 on the device        as on MPS
"""

import contextlib
from dataclasses import replace

import pytest
import torch
from comfyui_dno import core
from second_device import counting, jitter, without_float64
from tiny_models import SIGMAS, TinyDenoiser, decode, guided

MASK = torch.cat([torch.ones(1, 3, 6, 3), torch.zeros(1, 3, 6, 3)], dim=-1)
PLACES = ["on the device", "decoder on the CPU", "no float64"]
SEARCHES = {
    "gradient": {},
    "sgd": {"solver": core.GradientAscent(lr=0.5, optimizer="sgd", clip=0.1)},
    "hybrid 1": {"solver": core.GradientAscent(estimator=core.Hybrid1(q=2))},
    "hybrid 2": {"solver": core.GradientAscent(estimator=core.Hybrid2(q=2))},
    "zeroth order": {"solver": core.GradientAscent(estimator=core.ZerothOrder(q=2))},
    "zeno": {"solver": core.ZeNO(candidates=3)},
    "zeno softmax": {"solver": core.ZeNO(candidates=3, weights="softmax")},
    "zeno sample": {"solver": core.ZeNO(candidates=3, mode="sample")},
    "zeno resample": {"solver": core.ZeNO(candidates=3, mode="resample")},
    "best of n": {"solver": core.Search(candidates=3)},
    "zero order": {"solver": core.Search.zero_order(candidates=3)},
    "pcn": {"solver": core.Search.pcn()},
    "lgd": {"solver": core.LGD(samples=2)},
    "tilt": {"solver": core.Tilt()},
    "trust": {"solver": core.TrustAscent()},
    "probability": {"regularizer": core.ProbabilityRegularizer(permutations=5)},
    "probability of the whole": {"regularizer": core.ProbabilityRegularizer(permutations=5, k=3, apart=False)},
    "norm": {"regularizer": core.NormRegularizer()},
    "first part": {"map": {"part": "first 2"}, "regularizer": core.ProbabilityRegularizer(permutations=5)},
    "initial alone": {"map": {"part": "initial"}},
    "mask": {"map": {"mask": MASK}, "regularizer": core.ProbabilityRegularizer(permutations=5)},
    "masked zeno": {"map": {"mask": MASK, "most_rows": 2}, "solver": core.ZeNO(candidates=3)},
    "ode": {"map": {"eta": 0.0}},
    "flow": {"map": {"family": "flow"}, "solver": core.Search(candidates=2)},
    "kept graphs": {"map": {"keep_graphs": True}},
    "watched": {"watch": (lambda images, prompts: -images.std(dim=(1, 2, 3)),)},
    "belief": {"map": {"mask": MASK}, "watch": (core.Belief(noises=2, samples=2),), "floors": {"belief": 0.1}},
    "checked and diagnosed": {"check_gradient": True, "diagnose": True},
    "diagnosed with a regulariser": {"diagnose": True, "regularizer": core.ProbabilityRegularizer(permutations=5)},
}


def mean_pixel(images, prompts):
    return (images - images.square() / 8).mean(dim=(1, 2, 3))


def on_the_cpu(latent):
    """A decoder that takes the latent to the CPU, as a VAE that was put there."""
    return decode(latent.cpu())


def map_on(device, place="on the device", family="vp", **settings):
    """A SampleMap of a tiny network in float32, a batch of 2; its mask, if any, is on the CPU."""
    denoise = TinyDenoiser().to(device, torch.float32)
    decoder = on_the_cpu if place == "decoder on the CPU" else decode
    return core.SampleMap(denoise, core.Schedule(SIGMAS[family], family), (2, 3, 6, 6), decode=decoder, **settings)


def search(device, place="on the device", noise=None, iterations=2, **settings):
    settings = dict(settings)
    noise_map = map_on(device, place, **settings.pop("map", {}))
    noise = (noise_map.randn(0) if noise is None else noise).to(device)
    return core.optimize(noise_map, mean_pixel, noise, iterations=iterations, **settings)


def allowed(place, device):
    """Return the context of a place, and skip what only the pretend device can be."""
    if place == "no float64":
        if device.type != "pretend":
            pytest.skip("only the pretend device refuses float64")
        return without_float64()
    return contextlib.nullcontext()


def assert_same(found, expected):
    """Both Results have the same best, rows and diagnosis, up to the rounding of a few products."""
    near = {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(found.noise.flat().cpu(), expected.noise.flat(), **near)
    torch.testing.assert_close(found.images.cpu(), expected.images, **near)
    for ours, theirs in zip(found.history.rows, expected.history.rows, strict=True):
        assert ours.keys() == theirs.keys()
        for key in ours.keys() - {"seconds"}:
            assert (ours[key] is None) == (theirs[key] is None)
            if ours[key] is not None:
                torch.testing.assert_close(torch.tensor(ours[key]), torch.tensor(theirs[key]), **near)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("settings", SEARCHES.values(), ids=SEARCHES)
def test_a_search_finds_what_it_finds_on_the_cpu(device, settings, place):
    # What an update leaves for the next one is the same wherever the decoder is.
    iterations = 2 if place == "on the device" else 1
    with allowed(place, device):
        found = search(device, place, iterations=iterations, **settings)
    expected = search("cpu", iterations=iterations, **settings)
    assert_same(found, expected)
    assert found.latent.device == found.noise.initial.device == found.noise.injected.device == device
    if settings.get("diagnose"):
        assert found.history.diagnosis.types == expected.history.diagnosis.types
    if settings.get("check_gradient"):
        assert max(found.history.settings["gradient_error"]) < 0.01


@pytest.mark.parametrize("settings", [SEARCHES["diagnosed with a regulariser"], SEARCHES["zeno"]])
def test_a_history_holds_nothing_on_the_device(device, settings):
    history = search(device, **settings).history
    kept = [*history.pictures, history.best_picture, *vars(history.diagnosis or history).values()]
    assert {tensor.device.type for tensor in kept if torch.is_tensor(tensor)} == {"cpu"}
    assert history.to_json() and history.summary()


@pytest.mark.parametrize(
    "solver", [core.GradientAscent(lr=0.05), core.ZeNO(candidates=3, beta=0.1)], ids=["adam", "zeno"]
)
@pytest.mark.parametrize("there", ["to the device", "from the device"])
def test_a_search_goes_on_on_another_device(device, tmp_path, solver, there):
    places = ("cpu", device) if there == "to the device" else (device, "cpu")
    settings = {"solver": solver, "regularizer": core.ProbabilityRegularizer(permutations=5), "floor": 0.0}
    whole = search("cpu", iterations=4, **settings)
    search(places[0], iterations=2, **settings).noise.save(tmp_path / "noise.safetensors")
    rest = search(places[1], noise=core.Noise.load(tmp_path / "noise.safetensors"), **settings)
    assert [row["iteration"] for row in rest.history.rows] == [2, 3, 4]
    scores = [torch.tensor([row["score"] for row in run.history.rows[-3:]]) for run in (rest, whole)]
    torch.testing.assert_close(*scores, rtol=1e-3, atol=1e-4)


def test_the_same_seed_draws_the_same_candidates_and_permutations(device):
    noise = map_on("cpu").randn(3)
    p, again = (core.noise_probability(each.flat()) for each in (noise, noise.to(device)))
    assert again.device == device
    torch.testing.assert_close(again.cpu(), p, rtol=1e-4, atol=1e-6)
    problems = [core.Problem(map_on(place), mean_pixel) for place in ("cpu", device)]
    places = zip(problems, ("cpu", device), strict=True)
    draws = [problem.draw(4, noise.flat().to(place), 1) for problem, place in places]
    torch.testing.assert_close(draws[1].cpu(), draws[0], rtol=0, atol=4e-6)  # `philox.normals` says why


def test_reno_runs_on_it(device):
    maps = [map_on(place) for place in (device, "cpu")]
    noises = [noise_map.randn(0).to(place) for noise_map, place in zip(maps, (device, "cpu"), strict=True)]
    found, expected = (core.reno(*pair, iterations=2) for pair in zip(maps, [mean_pixel] * 2, noises, strict=True))
    assert_same(found, expected)


def test_networks_in_half_precision_run_on_it(device):
    noise_map = map_on(device)
    network = TinyDenoiser().to(device, torch.bfloat16)
    noise_map = replace(noise_map, denoise=lambda x, sigma: network(x.bfloat16(), sigma.bfloat16()).to(x.dtype))
    history = core.optimize(noise_map, mean_pixel, noise_map.randn(0).to(device), iterations=2).history
    assert all(later > first for first, later in zip(history.rows[0]["score"], history.rows[-1]["score"], strict=True))


class Half(torch.nn.Module):
    """A network in bfloat16 behind samples in float32."""

    def __init__(self, device, seed):
        super().__init__()
        self.network = TinyDenoiser(seed=seed).to(device, torch.bfloat16)

    def forward(self, x, sigma):
        return self.network(x.bfloat16(), sigma.bfloat16()).to(x.dtype)


def half_map(device, denoise=None):
    schedule = core.Schedule(SIGMAS["vp"])
    denoise = denoise or guided(Half(device, 0), Half(device, 1), cfg=8.0)
    return core.SampleMap(denoise, schedule, (2, 3, 6, 6), decode=decode, device=device)


@pytest.mark.parametrize("size", [2e-3, 1e-2])
def test_kernels_that_differ_from_call_to_call_are_not_taken_for_a_model_with_a_state(pretend, size):
    """bfloat16 at a guidance scale of 8: relative differences of a few percent from one run to the next."""
    noise_map = half_map(pretend)
    noise = noise_map.randn(0)
    with jitter(size):
        for _ in range(5):
            images, vjp = noise_map.pullback(noise)
            assert vjp(torch.ones_like(images)).flat().isfinite().all()


def test_a_model_with_a_state_is_found_under_such_kernels(pretend):
    inner, calls = half_map(pretend).denoise, []

    def stateful(x, sigma):
        calls.append(1)
        return inner(x, sigma) * (1.0 if len(calls) <= 4 else 1.5)

    noise_map = half_map(pretend, stateful)
    with jitter(2e-3):
        images, vjp = noise_map.pullback(noise_map.randn(0))
        with pytest.raises(RuntimeError, match="keeps a state between calls"):
            vjp(torch.ones_like(images))


def test_a_backward_pass_makes_the_host_wait_as_often_for_many_steps_as_for_few(pretend):
    waits = []
    for steps in (3, 9):
        schedule = core.Schedule(tuple(range(steps, -1, -1)))
        denoise = TinyDenoiser().to(pretend, torch.float32)
        noise_map = core.SampleMap(denoise, schedule, (2, 3, 6, 6), decode=decode, device=pretend)
        images, vjp = noise_map.pullback(noise_map.randn(0))
        with counting() as counts:
            vjp(torch.ones_like(images))
        waits.append(sum(counts.synchronisations.values()))
    assert waits[0] == waits[1]


ADAM, REGULARIZER = {"solver": core.GradientAscent()}, {"regularizer": core.ProbabilityRegularizer(permutations=5)}
WAITS = {
    "gradient": (4, ADAM),
    "regularizer": (4, ADAM | REGULARIZER),
    "part": (4, ADAM | REGULARIZER | {"map": {"part": "first 2"}}),
    "mask": (4, ADAM | REGULARIZER | {"map": {"mask": MASK}}),
    "kept graphs": (3, ADAM | REGULARIZER | {"map": {"keep_graphs": True}}),
    "trust": (8, REGULARIZER),
    "ou": (8, {"solver": core.GradientAscent(optimizer="ou", lr=0.2)}),
    "ou of an estimate": (8, {"solver": core.GradientAscent.ou(core.Hybrid2(q=2))}),
    "lgd": (4, {"solver": core.LGD(samples=2)}),
    "tilt": (5, {"solver": core.Tilt()}),
    "zeno": (8, {"solver": core.ZeNO(candidates=4)}),
    "best of n": (10, {"solver": core.Search(candidates=4)}),
}
"""How often an iteration makes the host wait: for whether steps came out as before, whether all is finite, the row of
the history, and its picture. Searches by candidates ask besides which are better, as often as one was."""


@pytest.mark.parametrize("most, settings", WAITS.values(), ids=WAITS)
def test_an_iteration_makes_the_host_wait_as_often_for_many_steps_as_for_few_and_nothing_large_is_copied(
    pretend, most, settings
):
    """The first iteration makes what is kept. A picture of 8 bits crosses, and numbers of each picture; never z."""
    settings, waits = dict(settings), []
    changes = settings.pop("map", {})
    for steps in (4, 9):
        schedule = core.Schedule(tuple(range(steps, -1, -1)))
        denoise = TinyDenoiser().to(pretend, torch.float32)
        noise_map = core.SampleMap(denoise, schedule, (2, 3, 6, 6), decode=decode, device=pretend, **changes)
        rows, largest = [], []

        def read(evaluation, best, rows=rows, largest=largest):
            rows.append(sum(counts.synchronisations.values()))
            largest.append(counts.largest_copy)
            counts.largest_copy = 0

        with counting() as counts:
            core.optimize(noise_map, mean_pixel, noise_map.randn(0), iterations=3, callback=read, **settings)
        waits.append(rows[2] - rows[1])
        assert largest[1] <= 2 * 3 * 12 * 12 and largest[2] <= 2 * 3 * 12 * 12
    assert max(waits) <= most
    if "solver" not in settings:
        assert waits[0] == waits[1]
