"""The `dno` command: noise optimisation without ComfyUI, on the embedded model or a diffusers pipeline.

    dno demo                                  a black cat grows brighter, with and without the regulariser
    dno run --prompt "red owl" --reward darkness --iterations 40
    dno batch prompts.txt --seeds 0:64        every prompt with every seed, on one process or many
    dno toy                                   the paper's ring
    dno experiments                           the papers' experiments, with a verdict for each claim
"""

import argparse
import logging
import sys

from .cli import batch, demo, experiments, run
from .cli.output import check_writable, complain


def main(arguments=None):
    """Run the command line; return the exit status."""
    options = _parser().parse_args(arguments)
    options.words = ["dno", *(sys.argv[1:] if arguments is None else arguments)]
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        check_writable(options.out)
        return options.command(options)
    except (ValueError, OSError) as error:
        complain(f"dno: {error}")
        return 2
    except KeyboardInterrupt as interrupt:
        message = str(interrupt) or "interrupted before the first picture was scored; nothing to save"
        complain(f"dno: {message}")
        return 130


def _parser():
    parser = argparse.ArgumentParser(prog="dno", description="Search the sampling noise for a picture a reward likes.")
    commands = parser.add_subparsers(required=True, metavar="command")
    for module in (demo, run, batch, experiments):
        module.add_commands(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
