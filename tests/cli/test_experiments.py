"""`dno experiments`: what it runs, what it refuses, and the report that it leaves."""

import csv
import re
import sys
import zipfile
from dataclasses import replace

import pytest
import toy_experiments
from comfyui_dno.__main__ import main
from comfyui_dno.experiments import all_experiments
from PIL import Image


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    """Two experiments that cost nothing, in place of the papers'."""
    monkeypatch.setattr(all_experiments, "ALL", {"toy": toy_experiments.TOY, "flawed": toy_experiments.FLAWED})


def command(out, *words):
    return main(["experiments", *words, "--processes", "1", "--out", str(out)])


def test_the_report_has_a_verdict_for_every_claim_and_the_pictures_beside_it(tmp_path, capsys):
    assert command(tmp_path, "toy", "--seeds", "3") == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        "cases", "cases.zip", "report.md", "report.html", "verdicts.csv", "toy.csv", "toy.png", "toy_pictures.jpg",
    }  # fmt: skip
    text, page = (tmp_path / "report.md").read_text(), (tmp_path / "report.html").read_text()
    for told in ("Is high more than low?", "No model.", "Figure 0: high is more than low.", "does not hold", "3 seeds"):
        assert told in text and told in page
    assert "low \\| more" in text, "a bar would end the cell of a Markdown table"
    for file in re.findall(r'src="([^"]+)"', page) + re.findall(r"\]\(([^)]+)\)", text):
        with Image.open(tmp_path / file) as picture:
            assert picture.width > 100
    rows = list(csv.DictReader((tmp_path / "verdicts.csv").open()))
    assert [row["verdict"] for row in rows] == ["holds", "does not hold"]
    assert [float(effect) for effect in rows[0]["effects"].split()] == pytest.approx([0.8, 0.8, 0.8])
    cases = list(csv.DictReader((tmp_path / "toy.csv").open()))
    assert [(case["case seed"], case["case arm"]) for case in cases][:2] == [("0", "low"), ("0", "high")]
    assert float(cases[1]["level"]) == pytest.approx(0.9)
    assert [float(cases[1][f"curve {end}"]) for end in ("start", "end")] == pytest.approx([0, 0.9])
    assert re.search(r"toy +holds +\+0\.8 +Figure 0", capsys.readouterr().out)


def test_a_reports_archive_serves_another_folder_which_runs_only_what_it_lacks(tmp_path, monkeypatch):
    first, second = tmp_path / "first", tmp_path / "second"
    command(first, "toy", "--seeds", "3")
    zipfile.main(["-e", str(first / "cases.zip"), str(second)])
    ran = []
    toy = replace(toy_experiments.TOY, run=lambda **case: ran.append(case) or toy_experiments.measure(**case))
    monkeypatch.setitem(all_experiments.ALL, "toy", toy)
    assert command(second, "toy", "--seeds", "3") == 0 and ran == []
    assert not (second / "toy_pictures.jpg").exists(), "pictures are not in the archive"
    for name in ("verdicts.csv", "toy.csv", "cases.zip"):
        assert (second / name).read_bytes() == (first / name).read_bytes(), name
    assert command(second, "toy", "--seeds", "1") == 0
    assert (second / "cases.zip").read_bytes() == (first / "cases.zip").read_bytes(), "it holds what lies there"
    assert command(second, "toy", "--seeds", "4") == 0 and [case["seed"] for case in ran] == [3, 3]
    assert (second / "toy_pictures.jpg").exists()


def test_a_table_of_the_papers_stands_in_both_reports(tmp_path, monkeypatch):
    toy = replace(toy_experiments.TOY, table=lambda results: [["arm", "cases"], ["low | high", str(len(results))]])
    monkeypatch.setitem(all_experiments.ALL, "toy", toy)
    assert command(tmp_path, "toy", "--seeds", "2") == 0
    assert "| arm | cases |\n|---|---|\n| low \\| high | 4 |" in (tmp_path / "report.md").read_text()
    assert "low | high" in (tmp_path / "report.html").read_text()


