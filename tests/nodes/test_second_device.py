"""The nodes on a second device, in a real ComfyUI in a process of its own: they find what they find on the CPU."""

import pytest
from comfy_server import report_of

PLACES = ["all on the device", "VAE on the CPU"]


@pytest.fixture(scope="module")
def report(pretend):
    return report_of("second_device_in_comfyui.py")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("solver", ["gradient", "zeno", "search"])
def test_a_search_on_the_device_finds_what_it_finds_on_the_cpu(report, solver, place):
    """Up to the rounding of sums in another order, which two iterations of Adam take further: 2e-5 was measured."""
    found = report[f"{solver}, {place}"]
    assert found["operations"] > 1000 and found["error"] < 2e-4 and found["warnings"] == []


@pytest.mark.parametrize("place", PLACES)
def test_both_samplers_leave_their_latent_where_stock_nodes_leave_theirs(report, place):
    assert report[f"gradient, {place}"]["device"] == report[f"advanced, {place}"]["device"] == "cpu"


@pytest.mark.parametrize("place", PLACES)
def test_a_search_is_diagnosed_wherever_the_vae_is(report, place):
    assert report[f"diagnosis, {place}"]["warnings"] == []
