"""Train a small character-level GPT with `flash.attention`, on the CPU with NumPy or on a GPU with CuPy.

    python examples/train_gpt.py                                  two minutes on two cores, on Python's own source
    python examples/train_gpt.py --text FILE --steps 10000        on a text of yours, for longer
    python examples/train_gpt.py --attention standard             the same losses to rounding, slower
    python examples/train_gpt.py --resume                         go on after Ctrl-C, with the losses it would have had

The model and its gradients are in gpt.py, the options in gpt_options.py; this file has the text, the optimizer, the
loop and the checkpoint. The folder --out gets checkpoint.npz, losses.csv and, where matplotlib is installed,
losses.png.

Where other programs use the cores too, OMP_NUM_THREADS=1 is much faster: threads that wait for one another wait long.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import os
import signal
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy
from gpt import GPT, Array, Shape
from gpt_options import Options, parse, require

UNKNOWN = "\N{REPLACEMENT CHARACTER}"  # what characters outside the vocabulary become
STDLIB_LIMIT = 2_000_000  # characters of Python's source to read: more than the default run sees


class Text:
    """A text as numbers: nine tenths to learn from, the last tenth to validate on."""

    def __init__(self, text: str, vocabulary: int, context: int):
        self.digest = hashlib.sha256(text.encode()).hexdigest()
        counts = Counter(text)
        if len(counts) > vocabulary:
            # The more frequent first; where equally frequent, by code, so that the choice is always the same.
            kept = sorted(counts, key=lambda c: (-counts[c], c))[: vocabulary - 1]
            self.characters = sorted({*kept, UNKNOWN})
        else:
            self.characters = sorted(counts)
        self.number = {c: i for i, c in enumerate(self.characters)}
        tokens = numpy.array(self.encode(text), numpy.int32)
        end = len(tokens) * 9 // 10
        self.training, self.validation = tokens[:end], tokens[end:]
        if len(self.validation) <= context:
            wanted = f"more than {10 * context} characters for --context {context}"
            raise ValueError(f"--text: must have {wanted}, got {len(text)}")

    def encode(self, text: str) -> list[int]:
        """Characters as numbers. KeyError for one that isn't in a text whose characters all have a number."""
        unknown = self.number.get(UNKNOWN)
        return [self.number[c] if unknown is None else self.number.get(c, unknown) for c in text]

    def decode(self, tokens: Sequence[int]) -> str:
        """Numbers as characters."""
        return "".join(self.characters[i] for i in tokens)


def read_text(file: str) -> str:
    """The text of a file, or the beginning of the standard library's source, its files in order of their names."""
    if file:
        try:
            return Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"--text: can't be read as UTF-8: {error}") from None
    root = Path(sysconfig.get_path("stdlib"))
    elsewhere = {"site-packages", "dist-packages", "test", "tests", "idlelib"}
    parts, size = [], 0
    for path in sorted(root.rglob("*.py")):
        if not elsewhere & set(path.relative_to(root).parts) and size < STDLIB_LIMIT:
            parts.append(path.read_text(encoding="utf-8", errors="replace"))
            size += len(parts[-1])
    if not parts:
        raise ValueError(f"--text: must be given, as there is no Python source in {root}")
    return "".join(parts)[:STDLIB_LIMIT]


def windows(tokens: Array, begins: Array, length: int, xp: Any) -> tuple[Array, Array]:
    """The tokens from each of `begins`, and those one later, which are to be predicted: both (B, length)."""
    stretches = tokens[begins[:, None] + numpy.arange(length + 1)]
    return xp.asarray(stretches[:, :-1]), xp.asarray(stretches[:, 1:])


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

    def learning_rate(self, step: int) -> float:
        """Of step 1, 2, ...: a straight line up to --lr, then half a cosine down to a tenth of it."""
        lr, warmup, steps = self.options.lr, self.options.warmup, self.options.steps
        if step < warmup:
            return lr * step / warmup
        progress = (step - warmup) / max(1, steps - warmup)
        return lr * (0.1 + 0.45 * (1.0 + math.cos(math.pi * progress)))

    def step(self, step: int) -> None:
        """Move the parameters against the gradients."""
        p, g, o = self.model.parameters, self.model.gradients, self.options
        norm = math.sqrt(float((g * g).sum()))
        if o.clip and norm > o.clip:
            g *= o.clip / norm
        self.m += (1.0 - o.beta1) * (g - self.m)
        self.v += (1.0 - o.beta2) * (g * g - self.v)
        m, v = self.m / (1.0 - o.beta1**step), self.v / (1.0 - o.beta2**step)
        p -= self.learning_rate(step) * (m / (self.model.xp.sqrt(v) + 1e-8) + self.decay * p)


