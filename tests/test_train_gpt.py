"""examples/train_gpt.py: its gradients, its losses with each attention, its checkpoint and its messages."""

import importlib.util
import json
import os
import signal
import sys
from pathlib import Path

import numpy
import pytest

import flash

pytest_plugins = ["training_runs"]


@pytest.fixture
def trainer(example):
    return example("train_gpt")


@pytest.fixture
def shared(example):
    return example("training")


@pytest.fixture
def run(program):
    return lambda *arguments, **text: program("train_gpt", arguments, **text)


# ---- The model -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["flash", "standard", "block-sparse"])
def test_gradient_of_the_whole_model_by_finite_differences(example, attention):
    gpt = example("gpt")
    shape = gpt.Shape(5, 40, layers=2, heads=2, d_model=4, attention=attention, block_size=16, window=8)
    model, generator = gpt.GPT(shape, numpy, "f8", seed=0), numpy.random.default_rng(1)
    model.parameters += generator.normal(0.0, 0.3, model.parameters.size)  # so that nothing is nearly linear
    tokens, targets = generator.integers(5, size=(2, 2, 37))
    _, backward = model.loss(tokens, targets)
    backward()

    # The differences are wrong by 200 h^2 (norms over four numbers have a large third derivative) and by 2 eps / h:
    # together least, and below 1e-9, at this h.
    h, numeric = 1e-6, numpy.empty_like(model.gradients)
    for i, p in enumerate(model.parameters.tolist()):
        above, below = (set_and_loss(model, i, p + d, tokens, targets) for d in (h, -h))
        numeric[i] = (above - below) / (2 * h)
        model.parameters[i] = p
    assert numpy.abs(numeric).max() > 0.01
    assert numpy.abs(numeric - model.gradients).max() < 1e-8 * numpy.abs(numeric).max()


def set_and_loss(model, i, value, tokens, targets):
    model.parameters[i] = value
    return model.loss(tokens, targets)[0]


def test_gradients_accumulate_with_their_factors(example):
    gpt = example("gpt")
    model, generator = gpt.GPT(gpt.Shape(7, 8, 1, 1, 4), numpy, "f8", seed=0), numpy.random.default_rng(1)
    batches = generator.integers(7, size=(4, 2, 3, 8))
    for tokens, targets in batches:
        model.loss(tokens, targets)[1](0.25)
    accumulated = model.gradients.copy()
    model.gradients[...] = 0.0
    model.loss(*batches.swapaxes(0, 1).reshape(2, 12, 8))[1]()
    numpy.testing.assert_allclose(accumulated, model.gradients, rtol=0, atol=1e-15 * 12)


def test_block_sparse_model_does_not_see_far_keys(example):
    gpt = example("gpt")
    shape = gpt.Shape(9, 128, layers=1, heads=1, d_model=8, attention="block-sparse", block_size=16, window=16)
    model = gpt.GPT(shape, numpy, "f8", seed=0)
    tokens = numpy.random.default_rng(0).integers(9, size=(1, 128))
    before = model.logits(tokens)[0][-1]
    for position, seen in ((0, True), (15, True), (16, False), (95, False), (96, True), (127, True)):
        changed = tokens.copy()
        changed[0, position] = (changed[0, position] + 1) % 9
        assert numpy.array_equal(model.logits(changed)[0][-1], before) != seen, position


def test_sample_follows_the_logits(example):
    gpt = example("gpt")
    model = gpt.GPT(gpt.Shape(7, 8, 1, 1, 4), numpy, "f4", seed=0)

    def scores(tokens):
        assert len(tokens) <= 8
        return model.logits(numpy.array([tokens]))[0][-1].tolist()

    greedy = gpt.generate(scores, 8, [3], 12, 0.0, numpy.random.default_rng(0))
    assert len(greedy) == 13 and greedy[0] == 3
    assert greedy[-1] == model.logits(numpy.array([greedy[-9:-1]]))[0][-1].argmax()


# ---- Training --------------------------------------------------------------------------------------------------------


