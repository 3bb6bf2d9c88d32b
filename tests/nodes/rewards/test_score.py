"""Pixel rewards, combined rewards, Score Images and Pick Best inside a real ComfyUI, on pictures of known scores."""

import math

import pytest
import tiny_rewards
import torch
from comfyui_dno import rewards
from PIL import Image
from workflows import Workflow, error, history_of

GREYS = (102, 204, 51)
BRIGHTNESS = [2 * grey / 255 - 1 for grey in GREYS]


class Scoring(Workflow):
    """A graph with the nodes around rewards, and pictures read from files of the server's input folder."""

    def __init__(self, server):
        super().__init__()
        self.server = server

    def picture(self, name, color, right=None):
        """Load a 16 x 16 picture; with `right`, that is its right half's colour and the mask is 1 there. Its node."""
        picture = Image.new("RGBA", (16, 16), (*color, 255))
        if right is not None:
            picture.paste((*right, 0), (8, 0, 16, 16))
        folder = self.server.folder / "input"
        folder.mkdir(exist_ok=True)
        picture.save(folder / f"{name}.png")
        return self.node("LoadImage", image=f"{name}.png")

    def greys(self):
        first, *others = (self.picture(f"grey{grey}", (grey,) * 3)[0] for grey in GREYS)
        for other in others:
            first = self.node("ImageBatch", image1=first, image2=other)[0]
        return first

    def combine(self, *parts, mode="raw", calibrate_on=0, priors="", weights=(), watch_only=()):
        inputs = {f"reward_{n}": part for n, part in enumerate(parts, 1)}
        for n in (1, 2, 3, 4):
            inputs[f"weight_{n}"] = dict(enumerate(weights, 1)).get(n, 1.0)
            inputs[f"watch_only_{n}"] = n in watch_only
        return self.node("DNOCombineRewards", **inputs, mode=mode, calibrate_on=calibrate_on, priors=priors)[0]

    def contrast(self):
        return self.node("DNOContrastReward", negative=False)[0]

    def saturation(self):
        return self.node("DNOSaturationReward", negative=False)[0]

    def scored(self, images, reward):
        """Run; return the scores and the text of Score Images, and the ranking's pixels."""
        node = self.node("DNOScoreImages", images=images, reward=reward)
        shown = self.node("PreviewAny", source=node[1])
        self.keep("ranking", node[2])
        run = self.server.run(self)
        scores = [float(text) for text in run.outputs[shown.id]["text"]]
        return scores, run.outputs[node.id]["text"][0], run.kept["ranking"]["tensor"]

    def shown(self, *outputs):
        """Run and return the values of outputs that are lists of numbers."""
        nodes = [self.node("PreviewAny", source=output) for output in outputs]
        run = self.server.run(self)
        return run, *([float(text) for text in run.outputs[node.id]["text"]] for node in nodes)


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


@pytest.mark.parametrize(
    "name, inputs, expected",
    [
        ("DNOContrastReward", {"negative": False}, 0.5),
        ("DNOContrastReward", {"negative": True}, -0.5),
        ("DNOSaturationReward", {"negative": False}, 0.0),
        # Of 14 x 14 inner pixels the two columns at the edge have a Laplacian of +1 and -1.
        ("DNOSharpnessReward", {"negative": False}, math.sqrt(2 / 14)),
        ("DNOSharpnessReward", {"negative": True}, -math.sqrt(2 / 14)),
        ("DNOColorReward", {"color": "#ffffff"}, -1.5),
        ("DNOColorReward", {"color": "255, 255,255"}, -1.5),
        ("DNOColorReward", {"color": "red"}, -1.5),
        ("DNOColorReward", {"color": "#0f0", "mask": True}, -2.0),
    ],
)
def test_pixel_rewards_give_the_known_scores_of_a_black_and_white_picture(comfy, name, inputs, expected):
    graph = Scoring(comfy)
    halves = graph.picture("halves", (0, 0, 0), right=(255, 255, 255))
    if "mask" in inputs:
        inputs = {**inputs, "mask": halves[1]}
    (score,), _, _ = graph.scored(halves[0], graph.node(name, **inputs)[0])
    assert score == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", ["DNOContrastReward", "DNOSaturationReward", "DNOSharpnessReward", "DNOColorReward"])
def test_a_search_raises_every_pixel_reward(comfy, name):
    graph = Scoring(comfy)
    inputs = {"negative": True}
    if name == "DNOColorReward":
        inputs = {"color": "#ff8000", "mask": graph.picture("mask", (0, 0, 0), right=(0, 0, 0))[1]}
    graph.reward = graph.node(name, **inputs)[0]
    solver = graph.node("DNOSolverGradient", lr=0.03, optimizer="adam", momentum=0.9, clip=0.0)
    graph.node("DNOTestHistory", history=graph.dno(iterations=3, solver=solver[0], steps=3)[3])
    scores = torch.tensor([row["score"] for row in history_of(comfy.run(graph))["rows"]])
    assert (scores[1:].amax(dim=0) > scores[0]).all(), scores


