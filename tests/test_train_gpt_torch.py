"""examples/train_gpt_torch.py: its losses with each attention, its checkpoint, its tokenizers and its messages."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

pytest_plugins = ["training_runs"]


@pytest.fixture
def run(program):
    return lambda *arguments, program_name="train_gpt_torch": program(program_name, arguments)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_all_exact_attentions_give_the_losses_of_numpy(run, dtype):
    """To rounding: 20 steps of flash, standard attention and PyTorch's, and of the gradients that gpt.py writes out."""
    tolerance = 64 * numpy.finfo(dtype).eps
    common = "--dtype", dtype, "--steps", "20", "--overwrite", "--accumulate", "2"
    # Both begin with the same float32 numbers; NumPy's program rounds its float64 ones.
    wanted = run(*common, "--attention", "standard").losses
    for attention in ("flash", "sdpa"):
        numpy.testing.assert_allclose(run(*common, "--attention", attention).losses, wanted, rtol=tolerance)
    if dtype == "float32":
        found = run(*common, program_name="train_gpt").losses
        numpy.testing.assert_allclose(found, wanted, rtol=tolerance)


def test_block_sparse_attention_is_that_of_numpy(run):
    common = "--attention", "block-sparse", "--steps", "10", "--overwrite"
    numpy.testing.assert_allclose(run(*common).losses, run(*common, program_name="train_gpt").losses, rtol=1e-5)


def test_loss_falls_and_results_are_written(run, capsys):
    result = run("--steps", "60", "--eval-every", "20", "--sample", "30", "--prompt", "the", "--dropout", "0.1")
    (first, before), *_, (last, after) = result.validation
    assert (first, last) == (0, 60) and after < 0.75 * before
    assert result.sample.startswith("the") and len(result.sample) == 33
    output = capsys.readouterr().out
    assert "tokens/s" in output and "peak memory" in output and "step 60/60" in output
    assert Path("out/losses.csv").read_text().startswith("step,training,validation\n")


def test_bfloat16_and_a_compiled_model_learn(run, monkeypatch):
    compiled = []

    def compile(model, fullgraph):
        compiled.append(model)
        return torch._dynamo.optimize("aot_eager", nopython=fullgraph)(model)

    monkeypatch.setattr(torch, "compile", compile)
    wanted = run("--steps", "12", "--dtype", "bfloat16", "--attention", "block-sparse", "--overwrite")
    found = run("--steps", "12", "--dtype", "bfloat16", "--attention", "block-sparse", "--overwrite", "--compile")
    numpy.testing.assert_allclose(found.losses, wanted.losses, rtol=1e-2)
    assert len(compiled) == 1 and found.losses[-1] < 0.9 * found.losses[0]


def test_resumed_training_has_exactly_the_losses_of_an_uninterrupted_one(run):
    """Those with dropout, whose generator is in the checkpoint."""
    options = "--steps", "20", "--eval-every", "10", "--dropout", "0.2"
    whole = run(*options, "--out", "whole")
    first = run(*options, "--until", "9")
    assert first.losses == whole.losses[:9]
    torch.manual_seed(12345)
    resumed = run("--resume", "--eval-every", "10")
    assert resumed.losses == whole.losses and resumed.validation == whole.validation
    with numpy.load("whole/checkpoint.npz") as a, numpy.load("out/checkpoint.npz") as b:
        assert set(a) == set(b)
        assert all(numpy.array_equal(a[name], b[name]) for name in a if name != "about")
    without = run("--steps", "20", "--overwrite")
    assert without.losses != whole.losses


def test_gpt2_small_is_gpt2_small(example, monkeypatch):
    """The sizes of the preset, without their memory."""
    shape = example("gpt").Shape
    options = example("gpt_options").GPT2_SMALL
    names = "vocabulary", "context", "layers", "heads", "d_model"
    model = example("gpt_torch").TorchGPT
    monkeypatch.setattr(model, "take_over", lambda self, model: None)
    monkeypatch.setattr("gpt_torch.GPT", lambda *_: None)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in model(shape(*(options[name] for name in names))).parameters())
    assert parameters == 124_356_864  # the published 124,439,808, without the biases of products
    assert (options["accumulate"], options["dropout"], options["beta1"], options["beta2"]) == (16, 0.1, 0.9, 0.95)


@pytest.fixture
def byte_pairs(monkeypatch):
    """A package tiktoken that has GPT-2's vocabulary: of its bytes."""
    encoding = SimpleNamespace(
        encode_ordinary=lambda text: list(text.encode()), decode=lambda tokens: bytes(tokens).decode(), n_vocab=50257
    )
    package = SimpleNamespace(get_encoding={"gpt2": encoding}.__getitem__)
    monkeypatch.setitem(sys.modules, "tiktoken", package)


@pytest.mark.parametrize("tokenizer", ["gpt2", "auto"])
def test_byte_pairs(run, byte_pairs, capsys, tokenizer):
    result = run("--tokenizer", tokenizer, "--steps", "2")
    assert result.losses[0] == pytest.approx(numpy.log(50257), rel=0.01)
    output = capsys.readouterr().out
    assert "50257 different ones" in output and "nats a token" in output


@pytest.fixture
def no_byte_pairs(monkeypatch):
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    monkeypatch.setitem(sys.modules, "transformers", None)


def test_without_byte_pairs_tokens_are_characters(run, no_byte_pairs, capsys):
    run("--tokenizer", "auto", "--steps", "1")
    output = capsys.readouterr()
    assert "so the tokens are characters" in output.err and "23 different ones" in output.out


def test_an_empty_vocabulary_of_transformers_is_none(run, no_byte_pairs, fails, monkeypatch):
    class Empty(list):
        def from_pretrained(name):
            return Empty([name])

    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(GPT2TokenizerFast=Empty))
    assert "its vocabulary has 1 tokens, not GPT-2's 50257" in fails(run, "--tokenizer", "gpt2")


def test_messages(run, no_byte_pairs, fails):
    assert "--tokenizer: gpt2 must be had from tiktoken or transformers" in fails(run, "--tokenizer", "gpt2")
    message = "--dropout: must be at least 0 and less than 1, got 1.0"
    assert message in fails(run, "--dropout", "1")
    if not torch.cuda.is_available():
        assert "--device: must be cpu where PyTorch has no GPU, got cuda" in fails(run, "--device", "cuda")
    assert "--preset: invalid choice: 'gpt3'" in fails(run, "--preset", "gpt3")
    assert "--attention: invalid choice: 'paged'" in fails(run, "--attention", "paged")
    assert not Path("out").exists()
