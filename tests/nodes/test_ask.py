"""DNO Ask inside a real ComfyUI: rounds queued one after another, by what is picked in each."""

import re

import pytest
import torch
from comfyui_dno import core
from PIL import Image
from workflows import NoiseWorkflow, error

COUNT = 3


class Asking(NoiseWorkflow):
    def ask(self, picks="", count=COUNT, strength=0.4, seed=3, latent=None, eta=1.0, steps=6, **inputs):
        sampling = self.sampling(latent or self.one(), steps=steps)
        sampling["start_seed"] = seed
        del sampling["seed"]
        return self.node(
            "DNOAsk", **sampling, vae=self.vae, eta=eta, picks=picks, count=count, strength=strength, **inputs
        )

    def one(self):
        return self.node("EmptyLatentImage", width=64, height=64, batch_size=1)[0]


def asked(comfy, picks="", **inputs):
    """Run a round; return its latent, image, noise and sheet, and its text."""
    graph = Asking()
    node = graph.ask(picks, **inputs)
    for place, name in enumerate(("latent", "image", "noise", "sheet")):
        graph.keep(name, node[place])
    run = comfy.run(graph)
    kept = {name: value["tensor"] if set(value) == {"tensor"} else value for name, value in run.kept.items()}
    return kept, run.outputs[node.id]


def tiles(sheet):
    """The pictures of a sheet of three: two in the first row and one below, each of 64 pixels made 256 wide."""
    gap, side, caption = 6, 256, 17
    places = [(gap, gap), (2 * gap + side, gap), (gap, 2 * gap + side + caption)]
    return [sheet[:, y : y + side, x : x + side] for x, y in places]


def test_three_rounds_lead_from_the_first_picture_to_the_picked_ones(comfy):
    graph = NoiseWorkflow()
    graph.keep("latent", graph.dno(latent=graph.node("EmptyLatentImage", width=64, height=64, batch_size=1)[0])[0])
    plain = comfy.run(graph).kept["latent"]["samples"]
    first, said = asked(comfy)
    assert error(first["latent"]["samples"], plain) < 1e-5, "the first picture is that of the seed"
    assert said["text"][0].startswith("Round 1; picked so far: nothing.")
    shown, picks = first, []
    for picked in (2, 1):
        picks.append(picked)
        following, said = asked(comfy, ", ".join(map(str, picks)))
        # 8 bits, and the rounding of another batch.
        torch.testing.assert_close(tiles(following["sheet"])[0], tiles(shown["sheet"])[picked], rtol=0, atol=2 / 255)
        assert error(following["latent"]["samples"], shown["latent"]["samples"]) > 0.05
        shown = following
    assert said["text"][0].startswith("Round 3; picked so far: 2, 1.")
    noise = core.Noise(**{name: shown["noise"][name] for name in ("initial", "injected")})
    assert 0.9 < noise.norm().item() / noise.flat().numel() ** 0.5 < 1.1


def test_the_node_shows_the_numbered_sheet(comfy):
    kept, said = asked(comfy)
    (file,) = said["images"]
    picture = Image.open(comfy.folder / file["type"] / file["subfolder"] / file["filename"])
    assert picture.size == (530, 564) and kept["sheet"].shape == (1, 564, 530, 3)
    below = kept["sheet"][0, 6 + 256 : 6 + 256 + 17, 6 : 6 + 256]
    assert below.min() < 0.3 < 0.9 < below.max(), "a caption, dark on white"


def test_several_picks_and_kept_ones_are_taken(comfy):
    both, said = asked(comfy, "1+2, 0")
    assert "Round 3; picked so far: 1+2, 0." in said["text"][0]
    assert error(both["latent"]["samples"], asked(comfy, "1, 0")[0]["latent"]["samples"]) > 0.05


def test_a_saved_noise_goes_on_and_a_search_takes_it(comfy):
    whole, _ = asked(comfy, "2, 1, 1")
    graph = Asking()
    file = graph.saved(comfy, graph.ask("2, 1")[2], "asked")
    graph = Asking()
    node = graph.ask("1", start_noise=graph.load(file))
    graph.keep("latent", node[0])
    searched = graph.dno(latent=graph.one(), iterations=1, solver=graph.gradient(), start_noise=node[2])
    graph.keep("searched", searched[0])
    run = comfy.run(graph)
    assert error(run.kept["latent"]["samples"], whole["latent"]["samples"]) < 1e-5
    assert "Round 4; picked so far: 2, 1, 1." in run.outputs[node.id]["text"][0]
    assert error(run.kept["searched"]["samples"], whole["latent"]["samples"]) > 1e-3


def test_the_noise_replays_to_the_picture_by_the_stock_sampler(comfy):
    graph = Asking()
    node = graph.ask("2")
    graph.keep("latent", node[0])
    graph.keep("replayed", graph.replay(node[2], graph.one())[0])
    kept = comfy.run(graph).kept
    assert error(kept["replayed"]["samples"], kept["latent"]["samples"]) < 1e-5


def test_what_a_mask_keeps_stays_in_every_picture(comfy):
    graph = Asking()
    latent = graph.latent(batch=1, mask="half")
    graph.keep("given", latent)
    graph.keep("latent", graph.ask("2", latent=latent)[0])
    kept = comfy.run(graph).kept
    mask = kept["given"]["noise_mask"]
    mask = torch.nn.functional.interpolate(mask.view(1, 1, *mask.shape[-2:]).float(), size=(8, 8))
    still = (kept["latent"]["samples"] - kept["given"]["samples"]) * (mask == 0)
    assert still.abs().max() < 1e-4 < (kept["latent"]["samples"] - kept["given"]["samples"]).abs().max()


@pytest.mark.parametrize("picks, message", [("2; 0", "the picks are '2; 0'; expected a number"), ("two", "the picks")])
def test_picks_that_are_no_numbers_are_refused_before_anything_runs(comfy, picks, message):
    graph = Asking()
    graph.ask(picks)
    with pytest.raises(ValueError, match=re.escape(message)):
        comfy.run(graph)


def test_picks_of_pictures_that_were_not_shown_and_batches_are_refused(comfy):
    graph = Asking()
    graph.ask("3")
    assert "the answer is [3]; expected the number of the picture that is liked best, from 0 to 2" in comfy.fail(graph)
    graph = Asking()
    graph.ask(latent=graph.latent(batch=2))
    assert "expected one, which is varied: set the batch size to 1" in comfy.fail(graph)