class Result(NamedTuple):
    """What a training came to."""

    losses: list[float]  # one a step
    validation: list[tuple[int, float]]  # (step, loss)
    sample: str


class Training:
    """A model on its way: all that changes while it learns is here, and in a checkpoint."""

    def __init__(self, options: Options, text: Text):
        self.options, self.text = options, text
        o = options
        self.xp = array_library(o.device)
        sizes = len(text.characters), o.context, o.layers, o.heads, o.d_model
        self.model = GPT(Shape(*sizes, o.attention, o.block_size, o.window), self.xp, o.dtype, o.seed)
        self.optimizer = AdamW(self.model, o)
        self.generator = numpy.random.default_rng([o.seed, 1])  # of the batches
        self.losses: list[float] = []
        self.validation: list[tuple[int, float]] = []
        if o.resume:
            self.load()

    def train_step(self) -> float:
        """One step of the optimizer; the loss before it, over all its batches."""
        o, loss = self.options, 0.0
        self.model.gradients[...] = 0.0
        for _ in range(o.accumulate):
            begins = self.generator.integers(len(self.text.training) - o.context, size=o.batch)
            part, backward = self.model.loss(*windows(self.text.training, begins, o.context, self.xp))
            backward(1.0 / o.accumulate)
            loss += part / o.accumulate
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} at step {len(self.losses) + 1}: a smaller --lr may help")
        self.losses.append(loss)
        self.optimizer.step(len(self.losses))
        return loss

    def validate(self) -> float:
        """The loss on sequences that lie evenly over the validation text: always the same ones."""
        o, tokens = self.options, self.text.validation
        begins = numpy.linspace(0, len(tokens) - o.context - 1, o.eval_batches * o.batch).astype(numpy.int64)
        parts = [
            self.model.loss(*windows(tokens, begins[i : i + o.batch], o.context, self.xp))[0]
            for i in range(0, len(begins), o.batch)
        ]
        self.validation.append((len(self.losses), sum(parts) / len(parts)))
        return self.validation[-1][1]

    def sample(self) -> str:
        """What the model writes after the prompt."""
        o = self.options
        generator = numpy.random.default_rng([o.seed, 2])
        prompt = self.text.encode(first_characters(o, self.text))
        return self.text.decode(self.model.generate(prompt, o.sample, o.temperature, generator))

    def save(self) -> None:
        """Write the checkpoint: first beside it, then renamed over it, so that there always is a whole one."""
        arrays = {"parameters": self.model.parameters, "m": self.optimizer.m, "v": self.optimizer.v}
        about = {
            "options": dataclasses.asdict(self.options),
            "text": self.text.digest,
            "generator": self.generator.bit_generator.state,
            "losses": self.losses,  # JSON gives every bit of a float back
            "validation": self.validation,
        }
        file = self.options.checkpoint
        beside = file.with_name(f"{file.name}.{os.getpid()}")
        try:
            with open(beside, "wb") as stream:
                numpy.savez(stream, about=json.dumps(about), **{name: to_numpy(x) for name, x in arrays.items()})
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(beside, file)
        finally:
            beside.unlink(missing_ok=True)

    def load(self) -> None:
        """Go back to where the checkpoint was written."""
        with numpy.load(self.options.checkpoint) as stored:
            about = json.loads(str(stored["about"]))
            if about["text"] != self.text.digest:
                raise ValueError("--resume: the text is not the one that the checkpoint was trained on")
            self.model.parameters[...] = self.xp.asarray(stored["parameters"])
            self.optimizer.m[...] = self.xp.asarray(stored["m"])
            self.optimizer.v[...] = self.xp.asarray(stored["v"])
        self.generator.bit_generator.state = about["generator"]
        self.losses = about["losses"]
        self.validation = [(step, loss) for step, loss in about["validation"]]