def test_a_failed_case_is_said_and_the_rest_is_reported(tmp_path, capsys):
    assert command(tmp_path, "flawed", "--seeds", "3") == 1
    text = (tmp_path / "report.md").read_text()
    assert "1 case failed: missing below, with all else of its seed." in text
    verdicts = list(csv.DictReader((tmp_path / "verdicts.csv").open()))
    assert [row["seeds"] for row in verdicts] == ["2", "2"], "of the broken seed no effect can be told"
    assert len((tmp_path / "toy.csv").read_text().splitlines()) == 1 + 5, "what was measured of it is kept"
    assert "ZeroDivisionError: the second seed's flaw" in capsys.readouterr().err


def test_an_experiment_whose_package_is_missing_is_left_out_and_says_which(tmp_path, monkeypatch, capsys):
    needs = {"torch": "torch", "no_such_module": "no-such-package"}
    lacking = replace(toy_experiments.TOY, name="lacking", needs=needs)
    monkeypatch.setitem(all_experiments.ALL, "lacking", lacking)
    assert command(tmp_path, "toy", "lacking", "--seeds", "2") == 0
    reason = "Left out: it needs no-such-package. To run it: pip install no-such-package"
    text = (tmp_path / "report.md").read_text()
    assert reason in text and f"lacking: {reason}" in capsys.readouterr().out
    assert not (tmp_path / "cases" / "lacking").exists()
    rows = list(csv.DictReader((tmp_path / "verdicts.csv").open()))
    assert {row["experiment"] for row in rows} == {"toy"}, "what was not run has no verdict"


def test_an_interrupted_command_says_how_far_it_came(tmp_path, monkeypatch, capsys):
    def interrupted(seed, arm):
        if seed == 1:
            raise KeyboardInterrupt
        return toy_experiments.measure(seed, arm)

    monkeypatch.setitem(all_experiments.ALL, "toy", replace(toy_experiments.TOY, run=interrupted))
    assert command(tmp_path, "toy", "--seeds", "3") == 130
    assert "interrupted with 2 of 6 cases finished; the same command goes on" in capsys.readouterr().err
    assert not (tmp_path / "report.md").exists()


@pytest.mark.parametrize("words, told", [
    (["nonsense"], "there is no experiment 'nonsense'; expected of toy, flawed"),
    (["toy", "--seeds", "0"], "expected 1 or more, found 0"),
])  # fmt: skip
def test_bad_input_gets_one_clear_error(tmp_path, capsys, words, told):
    try:
        status = command(tmp_path, *words)
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2 and told in capsys.readouterr().err


def test_cases_of_another_setting_are_refused_before_anything_runs(tmp_path, monkeypatch, capsys):
    assert command(tmp_path, "toy", "--seeds", "1") == 0
    monkeypatch.setitem(all_experiments.ALL, "toy", replace(toy_experiments.TOY, setting="Twice as long."))
    assert command(tmp_path, "toy", "--seeds", "2") == 2
    assert "which is now 'Twice as long.'" in capsys.readouterr().err
    assert len(list((tmp_path / "cases" / "toy").glob("*.json"))) == 2


def test_the_list_says_what_each_asks_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["experiments", "--list"])
    assert stopped.value.code == 0 and re.search(r"toy +Is high more than low\?", capsys.readouterr().out)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["experiments"], ["toy"]])
def test_the_published_pack_says_that_it_has_no_experiments(tmp_path, monkeypatch, capsys, words):
    for name in [name for name in sys.modules if name.startswith("comfyui_dno.experiments")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "comfyui_dno.experiments", None)
    assert main([*words, "--out", str(tmp_path)]) == 2
    assert "are not in the published pack; expected a checkout of the repository" in capsys.readouterr().err
