"""Runs the cases of experiments, shared out over processes, and keeps each in files of its own.

    <out>/cases/<experiment>/<case>.json        what was measured; it is there only when the case is finished
    <out>/cases/<experiment>/<case>_<name>.png  its pictures
    <out>/cases/<experiment>/<case>.error.txt   why its last try failed

What is finished is never run again, so a command that was interrupted goes on where it stopped. Each process takes the
next case when it is done with one, and computes on one thread: small networks are slower on several, and seconds are
those of one core whatever the number of processes.
"""

import hashlib
import json
import multiprocessing
import os
import re
import signal
import subprocess
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from ..core.files import to_json, whole_file

KNOWN = {"case", "seconds", "commit"}
"""What is known of every case, under these names, beside what it has measured."""


@dataclass(frozen=True)
class Job:
    """One case, and the file that it is kept in.

    Attributes:
        run: of its Experiment.
        case: the keyword arguments of `run`.
        setting: of its Experiment.
        commit: of the code that runs it.
        path: of the JSON file.
    """

    run: Callable
    case: dict
    setting: str
    commit: str
    path: Path

    @property
    def name(self):
        """Its name among the cases of its experiment."""
        return self.path.stem

    @property
    def finished(self):
        """Whether its file is there."""
        return self.path.is_file()

    @property
    def error(self):
        """The file that says why its last try failed."""
        return self.path.with_suffix(".error.txt")

    def result(self):
        """Return what a finished case has measured: what `run` gave, "case", "seconds", "commit" and "pictures".

        Pictures are those that are there: a case may have come here without them, in the archive of a report.

        Raises:
            ValueError: the file holds a case of another setting, or cannot be read.
        """
        advice = "Use another --out, or remove the file, and the same command makes it again"
        try:
            record = json.loads(self.path.read_text(encoding="utf-8"))
            setting, pictures = record["setting"], record["pictures"]
            found = record["found"] | {key: record[key] for key in KNOWN}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path} is not the record of a case ({error}). {advice}") from error
        if setting != self.setting:
            raise ValueError(
                f"{self.path} was made in the setting {setting!r}, which is now {self.setting!r}. {advice}"
            )
        paths = {name: self.path.with_name(file) for name, file in pictures.items()}
        return found | {"pictures": {name: path for name, path in paths.items() if path.is_file()}}


def jobs_of(experiment, seeds, out, commit="unknown"):
    """Return the Jobs of an experiment with that many seeds, in the folder `out`."""
    folder = Path(out) / "cases" / experiment.name
    return [
        Job(experiment.run, case, experiment.setting, commit, folder / f"{_name(case)}.json")
        for case in experiment.cases(seeds)
    ]


def run(jobs, processes, done):
    """Run every job that is not finished.

    Args:
        jobs: Jobs of one experiment or more.
        processes: at most so many at once; 1 runs them in this one.
        done: called as done(job, error) after each: error is None, or the traceback of a case that failed.

    Raises:
        OSError: the system has ended one of the processes.
    """
    pending = [job for job in jobs if not job.finished]
    for folder in {job.path.parent for job in pending}:
        folder.mkdir(parents=True, exist_ok=True)
    if processes == 1 or len(pending) < 2:
        for job in pending:
            done(job, work(job))
        return
    # A forked process would inherit PyTorch's threads in whatever state they are.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(pending)), context, _begin) as pool:
        running = {pool.submit(work, job): job for job in pending}
        try:
            for future in as_completed(running):
                done(running[future], future.result())
        except BrokenProcessPool as error:
            raise OSError(
                "one of the processes was ended from outside, mostly for want of memory; the same command goes on with"
                " what is not finished, with fewer --processes in less memory"
            ) from error
        except BaseException:
            for child in multiprocessing.active_children():
                child.terminate()
            pool.shutdown(cancel_futures=True)
            raise


def _begin():
    """Make a new process leave Ctrl-C to the first one, and end when that one does, however it does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def work(job):
    """Run one job and write its files; return None, or the traceback where it failed."""
    torch.set_num_threads(1)
    started = time.process_time()
    try:
        found = job.run(**job.case)
        if taken := KNOWN & found.keys():
            raise ValueError(f"{job.run.__module__}.run returned {sorted(taken)}, which every result has of its own")
        pictures = {name: _keep(job, name, picture) for name, picture in found.pop("pictures", {}).items()}
        seconds = round(time.process_time() - started, 1)
        record = {"setting": job.setting, "case": job.case, "commit": job.commit, "seconds": seconds}
        with whole_file(job.path) as path:
            path.write_text(to_json(record | {"pictures": pictures, "found": found}), encoding="utf-8")
    except Exception:
        # Whatever it is, the other cases shall not suffer.
        reason = traceback.format_exc()
        try:
            with whole_file(job.error) as path:
                path.write_text(reason, encoding="utf-8", errors="backslashreplace")
        except OSError as error:  # a full disk, say: the reason is told all the same
            reason += f"\n(and {job.error} could not be written: {error})"
        return reason
    job.error.unlink(missing_ok=True)
    return None


def commit():
    """Return the commit of this checkout, with "-dirty" where files differ from it; "unknown" where there is none."""
    words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=10"]
    try:
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _keep(job, name, picture):
    """Write a picture, uint8 (3, H, W), beside its job's file, and return the name of its own."""
    file = f"{job.name}_{_slug(name)}.png"
    with whole_file(job.path.with_name(file)) as path:
        Image.fromarray(torch.as_tensor(picture).permute(1, 2, 0).contiguous().numpy()).save(path)
    return file


def _name(case):
    """Return a file name that every system takes, another one for every case."""
    digest = hashlib.sha256(json.dumps(case, sort_keys=True).encode()).hexdigest()[:6]
    return f"{_slug(' '.join(f'{key} {value}' for key, value in case.items()))[:60]}_{digest}"


def _slug(text):
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-")
