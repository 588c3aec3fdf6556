"""Train a GPT with JAX and `flash.jax.attention`, on the CPU or on a GPU; nothing but JAX is needed.

    python examples/train_gpt_jax.py                               some minutes on two cores, on Python's own source
    python examples/train_gpt_jax.py --attention standard          the same losses to rounding
    python examples/train_gpt_jax.py --attention sdpa              jax.nn.dot_product_attention
    python examples/train_gpt_jax.py --preset gpt2-small --device cuda --text FILE           GPT-2 small
    python examples/train_gpt_jax.py --resume                      go on after Ctrl-C, with the losses it would have had

The model is in gpt_jax.py and the same as in gpt.py: without dropout, train_gpt.py has the same losses. The options
are in gpt_options.py, the text, the loop and the checkpoint in training.py. The folder --out gets checkpoint.npz,
losses.csv and, where matplotlib is installed, losses.png.

What it computes is three jitted functions: the gradients of one batch, a step of AdamW, and the scores of a next token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, TypeAlias

import gpt_jax
import jax
import jax.numpy as jnp
import numpy
import training
from gpt import Shape
from gpt_jax import ATTENTIONS, Array, Dropout, Parameters
from gpt_options import GPT2_SMALL, ModelOptions, option, require
from training import learning_rate, text_type

State: TypeAlias = tuple[Parameters, Parameters, Parameters]  # the parameters, and AdamW's sums m and v


@dataclasses.dataclass(frozen=True)
class Options(ModelOptions):
    """Everything that a run depends on."""

    # JAX always compiles.
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "gpt2-small": {name: value for name, value in GPT2_SMALL.items() if name != "compile"}
    }

    device: str = option("cpu", "where to compute", choices=("cpu", "cuda"))
    dtype: str = option("float32", "of products; norms and sums are float32", choices=("float32", "bfloat16"))
    attention: str = option("flash", "which to compute; sdpa: without dropout of probabilities", choices=ATTENTIONS)
    out: str = option("build/train_gpt_jax", "folder for the results", free=True, metavar="FOLDER")

    def check(self) -> None:
        super().check()
        try:
            jax.devices(self.device)
        except RuntimeError:
            require(False, self, "device", "cpu where JAX has no GPU")


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def add_gradients(
    shape: Shape, compute: str, dropout: float, p: Parameters, sums: Any, tokens: Array, targets: Array, key: Array
) -> Any:
    """The pair (loss, gradients), to which those of one batch have been added."""

    def of_batch(p: Parameters) -> Array:
        return gpt_jax.loss(shape, p, tokens, targets, compute, Dropout(dropout, key))

    return jax.tree.map(jnp.add, sums, jax.value_and_grad(of_batch)(p))


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def adamw(options: Options, state: State, gradients: Parameters, lr: Array, n: Array) -> State:
    """Step n of AdamW, as in train_gpt.py. gradients: the sums over the batches."""
    p, m, v = state
    o = options
    g = {name: x / o.accumulate for name, x in gradients.items()}
    norm = jnp.sqrt(sum((x * x).sum() for x in g.values()))
    factor = jnp.minimum(1.0, o.clip / norm) if o.clip else 1.0
    new: State = {}, {}, {}
    for name in p:
        x = factor * g[name]
        new[1][name] = m[name] + (1.0 - o.beta1) * (x - m[name])
        new[2][name] = v[name] + (1.0 - o.beta2) * (x * x - v[name])
        mean, square = new[1][name] / (1.0 - o.beta1**n), new[2][name] / (1.0 - o.beta2**n)
        decay = o.weight_decay if p[name].ndim == 2 else 0.0
        new[0][name] = p[name] - lr * (mean / (jnp.sqrt(square) + 1e-8) + decay * p[name])
    return new


@partial(jax.jit, static_argnums=(0, 1))
def loss_of(shape: Shape, compute: str, p: Parameters, tokens: Array, targets: Array) -> Array:
    """Without dropout."""
    return gpt_jax.loss(shape, p, tokens, targets, compute, Dropout(0.0, None))


@partial(jax.jit, static_argnums=(0, 1))
def scores_after(shape: Shape, compute: str, p: Parameters, tokens: Array, last: Array) -> Array:
    """What the model gives each token to come after tokens[last]; nothing behind it is looked at."""
    return gpt_jax.logits(shape, p, tokens[None], compute, Dropout(0.0, None))[0, last]


class Training(training.Training):
    """Training with JAX."""

    options: Options

    def make(self) -> None:
        o = self.options
        self.device = jax.devices(o.device)[0]
        with jax.default_device(self.device):
            self.p = gpt_jax.first_parameters(self.shape, o.seed)
            self.m, self.v = (jax.tree.map(jnp.zeros_like, self.p) for _ in "mv")
        self.key = jax.random.key(o.seed)  # of dropout; each batch of each step has its own

    def accumulate(self, batches: Iterator[tuple[Any, Any]]) -> float:
        o, step_key = self.options, jax.random.fold_in(self.key, len(self.losses))
        with jax.default_device(self.device):
            sums = jnp.zeros(()), jax.tree.map(jnp.zeros_like, self.p)
            for n, (tokens, targets) in enumerate(batches):
                key = jax.random.fold_in(step_key, n)
                sums = add_gradients(self.shape, o.dtype, o.dropout, self.p, sums, tokens, targets, key)
        total, self.gradients = sums
        return float(total) / o.accumulate  # once a step: a GPU is waited for

    def step(self, step: int) -> None:
        lr = learning_rate(self.options, step)
        self.p, self.m, self.v = adamw(self.options, (self.p, self.m, self.v), self.gradients, lr, step)

    def loss(self, tokens: Any, targets: Any) -> float:
        return float(loss_of(self.shape, self.options.dtype, self.p, tokens, targets))

    def scores(self, tokens: list[int]) -> list[float]:
        padded = numpy.zeros(self.options.context, numpy.int32)  # one length, so one program
        padded[: len(tokens)] = tokens
        last: list[float] = scores_after(self.shape, self.options.dtype, self.p, padded, len(tokens) - 1).tolist()
        return last

    def arrays(self) -> dict[str, Any]:
        return {
            f"{kind}.{name}": numpy.asarray(x)
            for kind, arrays in (("p", self.p), ("m", self.m), ("v", self.v))
            for name, x in arrays.items()
        }

    def set_arrays(self, arrays: Mapping[str, Any]) -> None:
        self.p, self.m, self.v = (
            {name: jax.device_put(arrays[f"{kind}.{name}"], self.device) for name in self.p} for kind in "pmv"
        )

    def parameters(self) -> int:
        return sum(int(x.size) for x in self.p.values())

    def peak_memory(self) -> int:
        known = self.device.memory_stats() or {}
        return int(known.get("peak_bytes_in_use", 0)) or super().peak_memory()


def main(argv: Sequence[str] | None = None) -> training.Result:
    """Run the command line."""
    return training.run(argv, str(__doc__), Options, text_type, Training)


if __name__ == "__main__":
    main()
