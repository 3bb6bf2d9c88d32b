"""Pictures of a run: the right pictures in the right places, at the right size."""

import numpy as np
import pytest
import torch
from comfyui_dno import core
from comfyui_dno.core import plots
from PIL import Image
from tiny_models import sample_map


def history_of(iterations=10, **settings):
    noise_map = sample_map()

    def brightness(images, prompts):
        return images.mean(dim=(1, 2, 3))

    noise = noise_map.randn(0).to(torch.float64)
    solver = core.GradientAscent(lr=0.3)
    result = core.optimize(noise_map, brightness, noise, solver, iterations=iterations, watch=(brightness,), **settings)
    return result.history


def flat(color, size=(8, 8)):
    return Image.new("RGB", size, color)


def test_pictures_have_the_images_values_clamped():
    images = torch.tensor([-0.5, 0.0, 0.5, 1.5]).view(1, 1, 1, 4).expand(2, 3, 2, 4)
    pictures = plots.to_pictures(images)
    assert len(pictures) == 2 and pictures[0].size == (4, 2)
    assert np.asarray(pictures[1])[0, :, 0].tolist() == [0, 0, 128, 255]


def test_a_contact_sheet_has_each_picture_in_its_place():
    colors = ["red", "lime", "blue", "black", "yellow"]
    sheet = plots.contact_sheet([flat(color) for color in colors], columns=3, size=20)
    assert sheet.size == (3 * 26 + 6, 2 * 26 + 6)
    for index, color in enumerate(colors):
        middle = (6 + 26 * (index % 3) + 10, 6 + 26 * (index // 3) + 10)
        assert sheet.getpixel(middle) == flat(color).getpixel((0, 0))


def test_captions_get_room_below_their_pictures():
    bare = plots.contact_sheet([flat("red")], size=100)
    captioned = plots.contact_sheet([flat("red")], ["one\ntwo"], size=100)
    assert captioned.height == bare.height + 34
    below = np.asarray(captioned)[110:, :, :]
    assert (below < 128).any() and not (np.asarray(bare)[107:] < 128).any()


def test_a_contact_sheet_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one picture"):
        plots.contact_sheet([])


@pytest.mark.parametrize("iterations, count", [(10, 8), (3, 8), (0, 8), (40, 5)])
def test_a_trajectory_holds_the_first_the_best_and_the_last(iterations, count):
    history = history_of(iterations, floor=0.0)
    for best in {0, iterations // 3, iterations}:
        history.best = [best, best]
        history.pictures = [torch.full((2, 3, 4, 4), 5 * i, dtype=torch.uint8) for i in range(iterations + 1)]
        history.best_picture = history.pictures[best]
        sheet = plots.trajectory(history, item=1, count=count, size=20)
        shown = [sheet.getpixel((x, 16))[0] for x in range(16, sheet.width, 26)]
        shown = [value // 5 for value in shown if value != 255]
        assert {0, best, iterations} <= set(shown) and shown == sorted(set(shown))
        assert len(shown) == min(count, iterations + 1)


def test_curves_draw_every_arm_and_grow_with_the_panels():
    free, kept = history_of(floor=0.0), history_of(regularizer=core.ProbabilityRegularizer())
    single = plots.curves(kept)
    both = plots.curves({"without": free, "with": kept})
    assert single.size == both.size and single.width > 1000
    assert np.abs(np.asarray(both, dtype=int) - np.asarray(single, dtype=int)).sum() > 10000
    free.rows = [{k: v for k, v in row.items() if not k.startswith("watch/")} for row in free.rows]
    assert plots.curves(free).width < single.width


@pytest.mark.parametrize("log_p, text", [(0.0, "1.00"), (-1.0, "0.37"), (-53.0, "1e-23")])
def test_probabilities_are_written_short(log_p, text):
    assert plots.probability(log_p) == text


def test_the_shell_picture_marks_where_noise_is_too_loud():
    noise = core.Noise.randn((1, 4, 16, 16), injected=3, seed=0)
    loud = noise.initial.clone()
    loud[..., :8, :8] *= 3
    pictures = [plots.shell(core.Noise(initial, noise.injected)) for initial in (noise.initial, loud)]
    assert pictures[0].size == pictures[1].size
    # Strong red is what no true noise has in the map of local energy, the third of four panels.
    panels = [np.asarray(picture)[60:300, 840:1100].astype(int) for picture in pictures]
    red = [((panel[..., 0] > 90) & (panel[..., 1] < 40) & (panel[..., 2] < 60)).sum() for panel in panels]
    assert red[1] > red[0] + 500


def test_the_diagnosis_picture_names_each_pictures_type():
    values = torch.tensor([1.0, 0.01])
    found = core.Diagnosis(values, values, values, values, values, values, None, ["none", "I"])
    assert plots.diagnosis(found).size[0] > plots.diagnosis(found).size[1]
