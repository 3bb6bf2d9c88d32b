"""DNO Score Images and DNO Pick Best inside a real ComfyUI, on pictures of known scores."""

import math

import pytest
import tiny_rewards
import torch
from comfyui_dno import rewards
from PIL import Image
from scoring import BRIGHTNESS, Scoring
from workflows import error, history_of


def test_pictures_are_scored_in_their_order_and_ranked_the_best_first(comfy):
    graph = Scoring(comfy)
    scores, text, ranking = graph.scored(graph.greys(), graph.reward)
    assert scores == pytest.approx(BRIGHTNESS, abs=1e-5)
    assert text.splitlines() == ["1. picture 1: 0.6", "2. picture 0: -0.2", "3. picture 2: -0.6"]
    # The sheet's tiles are 192 pixels wide, 6 apart.
    found = [round(ranking[0, 100, 100 + 198 * place, 0].item() * 255) for place in range(3)]
    assert found == [204, 102, 51]


def test_a_networks_score_is_its_authors_from_8_bit_pixels(comfy):
    folder = comfy.folder / "models" / "reward_models"
    folder.mkdir(parents=True, exist_ok=True)
    path = tiny_rewards.write("clip_l", folder)
    picture = (tiny_rewards.pictures(1, 75, 131)[0].clamp(0, 1) * 255).byte().movedim(0, -1)
    graph = Scoring(comfy)
    loaded = graph.picture("rough", (0, 0, 0))
    Image.fromarray(picture.numpy()).save(comfy.folder / "input" / "rough.png")
    clip = graph.node("DNOCLIPScoreReward", file=path.name, prompt="a cat", dtype="float32", crops=0)[0]
    (score,), text, _ = graph.scored(loaded[0], graph.combine(graph.reward, clip, weights=(0.0, 10.0)))
    reward = rewards.CLIPScore(rewards.load_tower(path), "a cat")
    smooth, parity = (
        reward(picture[None].movedim(-1, 1) / 255).item() for reward in (reward, rewards.in_parity(reward))
    )
    assert score == pytest.approx(10 * parity, abs=1e-5) and abs(smooth - parity) > 1e-4


def test_the_best_are_picked_with_latents_that_sample_to_them_again(comfy):
    graph = Scoring(comfy)
    latent = graph.latent(batch=4, mask="half")
    stock = {"sampler_name": "euler"}
    sampled = graph.node("KSampler", **graph.sampling(latent=latent, steps=3), **stock)
    images = graph.node("VAEDecode", samples=sampled[0], vae=graph.vae)
    best = graph.node("DNOPickBest", images=images[0], reward=graph.reward, count=2, latents=latent)
    again = graph.node("KSampler", **graph.sampling(latent=best[1], steps=3), **stock)
    for key, value in {"all": sampled, "images": images, "best": best, "again": again}.items():
        graph.keep(key, value[0])
    run, indices, scores = graph.shown(best[2], best[3])
    images, order = run.kept["images"]["tensor"], [int(index) for index in indices]
    expected = (2 * images.mean(dim=(1, 2, 3)) - 1).sort(descending=True)
    assert order == expected.indices[:2].tolist()
    assert scores == pytest.approx(expected.values[:2].tolist(), abs=1e-5)
    assert torch.equal(run.kept["best"]["tensor"], images[order])
    assert error(run.kept["again"]["samples"], run.kept["all"]["samples"][order]) < 1e-5


def test_without_latents_pictures_are_picked_and_who_uses_the_latents_is_told(comfy):
    graph = Scoring(comfy)
    best = graph.node("DNOPickBest", images=graph.greys(), reward=graph.reward, count=1)
    run, indices = graph.shown(best[2])
    assert indices == [1]
    graph.node("DNOTestKeep", key="latent", value=best[1])
    assert "no latent to give" in comfy.fail(graph)


@pytest.mark.parametrize("kind", ["gray", "gray and alpha", "alpha"])
def test_gray_pictures_are_judged_and_alpha_is_not_counted(comfy, kind):
    graph = Scoring(comfy)
    images = graph.node("DNOTestPictures", images=graph.greys(), kind=kind)[0]
    scores, *_ = graph.scored(images, graph.combine(graph.reward, graph.saturation(), weights=(1.0, 0.0)))
    assert scores == pytest.approx(BRIGHTNESS, abs=1e-5)