@pytest.mark.parametrize("color", ["ff8000", "256, 0, 0", "1, 2", "#ff8000ff", "no colour", ""])
def test_a_wrong_colour_is_refused_before_anything_runs(comfy, color):
    graph = Scoring(comfy)
    reward = graph.node("DNOColorReward", color=color)[0]
    graph.node("DNOScoreImages", images=graph.greys(), reward=reward)
    with pytest.raises(ValueError, match="expected such as #ff8000"):
        comfy.run(graph)


def test_combined_rewards_add_up_and_a_chain_of_them_is_one_of_all(comfy):
    graph = Scoring(comfy)
    color = graph.node("DNOColorReward", color="#000000")[0]
    inner = graph.combine(color, graph.saturation(), weights=(2.0, 7.0))
    outer = graph.combine(graph.reward, inner, graph.saturation(), weights=(3.0, -0.5, 1.0))
    scores, text, _ = graph.scored(graph.greys(), outer)
    expected = [3 * (2 * grey / 255 - 1) - 0.5 * 2 * -3 * (grey / 255) ** 2 for grey in GREYS]
    assert scores == pytest.approx(expected, abs=1e-5)
    assert "brightness 0.6, combined -3.84, combined/colour target -1.92" in text.splitlines()[0]


def test_a_reward_that_is_watched_only_is_shown_and_not_counted(comfy):
    graph = Scoring(comfy)
    color = graph.node("DNOColorReward", color="#000000")[0]
    scores, text, _ = graph.scored(graph.greys(), graph.combine(graph.reward, color, watch_only=(2,)))
    assert scores == pytest.approx(BRIGHTNESS, abs=1e-5)
    assert text.splitlines()[0] == "1. picture 1: 0.6, brightness 0.6, colour target -1.92"


def test_z_scores_are_by_the_priors_that_are_given(comfy):
    graph = Scoring(comfy)
    color = graph.node("DNOColorReward", color="#000000")[0]
    reward = graph.combine(graph.reward, color, mode="z-scored", priors="0.1 0.5, -1 2", weights=(1.0, 3.0))
    scores, _, _ = graph.scored(graph.greys(), reward)
    expected = [(2 * grey / 255 - 1 - 0.1) / 0.5 + 3 * (-3 * (grey / 255) ** 2 + 1) / 2 for grey in GREYS]
    assert scores == pytest.approx(expected, abs=1e-4)


def test_scored_pictures_calibrate_a_combined_reward_an_inner_one_first(comfy):
    graph = Scoring(comfy)
    color = graph.node("DNOColorReward", color="#000000")[0]
    inner = graph.combine(color, mode="z-scored", calibrate_on=8)
    scores, _, _ = graph.scored(graph.greys(), graph.combine(graph.reward, inner, weights=(0.0, 1.0)))
    raw = torch.tensor([-3 * (grey / 255) ** 2 for grey in GREYS], dtype=torch.float64)
    assert scores == pytest.approx(((raw - raw.mean()) / raw.std()).tolist(), abs=1e-4)


@pytest.mark.parametrize("mask", ["none", "half"])
def test_a_run_calibrates_on_the_noises_of_the_first_seeds_and_is_otherwise_the_same(comfy, mask):
    def run(seed, reward=None):
        graph = Scoring(comfy)
        graph.reward = reward(graph) if reward else graph.reward
        ours = graph.dno(seed=seed, steps=3, latent=graph.latent(mask=mask))
        graph.node("DNOTestHistory", history=ours[3])
        graph.keep("latent", ours[0])
        done = comfy.run(graph)
        row = history_of(done)["rows"][0]
        return torch.tensor(row["score"], dtype=torch.float64), row, done.kept["latent"]["samples"]

    # Three noises are asked for: the batch of 2 makes that two runs of the sampler.
    first = torch.cat([run(seed)[0] for seed in (0, 1)])
    raw, _, latent = run(9)
    found, row, same = run(9, lambda graph: graph.combine(graph.reward, mode="z-scored", calibrate_on=3))
    torch.testing.assert_close(found, (raw - first.mean()) / first.std(), atol=2e-3, rtol=1e-3)
    assert row["watch/brightness"] == pytest.approx(raw.tolist(), abs=1e-6)
    assert torch.equal(same, latent)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({}, ["no typical mean", "brightness"]),
        ({"priors": "0.1"}, ["expected mean and standard deviation of each of the 2 connected"]),
        ({"priors": "0.1 1, 0 x"}, ["expected mean and standard deviation"]),
        ({"priors": "0.1 1, 0 0"}, ["an sd above 0"]),
        ({"watch_only": (1, 2), "priors": "0 1, 0 1"}, ["none to optimise"]),
        ({"calibrate_on": 8}, ["saturation scored", "two or more finite scores that differ"]),
    ],
)
def test_z_scores_that_cannot_be_are_explained(comfy, settings, words):
    graph = Scoring(comfy)
    reward = graph.combine(graph.reward, graph.saturation(), mode="z-scored", **settings)
    graph.node("DNOScoreImages", images=graph.greys(), reward=reward)
    message = comfy.fail(graph)
    assert all(word in message for word in words), message


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