def test_loss_falls_and_results_are_written(run, capsys):
    result = run("--steps", "60", "--accumulate", "2", "--eval-every", "20", "--sample", "30", "--prompt", "the")
    (first, before), *_, (last, after) = result.validation
    assert (first, last) == (0, 60) and len(result.losses) == 60
    assert before == pytest.approx(numpy.log(23), rel=0.05)  # knows nothing: all characters are equally likely
    assert after < 0.75 * before and result.losses[-1] < 0.75 * result.losses[0]
    assert result.sample.startswith("the") and len(result.sample) == 33
    output = capsys.readouterr().out
    assert "tokens/s" in output and result.sample in output and "step 60/60" in output
    rows = Path("out/losses.csv").read_text().splitlines()
    assert rows[0] == "step,training,validation" and rows[60] == f"59,{result.losses[58]},"
    if importlib.util.find_spec("matplotlib"):
        assert Path("out/losses.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_flash_and_standard_attention_give_the_same_losses(run, dtype):
    """To rounding: over 40 steps they were at most 9 eps apart, as far as either was from exact arithmetic."""
    losses, tolerance = {}, 64 * numpy.finfo(dtype).eps
    for attention in ("flash", "standard"):
        losses[attention] = run("--attention", attention, "--dtype", dtype, "--steps", "40", "--out", attention).losses
    numpy.testing.assert_allclose(losses["flash"], losses["standard"], rtol=tolerance)


def test_block_sparse_attention_learns(run):
    result = run("--attention", "block-sparse", "--steps", "40")
    assert result.validation[-1][1] < 0.8 * result.validation[0][1]


def test_default_text_is_the_standard_library(shared):
    text = shared.Text(shared.read_text(""), 64, 128)
    assert len(text.training) + len(text.validation) == shared.STDLIB_LIMIT
    assert len(text.characters) == 64 and text.decode(text.encode("def f(x)\N{SNOWMAN}")) == "def f(x)\ufffd"
    assert "import" in text.decode(text.training[:20_000])


def test_schedule_and_decay(trainer, shared):
    options = trainer.Options(steps=100, warmup=10, lr=1.0, layers=1, weight_decay=0.5)
    training = trainer.Training(options, trainer.Text("abcdefgh" * 200, 8, options.context))
    rates = [shared.learning_rate(options, step) for step in range(1, 101)]
    assert rates[0] == 0.1 and max(rates) == rates[9] == 1.0 and rates[-1] == pytest.approx(0.1)
    assert rates[54] == pytest.approx(0.55)
    decayed = {name for name, p in training.model.p.items() if p.ndim == 2}
    size = sum(training.model.p[name].size for name in decayed)
    assert (training.optimizer.decay == 0.5).sum() == size and (training.optimizer.decay != 0).sum() == size


# ---- Checkpoint ------------------------------------------------------------------------------------------------------


def test_resumed_training_has_exactly_the_losses_of_an_uninterrupted_one(run):
    options = "--steps", "30", "--eval-every", "10", "--accumulate", "2"
    whole = run(*options, "--out", "whole")
    first = run(*options, "--until", "13")
    assert first.losses == whole.losses[:13]
    resumed = run("--resume", "--eval-every", "10")  # the rest comes from the checkpoint
    assert resumed.losses == whole.losses
    assert resumed.validation == whole.validation
    with numpy.load("whole/checkpoint.npz") as a, numpy.load("out/checkpoint.npz") as b:
        assert all(numpy.array_equal(a[name], b[name]) for name in ("parameters", "m", "v"))


def test_a_signal_ends_the_run_with_a_whole_step(run, trainer, monkeypatch):
    options, step = ("--steps", "12"), trainer.Training.train_step
    whole = run(*options, "--out", "whole")

    def interrupted(training):
        loss = step(training)
        if len(training.losses) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return loss

    monkeypatch.setattr(trainer.Training, "train_step", interrupted)
    assert run(*options).losses == whole.losses[:5]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_checkpoint_is_replaced_as_a_whole(run, trainer, monkeypatch):
    run("--steps", "4", "--until", "2")
    before = Path("out/checkpoint.npz").read_bytes()

    def full_disk(stream, **arrays):
        stream.write(b"half a checkpoint")
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(numpy, "savez", full_disk)
        with pytest.raises(OSError, match="no space"):
            run("--resume")
    assert Path("out/checkpoint.npz").read_bytes() == before
    assert not [p for p in Path("out").iterdir() if p.name.startswith("checkpoint.npz.")]
    assert len(run("--resume").losses) == 4


# ---- Wrong input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("--heads 3", "--heads: must be a divisor of --d-model, 16, got 3"),
        ("--heads 1 --d-model 512", "--heads: must be so many that a head is at most 256 wide, got 1"),
        ("--steps 0", "--steps: must be a number from 1, got 0"),
        ("--warmup -1", "--warmup: must be a number from 0, got -1"),
        ("--temperature nan", "--temperature: must be a number from 0, got nan"),
        ("--lr 0", "--lr: must be a number above 0, got 0.0"),
        ("--lr inf", "--lr: must be a number above 0, got inf"),
        ("--beta1 1", "--beta1: must be at least 0 and less than 1, got 1.0"),
        ("--block-size 24", "--block-size: must be a power of two from 16 to 256, got 24"),
        ("--steps 5 --until 6", "--until: must be at most --steps, 5, got 6"),
        ("--context 4000", "--text: must have more than 40000 characters for --context 4000, got "),
        ("--text nothing.txt", "--text: must be a file, got nothing.txt"),
        ("--text binary.txt", "--text: can't be read as UTF-8: "),
        ("--prompt xyz!", "--prompt: must be made of characters of the text, got xyz!"),
        ("--attention paged", "--attention: invalid choice: 'paged'"),
        ("--steps many", "--steps: invalid int value: 'many'"),
        ("--step 4", "unrecognized arguments: --step 4"),
        ("--resume", f"--resume: there is no checkpoint {Path('out/checkpoint.npz')}"),
        ("--out text.txt", "--out: can't be made: "),
    ],
)
def test_wrong_options_end_with_a_message(run, fails, arguments, message):
    Path("binary.txt").write_bytes(b"\xff\xfe\xff")
    assert message in fails(run, *arguments.split())
    assert not Path("out").exists()


