"""What guides LGD and Tilt: the gradient of one step's promise, which pictures it is of, and what it says when lost."""

import pytest
import torch
from comfyui_dno import core
from comfyui_dno.core.guided import guidance
from tiny_models import decode, sample_map


def begun(**settings):
    """Return a map of two pictures and its first sample."""
    made = sample_map(**settings)
    return made, made.start(made.randn(0).to(torch.float64).initial)


def test_what_is_judged_is_the_picture_of_the_denoised_and_what_is_added_and_has_no_graph():
    made, x = begun()
    around = torch.linspace(-1, 2, 3, dtype=torch.float64).view(3, 1, 1, 1, 1).expand(3, *x.shape)
    seen = []

    def by_images(images):
        seen.append(images)
        return torch.ones_like(images)

    denoised, _ = guidance(made, x, 0, by_images, around)
    expected = torch.cat([decode(denoised + each) for each in (-1.0, 0.5, 2.0)])
    assert not seen[-1].requires_grad and not denoised.requires_grad
    torch.testing.assert_close(seen[-1], expected)


def test_pictures_are_of_the_latent_that_the_map_makes_of_a_sample():
    """As a model does whose samples are packed or scaled otherwise than its decoder's latents."""
    made, x = begun()
    _, plain = guidance(made, x, 0, torch.ones_like)
    made.to_latent = lambda sample: 0.5 * sample
    made.decode = lambda latent: decode(2 * latent)
    _, halved = guidance(made, x, 0, torch.ones_like)
    torch.testing.assert_close(halved, plain)


@pytest.mark.parametrize("lost, stage", [("denoise", r"model \(step 2 of 4\)"), ("decode", "decoder")])
def test_a_stage_that_has_lost_its_gradient_is_named(lost, stage):
    made, x = begun()
    whole = getattr(made, lost)
    setattr(made, lost, lambda *given: whole(*given).detach())
    with pytest.raises(RuntimeError, match=f"the {stage} gave a result without gradient"):
        guidance(made, x, 1, torch.ones_like)


@pytest.mark.parametrize("solver", [core.LGD(samples=2), core.Tilt()])
def test_solvers_say_so_too(solver):
    made, _ = begun()
    made.decode = lambda latent: decode(latent).detach()
    with pytest.raises(RuntimeError, match="gave a result without gradient"):
        core.optimize(made, lambda images, prompts=None: images.mean(dim=(1, 2, 3)),
                      made.randn(0).to(torch.float64), solver, iterations=1)  # fmt: skip
