"""The report of a search: one file that shows all of it, and repeats it."""

import base64
import html.parser
import io
import re
import shlex

import pytest
from comfyui_dno import core
from comfyui_dno.__main__ import main
from comfyui_dno.cli import report
from comfyui_dno.cli.report import findings, table
from PIL import Image

RUN = "run --reward darkness --iterations 1 --steps 4 --seed 5 --report".split()


class Page(html.parser.HTMLParser):
    """The pictures, the text and the addresses of a page."""

    def __init__(self, text):
        super().__init__()
        self.pictures, self.words, self.addresses = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "img":
            self.pictures.append(attributes["src"])
        self.addresses += [value for name, value in attributes.items() if name in ("href", "src")]

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "out"
    command = [*RUN, "--prompt", "red owl", "--batch", "2", "--out", str(folder)]
    assert main(command) == 0
    return folder, command, (folder / "report.html").read_text()


def test_a_report_needs_no_other_file(written):
    page = Page(written[2])
    assert page.addresses == page.pictures and all(each.startswith("data:image/png;base64,") for each in page.pictures)
    sizes = [Image.open(io.BytesIO(base64.b64decode(each.split(",")[1]))).size for each in page.pictures]
    assert len(sizes) == 4 and all(width >= 256 for width, _ in sizes)  # start and best, curves, two ways


def test_a_report_holds_what_was_found_and_the_command_that_repeats_it(written, tmp_path):
    folder, command, text = written
    page = Page(text)
    record = core.Noise.load(folder / "noise.safetensors")
    (repeat,) = (words for words in page.words if words.startswith("dno run"))
    assert shlex.split(repeat)[1:] == command
    again = [*command[:-1], str(tmp_path / "again")]
    assert main(again) == 0
    assert core.Noise.load(tmp_path / "again" / "noise.safetensors").flat().equal(record.flat())
    assert "1 iteration done" in text and "prompt" in page.words and "red owl" in page.words


def test_a_prompt_is_no_part_of_the_page(tmp_path, monkeypatch):
    result = core.Result(None, None, None, core.History("<b>bright</b>"))
    history = result.history
    row = {"iteration": 0, "seconds": 0.0, "score": [0.5], "log_p": [-1.0], "log_p_initial": [-2.0]}
    history.rows, history.best, history.best_row = [row], [0], {**row, "iteration": [0]}
    assert findings(history)[1] == ["0", "0.500", "0.500", "0.14", "iteration 0"]
    for name in ("before_after", "curves", "trajectory"):
        monkeypatch.setattr(report.plots, name, lambda *args: Image.new("RGB", (8, 8)))
    history.settings["prompt"] = "<script>alert(1)</script>"
    text = report.page(result, ["dno", "run", "--prompt", "<script>alert(1)</script>"])
    assert "<script" not in text and "<b>bright" not in text


def test_the_console_gets_the_same_as_a_table(capsys, tmp_path):
    assert main([*RUN[:-1], "--prompt", "red owl", "--batch", "2", "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    (head,) = (index for index, line in enumerate(lines) if line.startswith("picture  "))
    assert re.split(r"  +", lines[head])[:3] == ["picture", "blackness: start", "best"]
    assert [line[0] for line in lines[head + 1 : head + 3]] == ["0", "1"] and not (tmp_path / "report.html").exists()


def test_columns_are_aligned():
    assert table([["a", "long name"], ["12345", "x"]]) == "a      long name\n12345  x"
