"""`dno demo`: what the probability regulariser does, shown on the embedded model. `dno toy`: the paper's ring."""

from dataclasses import replace

from .. import core
from ..core import plots
from .experiments import room
from .options import add_ascent, add_output, add_sampling, add_single
from .output import ended, say, together
from .search import Setup, save, tell


def add_commands(commands):
    """Add `demo` and `toy` to the subparsers."""
    parser = commands.add_parser("demo", help=demo.__doc__, description=demo.__doc__)
    parser.set_defaults(command=demo, reward="brightness", solver="adam", watch=[], floors="", target=None)
    parser.set_defaults(**dict.fromkeys(("reward_file", "clip_file", "reference", "model", "height", "width")))
    add_sampling(parser)
    add_ascent(parser, iterations=36, lr=0.03)
    add_single(parser)
    add_output(parser, "dno_out/demo")
    parser = commands.add_parser("toy", help=ring.__doc__, description=ring.__doc__)
    parser.set_defaults(command=ring)
    parser.add_argument("--seed", type=int, default=0)
    add_output(parser, "dno_out/toy")


def demo(options):
    """Optimise one noise twice, without and with the probability regulariser, and show what each does."""
    setup = Setup.of(options)
    plain = replace(setup, settings=setup.settings | {"gamma": 0.0})
    # The plain arm keeps its highest reward, however improbable the noise: that is what it is there to show.
    arms = {"without regulariser": (plain, 0.0), "with regulariser": (setup, core.P_SUSPICIOUS)}
    sample_map, found = setup.sample_map(["black cat"]), {}
    for label, (arm, floor) in arms.items():
        noise = arm.noise(sample_map, options.seed)
        try:
            found[label] = result, _ = arm.search_with_bar(
                sample_map, noise, label, floor=floor, seconds=options.seconds, check_gradient=options.check_gradient
            )
        except KeyboardInterrupt:
            if not found:
                raise
            break
        if result.failure or result.history.stopped == "interrupted":
            break
    histories = {label: result.history for label, (result, _) in found.items()}
    with together(options.out) as folder:
        for label, (result, before) in found.items():
            save(result, before, folder, prefix=label.replace(" ", "_") + "_")
        plots.curves(histories).save(folder / "curves.png")
        _before_and_after(histories).save(folder / "before_after.png")
    for label, history in histories.items():
        tell(label, history)
    say(f"pictures, curves and histories are in {options.out.resolve()}")
    return max(ended(result) for result, _ in found.values())


def _before_and_after(histories):
    first = next(iter(histories.values()))
    pictures = plots.to_pictures(first.pictures[0])
    captions = [f"before\nbrightness {first.rows[0]['score'][0]:.2f}"]
    for label, history in histories.items():
        pictures += plots.to_pictures(history.pictures[-1])
        captions.append(f"{label}, {len(history.rows) - 1} iterations\nbrightness {history.rows[-1]['score'][0]:.2f}")
    return plots.contact_sheet(pictures, captions, size=256)


def ring(options):
    """Optimise on the paper's ring, a model of two numbers, and draw where the noise goes."""
    room()
    from ..experiments import ring as experiment

    experiment.figures(options.out, seed=options.seed)
    say(f"figures are in {options.out.resolve()}")
    return 0
