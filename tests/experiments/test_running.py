"""Cases of experiments: each is run once, in files that are there whole or not at all, on any number of processes."""

import json
import multiprocessing
import time
from dataclasses import replace

import pytest
import toy_experiments
from comfyui_dno.experiments import running
from PIL import Image


def run(experiment, out, seeds=2, processes=1):
    """Run an experiment; return its jobs and what was told of each."""
    jobs, told = running.jobs_of(experiment, seeds, out), {}
    running.run(jobs, processes, lambda job, error: told.update({job.name: error}))
    return jobs, told


def test_a_result_is_what_was_measured_with_its_case_and_pictures(tmp_path):
    jobs, told = run(toy_experiments.TOY, tmp_path)
    assert len(jobs) == 4 and set(told.values()) == {None}
    found = [job.result() for job in jobs]
    assert [result["case"] for result in found] == toy_experiments.cases(2)
    assert [result["level"] for result in found] == pytest.approx([0.1, 0.9, 0.11, 0.91])
    assert found[0]["none"] is None and found[0]["curve"] == pytest.approx([0, 0.1])
    with Image.open(found[1]["pictures"]["the end"]) as picture:
        assert picture.size == (8, 8) and picture.getpixel((0, 0)) == (229, 229, 229)


def test_two_processes_find_the_same_as_one(tmp_path):
    alone, _ = run(toy_experiments.TOY, tmp_path / "one")
    shared, told = run(toy_experiments.TOY, tmp_path / "two", processes=2)
    assert set(told.values()) == {None}
    for first, second in zip(alone, shared, strict=True):
        assert first.result()["level"] == second.result()["level"]


def test_what_is_finished_is_never_run_again(tmp_path):
    jobs, _ = run(toy_experiments.TOY, tmp_path)
    before = {job.path: job.path.stat().st_mtime_ns for job in jobs}
    jobs[2].path.unlink()
    _, told = run(toy_experiments.TOY, tmp_path)
    assert list(told) == [jobs[2].name]
    _, told = run(toy_experiments.TOY, tmp_path, seeds=3)
    assert len(told) == 2
    assert all(job.path.stat().st_mtime_ns == before[job.path] for job in jobs if job is not jobs[2])


def test_a_case_that_fails_leaves_its_reason_and_the_others_go_on(tmp_path):
    jobs, told = run(toy_experiments.FLAWED, tmp_path)
    assert [job.finished for job in jobs] == [True, True, False, True]
    assert told[jobs[2].name] == jobs[2].error.read_text() and "the second seed's flaw" in told[jobs[2].name]
    run(toy_experiments.TOY, tmp_path)
    assert jobs[2].finished and not jobs[2].error.exists()


def timed(seed, arm):
    return {"level": 0.0, "seconds": [1.0, 2.0]}


def test_a_case_may_not_measure_what_every_result_has_under_that_name(tmp_path):
    """Else its curve by seconds would be hidden by the seconds that the whole case took."""
    jobs, told = run(replace(toy_experiments.TOY, run=timed), tmp_path, seeds=1)
    assert not any(job.finished for job in jobs)
    assert all("returned ['seconds'], which every result has of its own" in reason for reason in told.values())


@pytest.mark.parametrize("processes", [1, 2])
def test_an_interrupted_run_keeps_what_is_finished_and_leaves_no_process(tmp_path, processes):
    jobs = running.jobs_of(toy_experiments.SLOW, 3, tmp_path)
    seen, began = [], time.perf_counter()

    def interrupt(job, error):
        seen.append(job)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        running.run(jobs, processes, interrupt)
    assert [job.finished for job in jobs] == [True, True, False, False, False, False]
    assert time.perf_counter() - began < 19, "a case of 20 seconds was waited for"
    assert not multiprocessing.active_children()
    assert not [path for path in tmp_path.rglob("*") if ".partial" in path.name]


def test_a_process_that_the_system_ends_is_an_error_that_says_so(tmp_path):
    with pytest.raises(OSError, match="ended from outside, mostly for want of memory"):
        run(toy_experiments.ENDED, tmp_path, processes=2)


def test_a_case_of_another_setting_is_not_taken_for_one_of_this(tmp_path):
    run(toy_experiments.TOY, tmp_path)
    other = replace(toy_experiments.TOY, setting="Twice the iterations.")
    with pytest.raises(ValueError, match="made in the setting 'No model.', which is now 'Twice the iterations.'"):
        running.jobs_of(other, 2, tmp_path)[0].result()


@pytest.mark.parametrize("missing", ["pictures", "found", "commit", "setting"])
def test_a_file_that_is_no_case_is_named(tmp_path, missing):
    (job, *_), _ = run(toy_experiments.TOY, tmp_path)
    record = json.loads(job.path.read_text())
    del record[missing]
    job.path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=f"{job.name}.json is not the record of a case"):
        job.result()


def test_a_reason_that_cannot_be_written_is_told_all_the_same(tmp_path, monkeypatch):
    def full(path):
        raise OSError("No space left on device")

    monkeypatch.setattr(running, "whole_file", full)
    job = running.jobs_of(toy_experiments.TOY, 1, tmp_path)[0]
    reason = running.work(job)
    assert "No space left on device" in reason and f"{job.error} could not be written" in reason
