"""Hundreds of random workflows on one server: none hangs, each ends with a sentence, and the server stays as it was.

    pytest -m soak          about half an hour on two cores; not part of the tests that everybody runs
"""

import hashlib
import json
import os
import threading
import time
import urllib.error
from collections import Counter
from pathlib import Path

import psutil
import pytest
import websocket
from comfy_server import Graph, make_tiny_rewards
from random_graphs import Generator

pytestmark = pytest.mark.soak

VALID, WRONG = int(os.environ.get("SOAK_VALID", 200)), int(os.environ.get("SOAK_WRONG", 100))
LONGEST = 60.0
"""Seconds after which a graph is interrupted; an extreme number of steps is a valid wish."""
ENDS_WITHIN = 20.0
"""Seconds in which an interruption must take effect."""
BARE = ("KeyError", "IndexError", "AttributeError", "AssertionError", "NameError", "UnboundLocalError", "TypeError")


@pytest.fixture(scope="module")
def server(comfy):
    make_tiny_rewards.write_missing(comfy.folder / "models" / "reward_models")
    return comfy


def stock_latent(server):
    """The bits of a stock KSampler's latent."""
    graph = Graph()
    model = graph.node("DNOLoadEmbeddedModel")
    text = [graph.node("CLIPTextEncode", clip=model[1], text=words)[0] for words in ("black cat", "")]
    latent = graph.node("EmptyLatentImage", width=128, height=128, batch_size=1)
    found = graph.node(
        "KSampler", model=model[0], seed=7, steps=3, cfg=3.0, sampler_name="euler", denoise=1.0,
        scheduler="normal", positive=text[0], negative=text[1], latent_image=latent[0],
    )  # fmt: skip
    graph.keep(f"stock{time.monotonic_ns()}", found[0])
    (tensors,) = server.run(graph).kept.values()
    return hashlib.sha256(tensors["samples"].numpy().tobytes()).hexdigest()


def files_beside(server):
    """Every file that a workflow has no business to write."""
    allowed = ("output", "temp", "user", "__pycache__")
    found = {}
    for root in (server.folder, server.comfyui):
        for path in Path(root).rglob("*"):
            if path.is_file() and not any(part in allowed for part in path.parts) and path.suffix != ".log":
                found[str(path)] = path.stat().st_size
    return found


def told(error):
    """Return what is wrong with an error's text, or ''."""
    kind, text = error["exception_type"].rsplit(".", 1)[-1], error["exception_message"].strip()
    if kind in BARE:
        return f"a bare {kind}: {text[:200]}"
    if len(text) < 15 or " " not in text or "object at 0x" in text or "Traceback" in text:
        return f"no sentence: {kind}: {text[:200]!r}"
    return ""


def run(server, graph, interrupt_after=None):
    """Run a graph; return (how it ended, what is wrong with that, or '')."""
    done, began = threading.Event(), time.monotonic()

    def stop():
        if not done.wait(interrupt_after or LONGEST):
            server.interrupt()

    watcher = threading.Thread(target=stop)
    watcher.start()
    try:
        found = server.run(graph, timeout=LONGEST + ENDS_WITHIN, may_fail=True)
        return found.ended, told(found.error) if found.error else ""
    except ValueError as refused:  # by the server's own validation
        told_why = json.loads(str(refused)).get("error", {}).get("message")
        return "refused", "" if told_why else f"refused without a word: {refused}"
    except (websocket.WebSocketTimeoutException, urllib.error.URLError, TimeoutError) as hang:
        return "hung", f"hangs: {hang} after {time.monotonic() - began:.0f} s"
    finally:
        done.set()
        watcher.join()


def left_alone(server, graph):
    """Queue a graph whose client goes away at once, and wait for its end; return as `run`."""
    try:
        prompt = server.post("/prompt", {"prompt": graph.prompt, "client_id": "gone"})["prompt_id"]
    except ValueError:
        return "refused", ""
    began = time.monotonic()
    while time.monotonic() < began + LONGEST + ENDS_WITHIN:
        if prompt in server.get(f"/history/{prompt}"):
            return "left alone", ""
        if time.monotonic() > began + LONGEST:
            server.interrupt()
        time.sleep(0.1)
    return "hung", "hangs without its client"


def pair(server, first, second):
    """Queue two graphs at once, each of a client of its own; return as `run`."""
    ends = []
    each = [lambda graph=graph: ends.append(run(server, graph)) for graph in (first, second)]
    threads = [threading.Thread(target=one) for one in each]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return "pair", "; ".join(wrong for _, wrong in ends if wrong)


def graphs(generator):
    """Yield (name, graph): valid and wrong ones in turn."""
    makers = [("valid", generator.valid)] * VALID + [("wrong", generator.wrong)] * WRONG
    generator.random.shuffle(makers)
    for number, (name, make) in enumerate(makers):
        yield f"{name} {number}", make()


def idle_size(server):
    """Return the resident memory in bytes and the open files of a server at rest, its models and caches let go."""
    server.post("/free", {"unload_models": True, "free_memory": True})
    time.sleep(5)
    process = psutil.Process(server.process.pid)
    return process.memory_info().rss, process.num_fds()


def soak(server, ends, wrong):
    """Run all graphs, some interrupted, some in pairs, some left alone by their clients; count ends, collect faults."""
    waiting = None
    for number, (name, graph) in enumerate(graphs(Generator(server.get("/object_info"), seed=0))):
        if number % 20 == 7:
            waiting = graph
            continue
        if waiting is not None:
            (end, fault), waiting = pair(server, waiting, graph), None
        elif number % 20 == 11:
            end, fault = left_alone(server, graph)
        else:
            end, fault = run(server, graph, interrupt_after=0.5 if number % 10 == 3 else None)
        ends[f"{name.split()[0]}: {end}"] += 1
        if fault:
            wrong[name] = {"fault": fault, "graph": graph.prompt}
        assert server.process.poll() is None, f"the server died of {name}: {graph.prompt}\n{server.log()[-3000:]}"


def test_no_workflow_hangs_or_ends_without_a_sentence_and_the_server_stays_as_it_was(server):
    """All graphs are run twice: what the first round has left in memory, the second must not add to."""
    bits, files, wrong, ends, sizes = stock_latent(server), files_beside(server), {}, Counter(), []
    for _ in range(2):
        soak(server, ends, wrong)
        sizes.append(idle_size(server))
    report = server.folder / "soak.json"
    report.write_text(json.dumps({"ends": ends, "wrong": wrong, "sizes": sizes}, indent=1))
    print(report.read_text())  # noqa: T201, shown with -s
    assert stock_latent(server) == bits, "stock KSampler gives other bits than before"
    new = {path: size for path, size in files_beside(server).items() if files.get(path) != size}
    assert new.keys() <= {str(report)}, f"written outside of output: {sorted(new)}"
    assert not wrong, "\n".join(f"{name}: {it['fault']}" for name, it in wrong.items()) + f"\n(graphs in {report})"
    assert ends["valid: execution_success"] >= VALID * 2 / 5, f"too few graphs ran through to tell anything: {ends}"
    before, after = sizes
    assert after[0] <= 1.02 * before[0], f"resident memory grew from {before[0]} to {after[0]}"
    assert after[1] <= 1.02 * before[1] + 1, f"open files grew from {before[1]} to {after[1]}"
