"""The report nodes inside a real ComfyUI: curves, contact sheets, and why a search stopped."""

from workflows import NoiseWorkflow, Workflow


def test_diagnostics_say_why_it_stopped_and_need_to_be_asked_for(comfy):
    graph = NoiseWorkflow()
    ours = graph.dno(iterations=1, diagnose=True, steps=3)
    told = graph.node("DNODiagnostics", history=ours[3])
    graph.keep("image", told[1])
    run = comfy.run(graph)
    (text,) = run.outputs[told.id]["text"]
    assert "picture 0: still improving" in text and "brightness" in text
    assert run.kept["image"]["tensor"].ndim == 4
    graph = NoiseWorkflow()
    graph.keep("image", graph.node("DNODiagnostics", history=graph.dno()[3])[1])
    assert "switch on `diagnose`" in comfy.fail(graph)


def test_a_picture_outside_the_batch_is_refused(comfy):
    graph = Workflow()
    ours = graph.dno(iterations=1)
    graph.keep("image", graph.node("DNOTrajectory", history=ours[3], picture=2, count=4)[0])
    found = comfy.fail(graph)
    assert "picture is 2" in found and "expected 0 .. 1" in found
