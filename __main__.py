"""The `dno` command: noise optimisation without ComfyUI, on the embedded model.

    dno demo                                  a black cat grows brighter, with and without the regulariser
    dno run --prompt "red owl" --reward darkness --iterations 40
"""

import argparse
import logging
import sys
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from . import core, rewards
from .core import plots

REWARDS = {
    "brightness": lambda device: rewards.Brightness(),
    "darkness": lambda device: rewards.Brightness(negative=True),
    "consistency": lambda device: rewards.Consistency(device=device),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def main(arguments=None):
    """Run the command line; return the exit status."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        _check_device(options.device)
        options.out.mkdir(parents=True, exist_ok=True)
        return options.command(options)
    except (ValueError, FileNotFoundError) as error:
        sys.stderr.write(f"dno: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("dno: interrupted before the first picture was scored; nothing to save\n")
        return 130


def demo(options):
    """Optimise one noise twice, without and with the probability regulariser, and show what each does."""
    arms = {"without regulariser": None, "with regulariser": core.ProbabilityRegularizer(gamma=options.gamma)}
    sample_map, results = _sample_map(options), {}
    for label, regularizer in arms.items():
        # The plain arm keeps its highest reward, however improbable the noise: that is what it is there to show.
        floor = core.P_SUSPICIOUS if regularizer else 0.0
        try:
            results[label] = _search(options, sample_map, regularizer, floor, label)
        except KeyboardInterrupt:
            if not results:
                raise
            break
        _save_run(results[label], options.out, prefix=label.replace(" ", "_") + "_")
        if results[label].history.stopped == "interrupted":
            break
    histories = {label: result.history for label, result in results.items()}
    plots.curves(histories).save(options.out / "curves.png")
    _before_and_after(results, options.out / "before_after.png")
    for label, history in histories.items():
        _tell(label, history)
    _say(f"pictures, curves and histories are in {options.out.resolve()}")
    return 0


def run(options):
    """Optimise one noise, or a batch of --batch, and save the best pictures."""
    regularizer = core.ProbabilityRegularizer(gamma=options.gamma) if options.gamma > 0 else None
    result = _search(options, _sample_map(options), regularizer, core.P_SUSPICIOUS, options.reward)
    _save_run(result, options.out)
    _tell(options.reward, result.history)
    _say(f"pictures, noise and history are in {options.out.resolve()}")
    return 0


def _sample_map(options):
    settings = {key: getattr(options, key) for key in ("steps", "cfg", "eta", "device", "keep_graphs")}
    prompts = [options.prompt] * options.batch
    return core.load_embedded(prompts, options.negative, dtype=DTYPES[options.dtype], **settings)


def _search(options, sample_map, regularizer, floor, label):
    noise = sample_map.randn(options.seed).to(options.device)
    noise = replace(noise, settings={key: value for key, value in vars(options).items() if _is_setting(value)})
    reward, watch = REWARDS[options.reward](options.device), rewards.Consistency(device=options.device)
    with tqdm(total=sample_map.stages(options.iterations), desc=label, unit="stage") as bar:
        sample_map.on_step = lambda phase, index, total: bar.update()
        result = core.optimize(
            sample_map,
            reward,
            noise,
            solver=core.GradientAscent(lr=options.lr),
            regularizer=regularizer,
            iterations=options.iterations,
            seconds=options.seconds,
            watch=() if reward.name == watch.name else (watch,),
            callback=lambda evaluation, best: bar.set_postfix_str(_state(evaluation)),
            floor=floor,
            check_gradient=options.check_gradient,
        )
    result.history.settings |= noise.settings
    result.history.settings["gamma"] = regularizer.gamma if regularizer else 0.0
    return result


def _check_device(device):
    """Raise ValueError for a device that torch does not have here."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        found = f"cuda with {torch.cuda.device_count()} devices" if torch.cuda.is_available() else "cpu"
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {device!r} cannot be used here ({reason}); this machine has {found}") from error


def _is_setting(value):
    return value is None or isinstance(value, (str, int, float))


def _state(evaluation):
    watched = "".join(f", {name} {scores.mean():.2f}" for name, scores in evaluation.watched.items())
    probability = evaluation.log_p.exp().min()
    return f"iteration {evaluation.iteration}: reward {evaluation.scores.mean():.3f}{watched}, P {probability:.1e}"


def _save_run(result, folder, prefix=""):
    """Write before and after pictures, the trajectory, the curves, the noise and the history of one run."""
    history = result.history
    (folder / f"{prefix}history.json").write_text(history.to_json())
    result.noise.to("cpu").save(folder / f"{prefix}noise.safetensors")
    plots.curves(history).save(folder / f"{prefix}curves.png")
    for item, (before, after) in enumerate(
        zip(plots.to_pictures(history.pictures[0]), plots.to_pictures(result.images), strict=True)
    ):
        name = f"{prefix}{item:02d}_" if len(result.images) > 1 else prefix
        before.save(folder / f"{name}before.png")
        after.save(folder / f"{name}after.png")
        plots.trajectory(history, item).save(folder / f"{name}trajectory.png")


def _before_and_after(results, path):
    pictures, captions = [], []
    for label, result in results.items():
        rows, last = result.history.rows, len(result.history.rows) - 1
        if not pictures:
            pictures.append(plots.to_pictures(result.history.pictures[0])[0])
            captions.append(f"before\nbrightness {rows[0]['score'][0]:.2f}")
        pictures.append(plots.to_pictures(result.history.pictures[last])[0])
        captions.append(f"{label}, {last} iterations\nbrightness {rows[last]['score'][0]:.2f}")
    plots.contact_sheet(pictures, captions, size=256).save(path)


def _tell(label, history):
    first, last = history.rows[0], history.rows[-1]
    best = history.best[0]
    _say(f"{label}: {history.stopped}, {last['seconds']:.0f} s; best at iteration {best}")
    for key in ["score"] + [f"watch/{name}" for name in history.watched]:
        name = history.reward if key == "score" else key.removeprefix("watch/")
        at_best = history.column(key)[best]
        _say(f"    {name}: {first[key][0]:.3f} -> {last[key][0]:.3f} at the end, {at_best:.3f} at the best")
    if "gradient_error" in history.settings:
        _say(f"    relative error of the gradient in one direction: {max(history.settings['gradient_error']):.1e}")
    for key, name in (("log_p", "P(z)"), ("log_p_initial", "P(x_T)")):
        _say(f"    {name}: {plots.probability(first[key][0])} -> {plots.probability(last[key][0])}")


def _say(text):
    sys.stdout.write(text + "\n")


def _parser():
    parser = argparse.ArgumentParser(prog="dno", description="Search the sampling noise for a picture a reward likes.")
    commands = parser.add_subparsers(required=True, metavar="command")
    _common(commands.add_parser("demo", help=demo.__doc__, description=demo.__doc__), demo, "dno_out/demo", 36, 0.03)
    one = commands.add_parser("run", help=run.__doc__, description=run.__doc__)
    _common(one, run, "dno_out/run", 50, 0.01)
    one.add_argument("--prompt", required=True, help="'<colour> <animal>', e.g. 'black cat'")
    one.add_argument("--reward", choices=REWARDS, default="brightness")
    one.add_argument("--batch", type=_at_least(1), default=1, help="number of pictures, each with a noise of its own")
    return parser


def _common(parser, command, out, iterations, lr):
    parser.set_defaults(command=command, prompt="black cat", reward="brightness", batch=1)
    parser.add_argument("--negative", default="", help="negative prompt")
    parser.add_argument("--steps", type=_at_least(1), default=20, help="denoising steps (default %(default)s)")
    parser.add_argument("--cfg", type=float, default=3.0, help="guidance scale (default %(default)s)")
    parser.add_argument("--eta", type=float, default=1.0, help="0 the ODE .. 1 the SDE (default %(default)s)")
    parser.add_argument("--iterations", type=_at_least(0), default=iterations, help="updates (default %(default)s)")
    parser.add_argument("--lr", type=float, default=lr, help="learning rate of Adam (default %(default)s)")
    parser.add_argument("--gamma", type=float, default=1.0, help="weight of the regulariser (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, help="time budget")
    parser.add_argument(
        "--rerun", dest="keep_graphs", action="store_false",
        help="re-run each step backwards instead of keeping its graph: slower, and memory does not grow with the steps",
    )
    parser.add_argument(
        "--check-gradient", action="store_true",
        help="first compare the gradient with a directional difference; the error goes into the history",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, .. (default %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the networks (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path(out), help="folder to write to (default %(default)s)")


def _at_least(least):
    def integer(text):
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"expected {least} or more, found {text}")
        return int(text)

    return integer


if __name__ == "__main__":
    sys.exit(main())
