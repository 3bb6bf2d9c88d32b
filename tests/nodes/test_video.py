"""Models whose latents have five dimensions, on a real server: their pictures and their videos."""

import pytest
import torch
from comfyui_dno import rewards
from workflows import NoiseWorkflow, error, file_of, history_of, notes_of

PICTURE, VIDEO = 1, 5
"""Frames of a latent; the decoder makes 1 and 17 of them."""


class VideoWorkflow(NoiseWorkflow):
    """A graph with a tiny Wan 2.1 in it."""

    def __init__(self):
        super().__init__("video")

    def frames(self, frames, batch=1, scale=0.0, **settings):
        return self.latent(channels=16, dims=5, size=4, frames=frames, batch=batch, scale=scale, **settings)


@pytest.mark.parametrize("frames", [PICTURE, VIDEO])
@pytest.mark.parametrize("eta, sampler", [(0.0, "euler"), (1.0, "euler_ancestral")])
def test_zero_iterations_equal_ksampler(comfy, record_property, frames, eta, sampler):
    graph = VideoWorkflow()
    latent = graph.frames(frames, batch=2)
    ours = graph.dno(eta=eta, latent=latent)
    graph.keep("ours", ours[0])
    inputs = graph.sampling(latent=latent) | {"sampler_name": sampler}
    if eta == 0:
        stock = graph.node("KSampler", **inputs)
    else:
        stock = graph.node("DNOTestStockSampler", **inputs, eta=eta, noise=ours[2])
    graph.keep("stock", stock[0])
    kept = comfy.run(graph).kept
    found, expected = kept["ours"]["samples"], kept["stock"]["samples"]
    record_property("parity", error(found, expected))
    assert found.shape == (2, 16, frames, 4, 4) and error(found, expected) < 1e-5


@pytest.mark.parametrize("frames", [PICTURE, VIDEO])
def test_the_gradient_is_that_of_differences(comfy, record_property, frames):
    graph = VideoWorkflow()
    graph.witnessed("gradient", cfg=3.0, latent=graph.frames(frames))
    errors = notes_of(comfy.run(graph))["gradient_error"]
    record_property("gradient", errors)
    assert max(errors) < 1e-2, errors


def test_candidates_in_one_call_are_what_they_are_alone(comfy):
    graph = VideoWorkflow()
    graph.witnessed("candidates", differentiates=False, latent=graph.frames(VIDEO, batch=2))
    assert notes_of(comfy.run(graph))["candidates_error"] < 1e-5


def test_a_search_raises_the_mean_reward_of_a_videos_frames_and_its_noise_replays(comfy):
    graph = VideoWorkflow()
    latent = graph.frames(VIDEO)
    ours = graph.dno(iterations=3, solver=graph.gradient(0.1), latent=latent)
    graph.keep("ours", ours[0])
    graph.keep("image", ours[1])
    graph.keep("decoded", graph.node("VAEDecode", samples=ours[0], vae=graph.vae)[0])
    graph.node("DNOTestHistory", history=ours[3])
    save = graph.save(ours[2], "video")
    run = comfy.run(graph)
    rows, frames = history_of(run)["rows"], run.kept["image"]["tensor"]
    assert rows[-1]["score"][0] > rows[0]["score"][0]
    assert frames.shape == (17, 32, 32, 3) and torch.equal(frames, run.kept["decoded"]["tensor"])
    replayed = VideoWorkflow()
    noise = replayed.load(file_of(run, save))
    replayed.keep("latent", replayed.replay(noise, replayed.frames(VIDEO))[0])
    assert error(comfy.run(replayed).kept["latent"]["samples"], run.kept["ours"]["samples"]) < 1e-5


@pytest.mark.parametrize("every", [1, 4])
def test_the_score_is_the_mean_over_each_so_many_frames(comfy, every):
    graph = VideoWorkflow()
    graph.reward = graph.node("DNOContrastReward", negative=False)[0]
    ours = graph.dno(latent=graph.frames(VIDEO), judge_every=every)
    graph.keep("latent", ours[0])
    graph.keep("image", ours[1])
    graph.node("DNOTestHistory", history=ours[3])
    run = comfy.run(graph)
    judged = run.kept["image"]["tensor"][::every].movedim(-1, 1)
    expected = rewards.Contrast()(judged).mean().item()
    assert len(judged) == (17 if every == 1 else 5)
    # What the sampler judges is not clamped; few pixels of this decoder leave [0, 1].
    assert history_of(run)["rows"][0]["score"][0] == pytest.approx(expected, rel=0.02)


def test_a_pictures_empty_latent_becomes_one_frame_as_in_ksampler(comfy):
    graph = VideoWorkflow()
    ours = graph.dno(iterations=1)
    graph.keep("ours", ours[0])
    graph.keep("image", ours[1])
    kept = comfy.run(graph).kept
    assert kept["ours"]["samples"].shape == (2, 16, 1, 8, 8) and kept["image"]["tensor"].shape == (2, 64, 64, 3)


def test_a_video_beside_a_vae_of_pictures_is_refused(comfy):
    graph = VideoWorkflow()
    graph.vae = graph.node("DNOTestModel", family="eps", seed=0, dtype="float32", vae_channels=16)[3]
    graph.keep("latent", graph.dno(latent=graph.frames(VIDEO))[0])
    found = comfy.fail(graph)
    assert "5 frames" in found and "video VAE" in found, found


@pytest.mark.parametrize("kind, words", [("nested", "a video with its sound"), ("sound", "expected (B, C, F, H, W)")])
def test_what_is_no_picture_and_no_video_is_refused(comfy, kind, words):
    graph = VideoWorkflow()
    graph.keep("latent", graph.dno(latent=graph.node("DNOTestOddLatent", kind=kind)[0])[0])
    found = comfy.fail(graph)
    assert words in found, found
