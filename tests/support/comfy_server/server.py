"""One ComfyUI server process and a client that queues workflows over HTTP and listens on the websocket."""

import importlib.util
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import websocket
from PIL import Image
from safetensors.torch import load_file

PACK = Path(__file__).resolve().parents[3]
TEXT_EVENT = 3  # BinaryEventTypes.TEXT
PREVIEW_EVENTS = (1, 4)  # BinaryEventTypes.PREVIEW_IMAGE and PREVIEW_IMAGE_WITH_METADATA
LAST_MESSAGES = ("execution_success", "execution_error", "execution_interrupted")


@dataclass
class Run:
    """What one queued workflow did.

    Attributes:
        messages: (type, data, time) of every message, in order; previews have the type "preview" and a "picture",
            texts on nodes the type "text".
        outputs: node id -> the node's ui output.
        kept: key -> {name: tensor}, of the graph's `keep` nodes.
        error: the data of the `execution_error` message, None if it ran through.
    """

    messages: list = field(default_factory=list)
    outputs: dict = field(default_factory=dict)
    kept: dict = field(default_factory=dict)
    error: dict | None = None

    @property
    def ended(self) -> str:
        return self.messages[-1][0]

    def of_type(self, message_type: str) -> list:
        return [data for kind, data, _ in self.messages if kind == message_type]


def own_reward() -> str:
    """The node of a reward of one's own, as the documentation has it."""
    blocks = (PACK / "docs" / "reward-models.md").read_text().split("```python\n")[1:]
    (node,) = (block.split("```")[0] for block in blocks if "NODE_CLASS_MAPPINGS" in block)
    return node


class ComfyServer:
    """A running ComfyUI with this pack and the test nodes; stop it with `stop()`."""

    def __init__(self, comfyui: Path, folder: Path):
        folder.mkdir(exist_ok=True)
        self.comfyui, self.folder = comfyui, folder
        self.url = f"127.0.0.1:{_free_port()}"
        self.log_path = folder / "server.log"
        self._link_packs()
        self.process = self._start()
        self._wait_until_up()

    def _link_packs(self):
        packs = self.folder / "custom_nodes"
        packs.mkdir(parents=True)
        (packs / PACK.name).symlink_to(PACK, target_is_directory=True)
        (packs / "dno_test_nodes").symlink_to(Path(__file__).parent / "test_nodes", target_is_directory=True)
        (packs / "redness.py").write_text(own_reward())

    def _start(self) -> subprocess.Popen:
        options = ["--cpu", "--disable-auto-launch", "--disable-api-nodes", "--port", self.url.split(":")[1]]
        options += ["--base-directory", str(self.folder), "--database-url", "sqlite:///:memory:"]
        if not has_front_end():
            page = self.folder / "front_end"
            page.mkdir()
            (page / "index.html").write_text("<title>no front end installed</title>")
            options += ["--front-end-root", str(page)]
        # Tiny networks are many times slower on several contending threads.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
        with open(self.log_path, "w") as log:
            command = [sys.executable, "main.py", *options]
            return subprocess.Popen(command, cwd=self.comfyui, stdout=log, stderr=subprocess.STDOUT, env=environment)

    def _wait_until_up(self, seconds: float = 180.0):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                code = self.process.returncode
                raise RuntimeError(f"ComfyUI stopped at start-up with code {code}:\n{self.log()[-4000:]}")
            try:
                self.get("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.2)
        self.stop()
        raise TimeoutError(f"ComfyUI did not answer within {seconds:.0f} s:\n{self.log()[-4000:]}")

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def get(self, path: str):
        with urllib.request.urlopen(f"http://{self.url}{path}", timeout=30) as answer:
            body = answer.read()
        return json.loads(body) if "json" in answer.headers.get("Content-Type", "") else body

    def post(self, path: str, data: dict | None = None):
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://{self.url}{path}", json.dumps(data or {}).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                body = answer.read()
        except urllib.error.HTTPError as error:
            # ComfyUI says in the body which input of which node it refuses.
            raise ValueError(error.read().decode()) from None
        return json.loads(body) if body.strip() else None

    @property
    def version(self) -> tuple:
        """ComfyUI's version, e.g. (0, 3, 75)."""
        text = self.get("/system_stats")["system"]["comfyui_version"]
        return tuple(int(number) for number in text.split("."))

    def interrupt(self):
        self.post("/interrupt")

    def run(
        self, graph, timeout: float = 120.0, on_message=None, may_fail: bool = False, extra_pnginfo: dict | None = None
    ) -> Run:
        """Queue an API-format workflow (a `Graph` or a dict) and wait for its end.

        Args:
            on_message: called with (run, type, data) for each message, for tests that act while it runs.
            extra_pnginfo: what a browser sends along for Save Image to keep.
            may_fail: return a run whose node raised, with `run.error`, instead of raising.

        Raises:
            ValueError: the server's validation refused the workflow; the message is its answer.
            RuntimeError: a node raised; the message is its traceback in the server.
        """
        prompt = getattr(graph, "prompt", graph)
        client = uuid.uuid4().hex
        run = Run()
        connection = websocket.create_connection(f"ws://{self.url}/ws?clientId={client}", timeout=timeout)
        try:
            extra = {"extra_pnginfo": extra_pnginfo}
            answer = self.post("/prompt", {"prompt": prompt, "client_id": client, "extra_data": extra})
            self._listen(run, connection, answer["prompt_id"], on_message)
        finally:
            connection.close()
        if run.error and not may_fail:
            raise RuntimeError("".join(run.error["traceback"]) + run.error["exception_message"])
        return run

    def fail(self, graph) -> str:
        """Queue a workflow that must fail in a node, and return the message the user reads."""
        run = self.run(graph, may_fail=True)
        assert run.error is not None, "the workflow ran through, but it should have failed"
        return run.error["exception_message"]

    def _listen(self, run: Run, connection, prompt_id: str, on_message):
        while not run.messages or run.ended not in LAST_MESSAGES:
            raw = connection.recv()
            if isinstance(raw, bytes):
                event, rest = int.from_bytes(raw[:4], "big"), raw[4:]
                if event == TEXT_EVENT:
                    size = int.from_bytes(rest[:4], "big")
                    kind, data = "text", {"node": rest[4 : 4 + size].decode(), "text": rest[4 + size :].decode()}
                elif event in PREVIEW_EVENTS:
                    kind, data = "preview", {"picture": _picture(event, rest)}
                else:
                    continue
            else:
                message = json.loads(raw)
                kind, data = message["type"], message.get("data", {})
                if data.get("prompt_id", prompt_id) != prompt_id:
                    continue
            run.messages.append((kind, data, time.monotonic()))
            self._take(run, kind, data)
            if on_message is not None:
                on_message(run, kind, data)

    def _take(self, run: Run, kind: str, data: dict | None):
        if kind == "execution_error":
            run.error = data
        if kind == "executed" and data.get("output"):
            run.outputs[data["node"]] = data["output"]
            for key, file in data["output"].get("kept", []):
                run.kept[key] = load_file(self.folder / "output" / file)


def has_front_end() -> bool:
    """Whether ComfyUI's front end is installed; without it the server gets an empty page."""
    return importlib.util.find_spec("comfyui_frontend_package") is not None


def _picture(event: int, rest: bytes) -> Image.Image:
    """Return the picture of a preview message, which has its kind or its metadata in front."""
    skipped = 4 + int.from_bytes(rest[:4], "big") if event == PREVIEW_EVENTS[1] else 4
    return Image.open(io.BytesIO(rest[skipped:])).convert("RGB")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