def make_folder(name: str) -> None:
    """Make the folder for the results, if it isn't there."""
    try:
        Path(name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out: can't be made: {error}") from None


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


def first_characters(options: Options, text: Text) -> str:
    """The prompt of the sample."""
    return options.prompt or ("\n" if "\n" in text.number else text.characters[0])


class Progress:
    """A bar that is redrawn in place where the output is a terminal, and otherwise a line now and then."""

    def __init__(self, total: int, done: int, stream: Any = None):
        self.stream = stream or sys.stdout
        self.total, self.first, self.start, self.drawn = total, done, time.perf_counter(), 0.0
        self.terminal = self.stream.isatty()
        self.every = 0.1 if self.terminal else 5.0  # seconds

    def update(self, done: int, message: str) -> None:
        """Say how far it is."""
        now = time.perf_counter()
        if now - self.drawn < self.every and done < self.total:
            return
        self.drawn = now
        left = (now - self.start) / max(1, done - self.first) * (self.total - done)
        text = f"step {done}/{self.total}  {message}  {int(left) // 60}:{int(left) % 60:02d} left"
        if self.terminal:
            filled = 24 * done // self.total
            self.stream.write(f"\r\x1b[K[{'#' * filled}{'.' * (24 - filled)}] {text}")
        else:
            self.stream.write(f"{text}\n")
        self.stream.flush()

    def line(self, text: str) -> None:
        """Write a line that stays."""
        self.stream.write(("\r\x1b[K" if self.terminal else "") + text + "\n")
        self.stream.flush()
        self.drawn = 0.0 if self.terminal else self.drawn


class Interrupt:
    """While it is entered, Ctrl-C and SIGTERM only raise a flag, so that a step is always whole."""

    def __enter__(self) -> Interrupt:
        self.raised = False
        self.before = {number: signal.signal(number, self._raise) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _raise(self, *_: object) -> None:
        self.raised = True


def train(training: Training) -> Result:
    """Train, or go on training, and write the results."""
    options, text = training.options, training.text
    o, end = options, options.until or options.steps
    progress = Progress(end, len(training.losses))
    progress.line(
        f"{training.model.parameters.size:,} parameters, {len(text.training):,} characters to learn from, "
        f"{len(text.validation):,} to validate on, {len(text.characters)} different ones; {o.attention} attention"
    )
    if not training.losses:
        progress.line(f"step 0: validation loss {training.validate():.4f} nats a character")
    seconds, steps = 0.0, 0
    with Interrupt() as interrupt:
        while len(training.losses) < end and not interrupt.raised:
            start = time.perf_counter()
            loss = training.train_step()
            seconds, steps = seconds + time.perf_counter() - start, steps + 1
            step = len(training.losses)
            progress.update(step, f"loss {loss:.3f}  {steps * o.tokens_per_step / seconds:,.0f} tokens/s")
            if step % o.eval_every == 0 or step == o.steps:
                progress.line(f"step {step}: validation loss {training.validate():.4f}")
            if step % o.checkpoint_every == 0:
                training.save()
        training.save()
    sample = ""
    if len(training.losses) < o.steps:
        progress.line(f"stopped after step {len(training.losses)} of {o.steps}: --resume goes on from there")
    elif o.sample:
        sample = training.sample()
        progress.line(f"a sample of {o.sample} characters:\n{'-' * 72}\n{sample}\n{'-' * 72}")
    plot_losses(Path(o.out), training.losses, training.validation)
    if steps:
        progress.line(f"{steps} steps in {seconds:.0f} s: {steps * o.tokens_per_step / seconds:,.0f} tokens/s")
    progress.line(f"results in {o.out}: {', '.join(sorted(p.name for p in Path(o.out).iterdir()))}")
    return Result(training.losses, training.validation, sample)


def plot_losses(folder: Path, losses: list[float], validation: list[tuple[int, float]]) -> None:
    """Write losses.csv, and losses.png where matplotlib is installed."""
    seen = dict(validation)
    rows = [f"{i},{losses[i - 1] if i else ''},{seen.get(i, '')}" for i in range(len(losses) + 1)]
    (folder / "losses.csv").write_text("\n".join(["step,training,validation", *rows]) + "\n")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(range(1, len(losses) + 1), losses, linewidth=0.8, label="training")
    axes.plot(list(seen), list(seen.values()), "o-", label="validation")
    axes.set(xlabel="step", ylabel="loss, nats a character")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(folder / "losses.png", dpi=120)


def main(argv: Sequence[str] | None = None) -> Result:
    """Run the command line; wrong options end the program with a message, before any work."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0], allow_abbrev=False)
    try:
        options = parse(parser, argv)
        text = Text(read_text(options.text), options.vocabulary, options.context)
        known = UNKNOWN in text.number or set(options.prompt) <= text.number.keys()
        require(known, options, "prompt", "made of characters of the text")
        training = Training(options, text)
        make_folder(options.out)
    except ValueError as error:
        parser.error(str(error))
    try:
        return train(training)
    except FloatingPointError as error:
        sys.exit(f"{parser.prog}: {error}")


if __name__ == "__main__":
    main()
