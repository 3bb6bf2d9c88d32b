"""`dno experiments`: every experiment of the papers, run again here, with a verdict for each of their claims.

Each case of an experiment is kept in a file as soon as it is done; the same command goes on where it was interrupted,
and more --seeds add to what is there.
"""

import argparse
import os
import sys

from tqdm import tqdm

from .options import add_output, at_least
from .output import remove_leftovers, say
from .report import table


def add_commands(commands):
    """Add `experiments` to the subparsers."""
    parser = commands.add_parser("experiments", help=experiments.__doc__, description=__doc__)
    parser.set_defaults(command=experiments)
    parser.add_argument("names", nargs="*", metavar="name", help="of experiments, see --list (default all)")
    parser.add_argument("--list", action=_List, nargs=0, help="say which experiments there are, and end")
    parser.add_argument("--seeds", type=at_least(1), default=4, help="number of seeds (default %(default)s)")
    cores = os.cpu_count() or 1
    parser.add_argument("--processes", type=at_least(1), default=cores, help="at most so many (default %(default)s)")
    add_output(parser, "dno_out/experiments")


def experiments(options):
    """Run the papers' experiments, and write a report with a verdict for each claim."""
    running = room()
    chosen, commit = _chosen(options.names), running.commit()
    jobs = {
        each.name: [] if each.lacks else running.jobs_of(each, options.seeds, options.out, commit) for each in chosen
    }
    every = [job for of_one in jobs.values() for job in of_one]
    for job in every:
        if job.finished:
            job.result()  # raises before anything is run
    for folder in {job.path.parent for job in every}:
        remove_leftovers(folder)
    try:
        failed = _run(running, every, options.processes)
    except KeyboardInterrupt:
        done = sum(job.finished for job in every)
        message = f"interrupted with {done} of {len(every)} cases finished; the same command goes on from there"
        raise KeyboardInterrupt(message) from None
    from . import experiments_report

    rows = experiments_report.write(chosen, jobs, options)
    say(table([["experiment", "verdict", "effect", "claim"], *rows]))
    for each in chosen:
        if each.lacks:
            say(f"{each.name}: {each.lacks}")
    say(f"the report is {(options.out / experiments_report.PAGE).resolve()}")
    return 1 if failed else 0


def _run(running, jobs, processes):
    """Run what is not finished behind a progress bar; return how many failed."""
    failed = 0
    with tqdm(total=len(jobs), initial=sum(job.finished for job in jobs), unit="case") as bar:

        def done(job, error):
            nonlocal failed
            if error:
                failed += 1
                reason = error.splitlines()[-1]
                bar.write(f"{job.path.parent.name}, {job.name} failed: {reason}; see {job.error}", file=sys.stderr)
            bar.set_postfix_str(f"{job.path.parent.name} {job.name}"[:50], refresh=False)
            bar.update()

        running.run(jobs, processes, done)
    return failed


def room():
    """Return the module `running` of the room of the experiments.

    Raises:
        ValueError: this is the pack as it is published, which leaves that room out.
    """
    try:
        from ..experiments import running
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith(f"{__package__.rpartition('.')[0]}.experiments"):
            raise
        raise ValueError(
            "the papers' experiments are not in the published pack; expected a checkout of the repository: git clone"
            " https://github.com/comfyui-dno/direct-noise-optimization, then pip install -e . in it"
        ) from error
    return running


def _chosen(names):
    """Return the Experiments of some names, in the order of the report; all of them where there is no name."""
    from ..experiments.all_experiments import ALL

    unknown = [name for name in names if name not in ALL]
    if unknown:
        raise ValueError(f"there is no experiment {unknown[0]!r}; expected of {', '.join(ALL)}")
    return [experiment for name, experiment in ALL.items() if name in names or not names]


class _List(argparse.Action):
    """The option --list, which ends the command as --help does."""

    def __call__(self, parser, options, values, option=None):
        try:
            room()
        except ValueError as error:
            parser.error(str(error))
        say(table([["name", "what it asks"], *([each.name, each.question] for each in _chosen([]))]))
        parser.exit()