@pytest.mark.parametrize("kind, words", [
    ("levels", ["a mean of", "Divide 8-bit levels by 255"]), ("all nan", ["no picture is finite"]),
    ("five channels", ["(3, 16, 16, 5)", "expected an IMAGE"]),
])
def test_what_is_no_picture_is_named(comfy, kind, words):
    for node in ("DNOScoreImages", "DNOPickBest"):
        graph = Scoring(comfy)
        images = graph.node("DNOTestPictures", images=graph.greys(), kind=kind)[0]
        judged = graph.node(node, images=images, reward=graph.reward)
        graph.keep("found", judged[2] if node == "DNOScoreImages" else judged[0])
        found = comfy.fail(graph)
        assert all(word in found for word in words), found


def test_a_picture_that_is_not_finite_is_ranked_last_and_named(comfy):
    graph = Scoring(comfy)
    images = graph.node("DNOTestPictures", images=graph.greys(), kind="nan")[0]
    for reward in (graph.reward, graph.combine(graph.reward)):
        scores, text, _ = graph.scored(images, reward)
        assert scores == pytest.approx([BRIGHTNESS[0], -math.inf, BRIGHTNESS[2]], abs=1e-5)
        assert text.splitlines()[-1] == "3. picture 1: -inf, its pixels are not finite"
    calibrated = graph.combine(graph.reward, mode="z-scored", calibrate_on=2)
    scores, *_ = graph.scored(images, calibrated)
    assert scores == pytest.approx([2**-0.5, -math.inf, -(2**-0.5)], abs=1e-4)
    best = graph.node("DNOPickBest", images=images, reward=graph.reward, count=2)
    assert graph.shown(best[2])[1] == [0, 2]


def test_with_a_reference_for_each_picture_one_that_is_not_finite_is_left_out_of_calibration_with_its_own(comfy):
    """The first picture is its reference, the last the negative of its own."""
    graph = Scoring(comfy)
    black, white = (0, 0, 0), (255, 255, 255)
    dark, light = graph.picture("dark_light", black, white)[0], graph.picture("light_dark", white, black)[0]

    def batch(*pictures):
        first, second, third = pictures
        two = graph.node("ImageBatch", image1=first, image2=second)[0]
        return graph.node("ImageBatch", image1=two, image2=third)[0]

    images = graph.node("DNOTestPictures", images=batch(dark, light, light), kind="nan")[0]
    layout = graph.node("DNOLayoutReward", reference=batch(dark, light, dark), by="light")[0]
    mixed = graph.combine(layout, mode="z-scored", calibrate_on=2)
    scores, *_ = graph.scored(images, mixed)
    assert scores == pytest.approx([2**-0.5, -math.inf, -(2**-0.5)], abs=1e-4)


@pytest.mark.parametrize(
    "count, latents, words", [(4, 3, "count is 4 but the batch has 3"), (1, 2, "there are 2 latents for 3 images")]
)
def test_picks_that_cannot_be_are_explained(comfy, count, latents, words):
    graph = Scoring(comfy)
    inputs = {"images": graph.greys(), "reward": graph.reward, "latents": graph.latent(batch=latents)}
    graph.keep("image", graph.node("DNOPickBest", count=count, **inputs)[0])
    assert words in comfy.fail(graph)


def test_a_network_that_scored_pictures_can_be_searched_with_afterwards(comfy):
    folder = comfy.folder / "models" / "reward_models"
    folder.mkdir(parents=True, exist_ok=True)
    file = tiny_rewards.write("clip_h", folder).name
    graph = Scoring(comfy)
    clip = graph.node("DNOCLIPScoreReward", file=file, prompt="a cat", dtype="float32", crops=2)[0]
    before = graph.node("DNOScoreImages", images=graph.greys(), reward=clip)
    graph.reward = graph.combine(clip, mode="z-scored")
    solver = graph.node("DNOSolverGradient", lr=0.03, optimizer="adam", momentum=0.9, clip=0.0)
    graph.node("DNOTestHistory", history=graph.dno(iterations=1, solver=solver[0], steps=3)[3])
    run = comfy.run(graph)
    rows = history_of(run)["rows"]
    assert len(run.outputs[before.id]["text"][0].splitlines()) == 3
    raw = torch.tensor(rows[0]["watch/CLIPScore of crops"])
    torch.testing.assert_close(torch.tensor(rows[0]["score"]), (raw - 0.33) / 0.04, atol=1e-4, rtol=1e-4)
    assert all(norm > 0 for norm in rows[0]["gradient_norm"])
