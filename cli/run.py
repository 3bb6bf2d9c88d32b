"""`dno run`: one search, of one picture or a batch of them."""

from pathlib import Path

from ..core.models.embedded import vocabulary
from .options import add_model, add_output, add_sampling, add_search, add_single, at_least
from .output import ended, say, together
from .report import findings, page, table
from .search import CURVES, FILES_OF_A_SEARCH, REPORT, Setup, save, tell


def add_commands(commands):
    """Add `run` to the subparsers."""
    parser = commands.add_parser("run", help=run.__doc__, description=run.__doc__)
    parser.set_defaults(command=run)
    parser.add_argument("--prompt", required=True, help="for the embedded model '<colour> <animal>', e.g. 'black cat'")
    add_search(parser)
    add_sampling(parser)
    add_model(parser)
    add_single(parser)
    parser.add_argument("--batch", type=at_least(1), default=1, help="number of pictures, each with a noise of its own")
    parser.add_argument("--start", type=Path, help="noise.safetensors of an earlier run, in place of --seed")
    parser.add_argument(
        "--report", action="store_true", help="write report.html too: pictures, curves and settings in one file"
    )
    add_output(parser, "dno_out/run")


def run(options):
    """Optimise one noise, or a batch of --batch, and save the best pictures."""
    if options.model is None:
        vocabulary.words_of(options.prompt)  # raises before anything is loaded
    if options.reference and _is_replaced(options.reference, options.out):
        raise ValueError(
            f"--reference {options.reference} is in --out, where this run's files replace it; expected another --out,"
            " or a copy of the picture elsewhere"
        )
    setup = Setup.of(options)
    sample_map = setup.sample_map([options.prompt] * options.batch)
    noise = setup.noise(sample_map, options.seed, options.start)
    result, before = setup.search_with_bar(
        sample_map, noise, options.reward, seconds=options.seconds, check_gradient=options.check_gradient
    )
    with together(options.out, replaces=FILES_OF_A_SEARCH) as folder:
        save(result, before, folder)
        if options.report:
            (folder / REPORT).write_text(page(result, options.words), encoding="utf-8")
    tell(options.reward, result.history)
    say(table(findings(result.history)))
    say(f"pictures, noise and history are in {options.out.resolve()}")
    if options.report:
        say(f"the report is {(options.out / REPORT).resolve()}")
    return ended(result)


def _is_replaced(picture, folder):
    """Return whether a search that is written to `folder` would put a file in a picture's place, or remove it."""
    replaced = picture.name == CURVES or FILES_OF_A_SEARCH.fullmatch(picture.name)
    return picture.resolve().parent == folder.resolve() and bool(replaced)
