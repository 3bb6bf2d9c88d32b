"""The examples in the docstrings of what `core` and `rewards` offer, run as they stand.

An example may use the names of its own module, and `torch`, `core` and `rewards`, as a reader has them who began with

    import torch
    from comfyui_dno import core, rewards

The files that examples read are tiny ones of the same names and layouts.
"""

import doctest
import inspect
import sys

import pytest
import torch
from comfy_server import make_tiny_rewards
from comfyui_dno import core, rewards

OFFERED = {f"core.{name}": getattr(core, name) for name in core.__all__}
OFFERED |= {f"rewards.{name}": getattr(rewards, name) for name in rewards.__all__}
CODE = {name: offered for name, offered in OFFERED.items() if inspect.isclass(offered) or inspect.isroutine(offered)}


def examples(offered):
    """Return the examples of a class, its own methods', or a function's."""
    names = {**vars(sys.modules[offered.__module__]), "torch": torch, "core": core, "rewards": rewards}
    found = doctest.DocTestFinder(recurse=True).find(offered, offered.__name__, globs=names)
    return [test for test in found if test.examples]


@pytest.fixture(scope="module")
def reward_files(tmp_path_factory):
    """A folder with a file of each reward model."""
    folder = tmp_path_factory.mktemp("reward_models")
    make_tiny_rewards.write_missing(folder)
    return folder


@pytest.mark.parametrize("name", CODE)
def test_the_examples_of_a_public_name_give_what_they_say(name, reward_files, monkeypatch):
    monkeypatch.chdir(reward_files)
    for example in examples(CODE[name]):
        said = []
        failed, _ = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=said.append)
        assert failed == 0, "".join(said)


@pytest.mark.parametrize("name", [name for name, offered in CODE.items() if inspect.isclass(offered)])
def test_every_public_class_has_an_example(name):
    if issubclass(CODE[name], Exception):
        pytest.skip("an error is shown by what raises it")
    assert "Example:" in CODE[name].__doc__
    assert CODE[name].__name__ in [example.name for example in examples(CODE[name])]


def test_an_example_that_is_wrong_is_seen():
    def twice(x):
        """Return 2 x.

        Example:
            >>> 2 * 2
            5
        """

    (example,) = examples(twice)
    assert doctest.DocTestRunner().run(example, out=lambda said: None).failed == 1
