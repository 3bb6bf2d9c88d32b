"""The Consistency Reward inside a real ComfyUI."""

from workflows import Workflow


def test_a_prompt_without_an_animal_is_refused_before_sampling(comfy):
    graph = Workflow()
    graph.reward = graph.node("DNOConsistencyReward", prompt="a fast car")[0]
    graph.keep("latent", graph.dno()[0])
    found = comfy.fail(graph)
    assert "animal" in found and "cat" in found, found
