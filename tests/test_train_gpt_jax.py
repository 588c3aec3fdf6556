"""examples/train_gpt_jax.py: its losses with each attention, its checkpoint, its sizes and its messages."""

from pathlib import Path

import numpy
import pytest

jax = pytest.importorskip("jax", reason="JAX is not installed")
pytest.importorskip("flash.jax")
jax.config.update("jax_disable_most_optimizations", True)  # compiling is what takes the time here

pytest_plugins = ["training_runs"]
QUICK = "--layers", "1", "--eval-batches", "1", "--overwrite"


@pytest.fixture
def run(program):
    """Runs a command line in an empty folder, on a text of random words."""

    def call(*arguments, name="train_gpt_jax"):
        return program(name, [*QUICK, *arguments])

    return call


def test_all_exact_attentions_give_the_losses_of_numpy(run):
    """To rounding: flash, standard attention and JAX's, and the gradients that gpt.py writes out."""
    common = "--steps", "8", "--accumulate", "2"
    wanted = run(*common, "--attention", "standard").losses
    tolerance = 64 * numpy.finfo("float32").eps
    for attention in ("flash", "sdpa"):
        numpy.testing.assert_allclose(run(*common, "--attention", attention).losses, wanted, rtol=tolerance)
    numpy.testing.assert_allclose(run(*common, name="train_gpt").losses, wanted, rtol=tolerance)


def test_block_sparse_attention_is_that_of_numpy(run):
    common = "--attention", "block-sparse", "--steps", "5"
    numpy.testing.assert_allclose(run(*common).losses, run(*common, name="train_gpt").losses, rtol=1e-5)


def test_loss_falls_and_results_are_written(run, capsys):
    """In bfloat16 and with dropout, as GPT-2 small is trained."""
    options = "--steps", "40", "--sample", "12", "--prompt", "the", "--dropout", "0.1", "--dtype", "bfloat16"
    result = run(*options, "--eval-every", "20")
    (first, before), *_, (last, after) = result.validation
    assert (first, last) == (0, 40) and after < 0.8 * before
    assert result.sample.startswith("the") and len(result.sample) == 15
    output = capsys.readouterr().out
    assert "tokens/s" in output and "peak memory" in output and "step 40/40" in output
    assert Path("out/losses.csv").read_text().startswith("step,training,validation\n")


def test_resumed_training_has_exactly_the_losses_of_an_uninterrupted_one(run, example):
    """Those with dropout, too, which depends on the step."""
    options = "--steps", "8", "--eval-every", "4", "--dropout", "0.2"
    whole = run(*options, "--out", "whole")
    first = run(*options, "--until", "3")
    assert first.losses == whole.losses[:3]
    arguments = ["--text", "text.txt", "--out", "out", "--resume", "--eval-every", "4", "--sample", "0"]
    resumed = example("train_gpt_jax").main([*arguments, "--eval-batches", "1"])
    assert resumed.losses == whole.losses and resumed.validation == whole.validation
    with numpy.load("whole/checkpoint.npz") as a, numpy.load("out/checkpoint.npz") as b:
        assert set(a) == set(b)
        assert all(numpy.array_equal(a[name], b[name]) for name in a if name != "about")


def test_gpt2_small_is_gpt2_small(example):
    """The sizes and options of the preset, without their memory."""
    options = example("train_gpt_jax").Options(**example("train_gpt_jax").Options.presets["gpt2-small"])
    assert (options.accumulate, options.dropout, options.beta1, options.beta2) == (16, 0.1, 0.9, 0.95)
    assert options.dtype == "bfloat16"
    gpt = example("gpt")
    shape = gpt.Shape(options.vocabulary, options.context, options.layers, options.heads, options.d_model)
    named = gpt.GPT.parameter_shapes(type("Sized", (), {"shape": shape})())
    p = {name: jax.ShapeDtypeStruct(s, "float32") for name, s in named.items()}
    assert sum(x.size for x in p.values()) == 124_356_864  # the published 124,439,808, without the biases of products
    tokens = jax.ShapeDtypeStruct((2, options.context), "int32")
    key = jax.eval_shape(lambda: jax.random.key(0))

    def loss(p, tokens, key):
        drop = example("gpt_jax").Dropout(options.dropout, key)
        return example("gpt_jax").loss(shape, p, tokens, tokens, options.dtype, drop)

    gradients = jax.eval_shape(jax.grad(loss), p, tokens, key)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), gradients) == jax.tree.map(lambda x: (x.shape, x.dtype), p)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--attention paged", "--attention: invalid choice: 'paged'"),
        ("--dtype float64", "--dtype: invalid choice: 'float64'"),
        ("--dropout 1", "--dropout: must be at least 0 and less than 1, got 1.0"),
        ("--device cuda", "--device: must be cpu where JAX has no GPU, got cuda"),
    ],
)
def test_wrong_options_end_with_a_message(run, fails, arguments, message):
    if "cuda" in arguments and jax.default_backend() == "gpu":
        pytest.skip("JAX has a GPU here")
    assert message in fails(run, *arguments.split())
