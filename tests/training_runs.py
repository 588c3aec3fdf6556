"""What the tests of the training programs share: a tiny model, a text of random words, and fixtures.

A test module takes them by `pytest_plugins = ["training_runs"]`.
"""

import importlib
from pathlib import Path

import numpy
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
TINY = [
    *("--layers", "2", "--heads", "2", "--d-model", "16", "--context", "40", "--batch", "3", "--lr", "0.02"),
    *("--warmup", "4", "--block-size", "16", "--window", "12", "--sample", "0", "--eval-batches", "4"),
]
WORDS = "the attention of a block reads every key once and keeps one number a row\n".split(" ")


@pytest.fixture
def example(monkeypatch):
    """Imports a module of the examples."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module


@pytest.fixture
def program(example, tmp_path, monkeypatch):
    """program(name, arguments) runs a command line in an empty folder, on text.txt."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(" ".join(numpy.random.default_rng(0).choice(WORDS, 2000)))

    def run(name, arguments, text="text.txt"):
        return example(name).main(["--text", text, "--out", "out", *TINY, *arguments])

    return run


@pytest.fixture
def fails(capsys):
    """fails(run, arguments...): the message with which a command line ends."""

    def message(run, *arguments, **text):
        with pytest.raises(SystemExit) as stop:
            run(*arguments, **text)
        assert stop.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    return message
