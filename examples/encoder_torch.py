"""Run an unmodified `torch.nn.TransformerEncoder` on padded batches, with PyTorch's attention and with flash.

    python examples/encoder_torch.py                               seconds on two cores
    python examples/encoder_torch.py --preset bert-base            BERT-base's sizes, 512 tokens
    python examples/encoder_torch.py --preset bert-base --device cuda --dtype bfloat16

As in BERT (Devlin et al., arXiv:1810.04805), every token sees every token but the padding behind its sequence. The
model knows nothing of flash: `flash.torch.use()` is around its calls. Printed are the time of a training step (forward
and backward) and of an evaluation, the peak memory of a step, and how far the two results are apart.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeAlias

import torch

import flash.torch

Tensor: TypeAlias = Any

PRESETS = {
    "small": {"layers": 2, "heads": 4, "d_model": 128, "length": 256, "batch": 4},
    "bert-base": {"layers": 12, "heads": 12, "d_model": 768, "length": 512, "batch": 4},
}
ATTENTIONS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "PyTorch": nullcontext,
    "flash": lambda: flash.torch.use(strict=True),
}


class Result(NamedTuple):
    """What one attention came to."""

    step_seconds: float
    evaluation_seconds: float
    peak_bytes: int | None  # of a step, beside what was there before; None where PyTorch doesn't count
    output: Tensor  # of the tokens that are no padding
    gradient: Tensor  # of the first layer's projections to q, k and v


class Encoder:
    """The model and a padded batch."""

    def __init__(self, options: argparse.Namespace):
        o = options
        torch.manual_seed(o.seed)
        self.device, self.dtype = torch.device(o.device), getattr(torch, o.dtype)
        layer = torch.nn.TransformerEncoderLayer(
            o.d_model, o.heads, 4 * o.d_model, o.dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.model = torch.nn.TransformerEncoder(layer, o.layers, enable_nested_tensor=False).to(self.device)
        lengths = torch.randint(o.length // 4, o.length + 1, (o.batch,))
        lengths[0] = o.length
        self.padding = (torch.arange(o.length) >= lengths[:, None]).to(self.device)  # True: no token
        self.x = torch.randn(o.batch, o.length, o.d_model).to(self.device)
        self.wanted = torch.randn(o.batch, o.length, o.d_model).to(self.device)

    def __call__(self) -> Tensor:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            output = self.model(self.x, src_key_padding_mask=self.padding)
        return output.float()[~self.padding]

    def step(self) -> tuple[Tensor, Tensor]:
        """Forward and backward of a squared distance; the output, and a gradient."""
        self.model.train().zero_grad()
        output = self()
        (output - self.wanted[~self.padding]).square().mean().backward()
        return output.detach(), self.model.layers[0].self_attn.in_proj_weight.grad.clone()

    def evaluate(self) -> None:
        with torch.inference_mode():
            self.model.eval()
            self()

    def seconds(self, call: Callable[[], Any]) -> float:
        start = time.perf_counter()
        call()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start


def compare(options: argparse.Namespace) -> dict[str, Result]:
    """Both attentions in turn, so that a busy machine slows both."""
    encoder = Encoder(options)
    found, peaks = {}, {}
    times: dict[tuple[str, str], list[float]] = {}
    for name, context in ATTENTIONS.items():
        with context():
            if encoder.device.type == "cuda":
                before = torch.cuda.memory_allocated()
                torch.cuda.reset_peak_memory_stats()
            torch.manual_seed(options.seed)
            found[name] = encoder.step()
            encoder.evaluate()
            peaks[name] = torch.cuda.max_memory_allocated() - before if encoder.device.type == "cuda" else None
    for _ in range(options.repeat):
        for name, context in ATTENTIONS.items():
            with context():
                times.setdefault((name, "step"), []).append(encoder.seconds(encoder.step))
                times.setdefault((name, "evaluation"), []).append(encoder.seconds(encoder.evaluate))
    return {
        name: Result(
            statistics.median(times[name, "step"]),
            statistics.median(times[name, "evaluation"]),
            peaks[name],
            *found[name],
        )
        for name in ATTENTIONS
    }


def difference(a: Tensor, b: Tensor) -> float:
    """The largest, as a share of the largest value."""
    return float((a - b).abs().max() / b.abs().max())


def main(argv: Sequence[str] | None = None) -> dict[str, Result]:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--preset", choices=PRESETS, default="small", help="sizes that aren't given (default: small)")
    for name in PRESETS["small"]:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int)
    parser.add_argument("--dropout", type=float, default=0.0, help="in training; the results then differ (default: 0)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeat", type=int, default=5, help="timed calls of each (default: 5)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    for name, value in PRESETS[options.preset].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    for name in (*PRESETS["small"], "repeat"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: must be at least 1, got {getattr(options, name)}")
    if options.d_model % options.heads:
        parser.error(f"--heads: must divide --d-model, {options.d_model}, got {options.heads}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: must be cpu where PyTorch has no GPU, got cuda")

    results = compare(options)
    o = options
    print(f"{o.layers} layers, {o.heads} heads, width {o.d_model}, {o.batch} sequences of up to {o.length}, {o.dtype}")
    print(f"{'':10}{'training step':>16}{'evaluation':>14}{'peak memory':>14}")
    for name, r in results.items():
        memory = "-" if r.peak_bytes is None else f"{r.peak_bytes / 2**20:.0f} MiB"
        print(f"{name:10}{1e3 * r.step_seconds:13.1f} ms{1e3 * r.evaluation_seconds:11.1f} ms{memory:>14}")
    pytorch, ours = results["PyTorch"], results["flash"]
    print(f"largest difference: output {difference(ours.output, pytorch.output):.1e}, ", end="")
    print(f"gradient {difference(ours.gradient, pytorch.gradient):.1e} of the largest value")
    return results


if __name__ == "__main__":
    main()
