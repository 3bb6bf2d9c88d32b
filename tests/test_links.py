"""Every link and picture of the documentation leads somewhere, in the repository and in the published pack."""

import re
import subprocess
from collections import Counter
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "core" / "models" / "embedded" / "training" / "report" / "report.md"
PAGES = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", REPORT]
PAGES += [*sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "web" / "docs").glob("*.md"))]


def prose(page):
    """Return a page without its blocks of code."""
    return re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def links(text):
    """Return the targets of all links and pictures in Markdown or in HTML."""
    return re.findall(r"\]\(([^)\s]+)[^)]*\)", text) + re.findall(r"""(?:src|href)=["']([^"']+)""", text)


def anchors(text):
    """Return what GitHub calls a page's headings in links: a second heading of one name has -1 behind it."""
    headings = re.findall(r"^#{1,6} +(.+?) *#*$", text, flags=re.MULTILINE)
    names = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    counts = Counter()
    found = []
    for name in names:
        found.append(f"{name}-{counts[name]}" if counts[name] else name)
        counts[name] += 1
    return found


def broken(page):
    """Return the links of a page that lead nowhere inside the repository."""
    found = []
    for link in links(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / unquote(name) if name else page
        if not target.exists() or (anchor and anchor not in anchors(prose(target))):
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_of_a_page_lead_somewhere(page):
    assert broken(page) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path):
    (tmp_path / "other.md").write_text("# One: `two`\n\n## Same\n\n## Same\n")
    page = tmp_path / "page.md"
    page.write_text(
        "# Here\n[a](#here) [b](other.md#one-two) [c](other.md#same-1) ![d](none.png) [e](other.md#three)\n"
        '[f](https://example.org/none.md) [g](none.md#here "title") <img src="none.jpg">\n'
        "```\n# Code\n[h](code.md)\n```\n"
        "[i](#code)\n"
    )
    assert set(broken(page)) == {"none.png", "other.md#three", "none.md#here", "none.jpg", "#code"}


def test_every_page_of_the_docs_is_reached_from_the_readme():
    reached = {(ROOT / link.partition("#")[0]).resolve() for link in links(prose(ROOT / "README.md"))}
    assert {page.resolve() for page in (ROOT / "docs").glob("*.md")} <= reached


def test_the_published_pack_keeps_the_pictures_of_its_readme():
    """It holds what git knows but for what .comfyignore names, in git's own notation."""
    command = ["git", "ls-files", "--cached", "--others", "--ignored", "--exclude-from=.comfyignore"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is not a checkout of git")
    left_out = set(listed.stdout.split("\n"))
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    assert pictures and not left_out & set(pictures)
    assert {"docs/python.md", "tests/test_links.py", "experiments/ring.py"} <= left_out
    assert {".ci/run", ".github/workflows/tests.yml"} <= left_out
    kept = ("nodes/", "rewards/", "web/", "locales/", "example_workflows/")
    assert not [name for name in left_out if name.startswith(kept)]
