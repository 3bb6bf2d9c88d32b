"""`dno batch`: every prompt with every seed, shared out over the processes that were started together.

An item's folder holds what `dno run` writes, but for the seconds: what is in it is the same to the last bit, whatever
the number of processes and however often the batch was resumed. For that each item is searched by itself, and with a
fixed number of threads; there is no time budget, which would depend on the machine.
"""

import argparse
import logging
import re
import traceback
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from ..core.files import whole_file
from ..core.models.embedded import vocabulary
from .items import check_finished, read_items, summarise
from .options import add_model, add_output, add_sampling, add_search, at_least
from .output import remove_leftovers, say, whole
from .processes import Processes
from .search import Setup, save, state

log = logging.getLogger(__name__)


def add_commands(commands):
    """Add `batch` to the subparsers."""
    parser = commands.add_parser("batch", help=batch.__doc__, description=batch.__doc__)
    parser.set_defaults(command=batch)
    parser.add_argument("prompts", type=Path, help="text file, one prompt a line; # begins a comment")
    parser.add_argument("--seeds", type=seeds, default=[0], help="e.g. 0:64 (0 to 63) or 3,5,8 (default 0)")
    add_search(parser)
    add_sampling(parser)
    add_model(parser)
    parser.add_argument(
        "--threads", type=at_least(1), default=1, help="CPU threads of each process (default %(default)s)"
    )
    add_output(parser, "dno_out/batch")


def batch(options):
    """Search every prompt of a file with every seed; the same command resumes, `accelerate launch` shares it out."""
    items = read_items(options.prompts, options.seeds, options.out)
    if options.model is None:
        _check_prompts(items)
    processes = Processes.join()
    torch.set_num_threads(options.threads)
    try:
        _work(options, items, processes)
        processes.wait()
    except KeyboardInterrupt:
        done = sum(item.finished for item in items)
        message = f"interrupted with {done} of {len(items)} items finished; the same command goes on from there"
        raise KeyboardInterrupt(message) from None
    finally:
        processes.leave()
    if processes.index > 0:
        return 0
    failed = summarise(items, options.out)
    say(f"{len(items) - failed} of {len(items)} items finished; pictures and summary are in {options.out.resolve()}")
    return 1 if failed else 0


def _check_prompts(items):
    for item in items:
        try:
            vocabulary.words_of(item.prompt)
        except ValueError as error:
            raise ValueError(f"line {item.line}: {error}") from error


def _work(options, items, processes):
    """Make this process's share of what is not finished yet."""
    setup = Setup.of(options, processes.device(options.device))
    setup = replace(setup, settings=setup.settings | {"threads": options.threads})
    if setup.device.startswith("cuda"):
        # A kernel that has no deterministic form warns, and may change the last bits.
        torch.use_deterministic_algorithms(True, warn_only=True)
    sample_map = setup.sample_map([items[0].prompt])
    check_finished(items, setup.noise(sample_map, items[0].seed).settings | sample_map.settings)
    if processes.index == 0:
        remove_leftovers(options.out)
    pending = [item for item in items if not item.finished]
    # Nobody begins before all have seen the same folders.
    processes.wait()
    with tqdm(total=len(items), initial=len(items) - len(pending), unit="item", disable=processes.index > 0) as bar:
        for item in pending[processes.index :: processes.count]:
            try:
                if sample_map.prompts != [item.prompt]:
                    sample_map = setup.sample_map([item.prompt])
                _make(setup, sample_map, item, lambda found: bar.set_postfix_str(state(found)))
            except Exception as error:
                # Whatever it is, the other items shall not suffer.
                log.error("%s failed: %s", item.folder.name, error)
                reason = traceback.format_exc()
                with whole_file(item.error) as file:  # where not even this can be written, the batch ends
                    file.write_text(reason, encoding="utf-8", errors="backslashreplace")
            bar.update(sum(item.finished for item in items) - bar.n)


def _make(setup, sample_map, item, callback):
    result, before = setup.search(sample_map, setup.noise(sample_map, item.seed), callback)
    for row in result.whole().history.rows:
        del row["seconds"]  # no two runs agree on them
    with whole(item.folder) as folder:
        save(result, before, folder)
    item.error.unlink(missing_ok=True)


def seeds(text):
    """Read seeds: numbers and half-open ranges, "0:4,10" is 0, 1, 2, 3, 10."""
    found = []
    for part in text.split(","):
        if not re.fullmatch(r"\d+(:\d+)?", part):
            raise argparse.ArgumentTypeError(f"expected e.g. 0:64 or 3,5,8, found {text!r}")
        first, _, end = part.partition(":")
        found += range(int(first), int(end or int(first) + 1))
    if not found or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"expected one seed or more, each once, found {text!r}")
    return found
