"""Latents of five dimensions: one frame of a video is a picture, several are judged frame by frame."""

import math

import pytest
import torch
from comfyui_dno import core, rewards
from comfyui_dno.core.scoring import exact, part_scores, score
from tiny_models import SIGMAS, sample_map

SOLVERS = {
    "gradient": core.GradientAscent(lr=0.1),
    "hybrid-1": core.GradientAscent(lr=0.1, estimator=core.Hybrid1()),
    "hybrid-2": core.GradientAscent(lr=0.1, estimator=core.Hybrid2()),
    "zo-sgd": core.GradientAscent(lr=0.1, estimator=core.ZerothOrder()),
    "zeno": core.ZeNO(candidates=8),
    "search": core.Search(candidates=8),
    "lgd": core.LGD(samples=2, scale=5.0, seed=1),
    "tilt": core.Tilt(),
    "trust": core.TrustAscent(),
}


def contrast(images, prompts):
    """A reward that is not linear, so that a mean over frames is not a reward of the mean frame."""
    return images.flatten(1).var(dim=1)


def videos(batch=2, frames=3):
    return torch.rand((batch, frames, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def video_map(frames=3, seed=0):
    """A SampleMap of a random three-dimensional convolution, each picture's neighbours in time with it."""
    generator = torch.Generator().manual_seed(seed)
    inner = torch.randn((2, 2, 3, 3, 3), generator=generator, dtype=torch.float64) / 5
    outer = torch.randn((3, 2, 3, 3, 3), generator=generator, dtype=torch.float64) / 5

    def denoise(x, sigma):
        return torch.tanh(torch.nn.functional.conv3d(x / (1 + sigma.view(-1, 1, 1, 1, 1)), inner.to(x), padding=1))

    def decode(latent):
        return torch.sigmoid(torch.nn.functional.conv3d(latent, outer.to(latent), padding=1)).movedim(2, 1)

    return core.SampleMap(denoise, core.Schedule(SIGMAS["vp"]), (2, 2, frames, 5, 5), decode=decode)


def test_a_video_scores_the_mean_of_its_frames():
    images = videos()
    expected = torch.stack([images[:, frame].flatten(1).var(dim=1) for frame in range(3)]).mean(dim=0)
    torch.testing.assert_close(score(contrast, images), expected)
    torch.testing.assert_close(exact(contrast, images)[0], expected)


def test_each_frame_has_its_share_of_the_gradient():
    images = videos().requires_grad_()
    images.flatten(2).var(dim=2).mean(dim=1).sum().backward()
    torch.testing.assert_close(exact(contrast, images)[1], images.grad)


def test_a_frame_that_is_not_finite_breaks_its_own_video_alone():
    images = videos()
    images[1, 2, 0, 0, 0] = math.nan
    scores, d_images = exact(contrast, images)
    assert scores.isfinite().tolist() == score(contrast, images).isfinite().tolist() == [True, False]
    assert d_images[0].abs().sum() > 0 and not d_images[1].any()


def test_prompts_are_those_of_the_videos():
    def named(images, prompts):
        return torch.tensor([float(len(prompt)) for prompt in prompts])

    assert score(named, videos(), ["cat", "horse"]).tolist() == [3.0, 5.0]


def test_parts_of_a_reward_are_means_over_the_frames_too():
    images, reward = videos(), rewards.Combine([contrast, rewards.Brightness()], [1.0, 0.5])
    parts = part_scores(reward, images)
    torch.testing.assert_close(parts["contrast"], score(contrast, images))
    torch.testing.assert_close(score(reward, images), parts["contrast"] + 0.5 * parts["brightness"])


@pytest.mark.parametrize("keep_graphs", [False, True])
def test_the_gradient_of_a_video_is_that_of_differences(keep_graphs):
    noise_map = video_map()
    noise_map.keep_graphs = keep_graphs
    problem = core.Problem(noise_map, contrast)
    errors = problem.check_gradient(noise_map.randn(0).to(torch.float64), step=1e-3)
    assert (errors < 1e-5).all()  # 3e-7 was measured, of differences of the third order


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_raises_the_mean_reward_of_the_frames(name):
    noise_map = video_map()
    noise = noise_map.randn(0).to(torch.float64)
    result = core.optimize(noise_map, contrast, noise, SOLVERS[name], iterations=1 if name == "lgd" else 12)
    rows = result.history.rows[0], result.history.best_row
    before, after = (torch.tensor(row["score"], dtype=torch.float64) for row in rows)
    assert (after > before).all() and result.history.warnings == []
    torch.testing.assert_close(score(contrast, noise_map.sample(result.noise)), after, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ["gradient", "lgd"])
def test_one_frame_of_a_video_model_is_searched_as_the_picture_it_is(name):
    flat = sample_map("flow", batch=2)
    deep = core.SampleMap(
        lambda x, sigma: flat.denoise(x[:, :, 0], sigma)[:, :, None], flat.schedule, (2, 3, 1, 6, 6), flat.eta,
        decode=lambda latent: flat.decode(latent[:, :, 0]),
    )  # fmt: skip
    picture, frame = (
        core.optimize(each, contrast, each.randn(0).to(torch.float64), SOLVERS[name], iterations=1)
        for each in (flat, deep)
    )
    torch.testing.assert_close(frame.noise.flat(), picture.noise.flat(), rtol=0, atol=1e-12)
    assert frame.latent.shape == (2, 3, 1, 6, 6) and frame.images.shape == picture.images.shape == (2, 3, 12, 12)


def test_the_history_keeps_the_middle_frame():
    noise_map = video_map()
    result = core.optimize(noise_map, contrast, noise_map.randn(0), iterations=1)
    middle = (result.images[:, 1].clamp(0, 1) * 255).round().to(torch.uint8)
    assert torch.equal(result.history.best_picture, middle)


def test_a_videos_noise_is_saved_and_sampled_again(tmp_path):
    noise_map = video_map()
    found = core.optimize(noise_map, contrast, noise_map.randn(0), core.Search(candidates=2), iterations=2)
    found.noise.save(tmp_path / "noise.safetensors")
    torch.testing.assert_close(noise_map.sample(core.Noise.load(tmp_path / "noise.safetensors")), found.images)
