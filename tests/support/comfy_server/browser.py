"""ComfyUI's front end in a real browser."""

import contextlib
import shutil

from playwright.sync_api import sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
READY = """() => window.LiteGraph?.registered_node_types?.DNOSampler
    && window.app?.extensionManager?.workflow?.activeWorkflow"""
"""The nodes are known, and the workflow is open that the page begins with: a test's own would be replaced by it."""


def find_chromium() -> str:
    """Return the path of an installed Chromium.

    Raises:
        FileNotFoundError: there is none on PATH.
    """
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        raise FileNotFoundError(f"no browser on PATH, looked for {', '.join(NAMES)}; apt-get install chromium")
    return found


@contextlib.contextmanager
def front_end(server, locale="en"):
    """Yield a page in which ComfyUI's app has loaded, in a language, and knows this pack's nodes."""
    server.post("/settings", {"Comfy.TutorialCompleted": True, "Comfy.Locale": locale})
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        try:
            page = browser.new_page(viewport={"width": 1700, "height": 1000})
            page.set_default_timeout(120_000)  # a loaded machine takes its time
            page.goto(f"http://{server.url}/", timeout=120_000, wait_until="domcontentloaded")
            page.wait_for_function(READY, timeout=120_000)
            yield page
        finally:
            browser.close()