def test_a_gpu_that_is_not_there_is_named(run, fails, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert "--device: cuda needs CuPy and a GPU: " in fails(run, "--device", "cuda")


def test_checkpoints_are_neither_lost_nor_mistaken(run, fails):
    run("--steps", "2", "--until", "1")
    assert "--resume goes on from it, --overwrite starts anew" in fails(run)
    assert "--resume: goes on from the checkpoint, and --overwrite" in fails(run, "--resume", "--overwrite")
    message = "--lr: must be 0.02 as in the checkpoint to resume, got 0.1"
    assert message in fails(run, "--resume", "--lr", "0.1")
    text = Path("text.txt").read_text()
    Path("text.txt").write_text(text[1:])
    assert "--resume: the text is not the one that" in fails(run, "--resume")
    Path("text.txt").write_text(text)
    for wrong in (b"", b"not an archive", b"PK\x03\x04 cut off"):
        Path("out/checkpoint.npz").write_bytes(wrong)
        assert "is not a checkpoint of this program" in fails(run, "--resume")
    numpy.savez("out/checkpoint.npz", about=json.dumps({"options": {}}))
    assert "is not a checkpoint of this program" in fails(run, "--resume")
    assert len(run("--overwrite", "--steps", "2").losses) == 2


def test_divergence_ends_with_a_message(run):
    with pytest.raises(SystemExit, match=r"the loss is (nan|inf) at step \d+: a smaller --lr may help"):
        with numpy.errstate(all="ignore"):
            run("--steps", "20", "--lr", "1e30", "--warmup", "0", "--clip", "0")


def test_progress_bar_is_redrawn_on_a_terminal(shared):
    class Terminal:
        def __init__(self):
            self.text = ""

        def write(self, text):
            self.text += text

        def flush(self):
            pass

        def isatty(self):
            return True

    progress = shared.Progress(4, 0, Terminal())
    progress.update(2, "loss 1.0")
    assert progress.stream.text.startswith("\r\x1b[K[############............] step 2/4  loss 1.0")
    assert "\n" not in progress.stream.text


def test_the_example_runs_the_flash_under_test(example):
    assert example("gpt").flash is flash
