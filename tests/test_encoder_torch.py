"""examples/encoder_torch.py: an unmodified encoder gives the same with flash, and wrong options are named."""

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch_tensors import calls_of_flash  # noqa: E402

pytest_plugins = ["training_runs"]

TINY = ["--heads", "2", "--d-model", "16", "--length", "40", "--batch", "3", "--repeat", "2"]


@pytest.fixture
def encoder(example):
    return example("encoder_torch")


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 3e-2)])
def test_flash_gives_what_pytorch_gives(encoder, capsys, monkeypatch, dtype, tolerance):
    calls = calls_of_flash(monkeypatch)
    results = encoder.main([*TINY, "--dtype", dtype])
    assert len(calls) == 2 * 2 * 3  # two layers; a step and an evaluation; once and twice for the times
    assert all(call["mask"] is not None or call["bias"] is not None for call in calls)  # the padding
    assert set(results) == {"PyTorch", "flash"}
    assert encoder.difference(results["flash"].output, results["PyTorch"].output) < tolerance
    assert encoder.difference(results["flash"].gradient, results["PyTorch"].gradient) < tolerance
    assert results["flash"].gradient.abs().max() > 0
    assert "largest difference" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("--heads 3", "--heads: must divide --d-model, 16, got 3"),
        ("--repeat 0", "--repeat: must be at least 1, got 0"),
        ("--preset large", "--preset: invalid choice: 'large'"),
    ],
)
def test_wrong_options_end_with_a_message(encoder, capsys, arguments, message):
    with pytest.raises(SystemExit):
        encoder.main([*TINY, *arguments.split()])
    assert message in capsys.readouterr().err
