"""Train a small character-level GPT with `flash.attention`, on the CPU with NumPy or on a GPU with CuPy.

    python examples/train_gpt.py                                  two minutes on two cores, on Python's own source
    python examples/train_gpt.py --text FILE --steps 10000        on a text of yours, for longer
    python examples/train_gpt.py --attention standard             the same losses to rounding, slower
    python examples/train_gpt.py --resume                         go on after Ctrl-C, with the losses it would have had

The model and its gradients are in gpt.py, the options in gpt_options.py, the text, the loop and the checkpoint in
training.py; this file has the optimizer. The folder --out gets checkpoint.npz, losses.csv and, where matplotlib is
installed, losses.png.

Where other programs use the cores too, OMP_NUM_THREADS=1 is much faster: threads that wait for one another wait long.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy
import training
from gpt import GPT, Array
from gpt_options import Options
from training import Text, learning_rate


class AdamW:
    """Adam with decoupled weight decay, on all parameters as one vector.

        m = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g^2
        p = p - lr (m' / (sqrt(v') + 1e-8) + weight_decay p)       m' = m / (1 - beta1^step), v' likewise

    Loshchilov and Hutter, "Decoupled Weight Decay Regularization", arXiv:1711.05101, Algorithm 2. Only matrices decay.
    """

    def __init__(self, model: GPT, options: Options):
        self.model, self.options = model, options
        self.m, self.v = model.xp.zeros_like(model.parameters), model.xp.zeros_like(model.parameters)
        matrices = [model.xp.full(p.size, float(p.ndim == 2), p.dtype) for p in model.p.values()]
        self.decay = options.weight_decay * model.xp.concatenate(matrices)

    def step(self, step: int) -> None:
        """Move the parameters against the gradients."""
        p, g, o = self.model.parameters, self.model.gradients, self.options
        norm = math.sqrt(float((g * g).sum()))
        if o.clip and norm > o.clip:
            g *= o.clip / norm
        self.m += (1.0 - o.beta1) * (g - self.m)
        self.v += (1.0 - o.beta2) * (g * g - self.v)
        m, v = self.m / (1.0 - o.beta1**step), self.v / (1.0 - o.beta2**step)
        p -= learning_rate(o, step) * (m / (self.model.xp.sqrt(v) + 1e-8) + self.decay * p)


class Training(training.Training):
    """Training with NumPy or CuPy."""

    def make(self) -> None:
        self.xp = array_library(self.options.device)
        self.model = GPT(self.shape, self.xp, self.options.dtype, self.options.seed)
        self.optimizer = AdamW(self.model, self.options)

    def accumulate(self, batches: Iterator[tuple[Array, Array]]) -> float:
        loss = 0.0
        self.model.gradients[...] = 0.0
        for tokens, targets in batches:
            part, backward = self.model.loss(self.xp.asarray(tokens), self.xp.asarray(targets))
            backward(1.0 / self.options.accumulate)
            loss += part / self.options.accumulate
        return loss

    def step(self, step: int) -> None:
        self.optimizer.step(step)

    def loss(self, tokens: Array, targets: Array) -> float:
        return self.model.loss(self.xp.asarray(tokens), self.xp.asarray(targets))[0]

    def scores(self, tokens: list[int]) -> list[float]:
        last: list[float] = self.model.logits(self.xp.asarray([tokens]))[0][-1].tolist()
        return last

    def arrays(self) -> dict[str, Array]:
        arrays = {"parameters": self.model.parameters, "m": self.optimizer.m, "v": self.optimizer.v}
        return {name: to_numpy(x) for name, x in arrays.items()}

    def set_arrays(self, arrays: Mapping[str, Array]) -> None:
        for name, x in (("parameters", self.model.parameters), ("m", self.optimizer.m), ("v", self.optimizer.v)):
            x[...] = self.xp.asarray(arrays[name])

    def parameters(self) -> int:
        return int(self.model.parameters.size)

    def peak_memory(self) -> int:
        if self.xp is numpy:
            return super().peak_memory()
        return int(self.xp.get_default_memory_pool().total_bytes())


def to_numpy(x: Array) -> Array:
    """A NumPy array with the values of a NumPy or CuPy array."""
    return x if isinstance(x, numpy.ndarray) else x.get()


def array_library(device: str) -> Any:
    """NumPy, or CuPy if there is a GPU for it."""
    if device == "cpu":
        return numpy
    try:
        import cupy

        cupy.cuda.runtime.getDeviceCount()
    except Exception as error:
        raise ValueError(f"--device: cuda needs CuPy and a GPU: {error}") from None
    return cupy


def main(argv: Sequence[str] | None = None) -> training.Result:
    """Run the command line."""
    return training.run(argv, str(__doc__), Options, lambda options: Text, Training)


if __name__ == "__main__":
    main()
