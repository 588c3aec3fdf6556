"""What the training programs have in common: the text, the loop, its output, and the checkpoint.

A program gives `run` its options, how it makes a text, and a class derived from `Training` for what is computed.
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
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy
from gpt import Array, Shape, generate
from gpt_options import AnyOptions, ModelOptions, Options, parse, require

UNKNOWN = "\N{REPLACEMENT CHARACTER}"  # what characters outside the vocabulary become
GPT2_VOCABULARY = 50257
STDLIB_LIMIT = 2_000_000  # characters of Python's source to read: more than the default run sees


class Text:
    """A text as numbers: nine tenths to learn from, the last tenth to validate on."""

    unit = "character"  # what a number stands for

    def __init__(self, text: str, vocabulary: int, context: int):
        self.digest = hashlib.sha256(text.encode()).hexdigest()
        self.read(text, vocabulary)
        tokens = numpy.array(self.encode(text), numpy.int32)
        end = len(tokens) * 9 // 10
        self.training, self.validation = tokens[:end], tokens[end:]
        if len(self.validation) <= context:
            wanted = f"more than {10 * context} {self.unit}s for --context {context}"
            raise ValueError(f"--text: must have {wanted}, got {len(tokens)}")

    def read(self, text: str, vocabulary: int) -> None:
        """Choose the characters that are told apart."""
        counts = Counter(text)
        if len(counts) > vocabulary:
            # The more frequent first; where equally frequent, by code, so that the choice is always the same.
            kept = sorted(counts, key=lambda c: (-counts[c], c))[: vocabulary - 1]
            self.characters = sorted({*kept, UNKNOWN})
        else:
            self.characters = sorted(counts)
        self.number = {c: i for i, c in enumerate(self.characters)}

    @property
    def vocabulary(self) -> int:
        """How many numbers there are."""
        return len(self.characters)

    def prompt(self, options: Options) -> list[int]:
        """What the sample begins with, as numbers."""
        known = UNKNOWN in self.number or set(options.prompt) <= self.number.keys()
        require(known, options, "prompt", "made of characters of the text")
        return self.encode(options.prompt or ("\n" if "\n" in self.number else self.characters[0]))

    def encode(self, text: str) -> list[int]:
        """Characters as numbers. KeyError for one that isn't in a text whose characters all have a number."""
        unknown = self.number.get(UNKNOWN)
        return [self.number[c] if unknown is None else self.number.get(c, unknown) for c in text]

    def decode(self, tokens: Sequence[int]) -> str:
        """Numbers as characters."""
        return "".join(self.characters[i] for i in tokens)


class PairText(Text):
    """A text as byte pairs, by GPT-2's tokenizer."""

    unit = "token"

    def read(self, text: str, vocabulary: int) -> None:
        self.digest += " in byte pairs"
        self.pairs = byte_pairs()

    @property
    def vocabulary(self) -> int:
        return self.pairs.size

    def prompt(self, options: Options) -> list[int]:
        return self.encode(options.prompt or "\n")

    def encode(self, text: str) -> list[int]:
        return self.pairs.encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        return self.pairs.decode([int(token) for token in tokens])


class BytePairs(NamedTuple):
    """A tokenizer."""

    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]
    size: int


def byte_pairs() -> BytePairs:
    """GPT-2's tokenizer, from the first package that has it; both fetch its vocabulary at first use."""
    reasons = []
    try:
        import tiktoken

        encoding = tiktoken.get_encoding("gpt2")
        return BytePairs(encoding.encode_ordinary, encoding.decode, encoding.n_vocab)
    except Exception as error:
        reasons.append(f"tiktoken: {error}")
    try:
        from transformers import GPT2TokenizerFast

        tokenizer = GPT2TokenizerFast.from_pretrained("gpt2")
        if len(tokenizer) != GPT2_VOCABULARY:  # without a network there may be an empty one
            raise ValueError(f"its vocabulary has {len(tokenizer)} tokens, not GPT-2's {GPT2_VOCABULARY}")
        return BytePairs(tokenizer.encode, tokenizer.decode, len(tokenizer))
    except Exception as error:
        reasons.append(f"transformers: {error}")
    shown = "; ".join(" ".join(reason.split())[:120] for reason in reasons)
    raise ValueError(f"--tokenizer: gpt2 must be had from tiktoken or transformers, but {shown}")


def text_type(options: ModelOptions) -> type[Text]:
    """What --tokenizer asks for."""
    if options.tokenizer == "auto":
        try:
            byte_pairs()
        except ValueError as error:
            print(f"{error}; so the tokens are characters", file=sys.stderr)
            return Text
    return Text if options.tokenizer == "characters" else PairText


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


def windows(tokens: Array, begins: Array, length: int) -> tuple[Array, Array]:
    """The tokens from each of `begins`, and those one later, which are to be predicted: both (B, length)."""
    stretches = tokens[begins[:, None] + numpy.arange(length + 1)]
    return stretches[:, :-1], stretches[:, 1:]


def learning_rate(options: Options, step: int) -> float:
    """Of step 1, 2, ...: a straight line up to --lr, then half a cosine down to a tenth of it."""
    lr, warmup, steps = options.lr, options.warmup, options.steps
    if step < warmup:
        return lr * step / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return lr * (0.1 + 0.45 * (1.0 + math.cos(math.pi * progress)))


class Result(NamedTuple):
    """What a training came to."""

    losses: list[float]  # one a step
    validation: list[tuple[int, float]]  # (step, loss)
    sample: str


class Training(ABC):
    """A model on its way: all that changes while it learns is here, and in a checkpoint.

    What is abstract is left to the array library or framework that computes.
    """

    def __init__(self, options: Options, text: Text):
        self.options, self.text = options, text
        self.make()
        self.generator = numpy.random.default_rng([options.seed, 1])  # of the batches
        self.losses: list[float] = []
        self.validation: list[tuple[int, float]] = []
        if options.resume:
            self.load()

    @property
    def shape(self) -> Shape:
        """That of the model."""
        o = self.options
        sizes = self.text.vocabulary, o.context, o.layers, o.heads, o.d_model
        return Shape(*sizes, o.attention, o.block_size, o.window)

    @abstractmethod
    def make(self) -> None:
        """Make the model and the optimizer."""

    @abstractmethod
    def accumulate(self, batches: Iterator[tuple[Array, Array]]) -> float:
        """The mean loss of batches of tokens and targets, whose gradients are kept for `step`."""

    @abstractmethod
    def step(self, step: int) -> None:
        """Step 1, 2, ... of the optimizer."""

    @abstractmethod
    def loss(self, tokens: Array, targets: Array) -> float:
        """The loss of one batch, without gradients."""

    @abstractmethod
    def scores(self, tokens: list[int]) -> list[float]:
        """What the model gives each token to be the next after these, at most --context ones."""

    @abstractmethod
    def arrays(self) -> dict[str, Array]:
        """NumPy arrays of all that a checkpoint must hold, beside losses and the generator of batches."""

    @abstractmethod
    def set_arrays(self, arrays: Mapping[str, Array]) -> None:
        """Take over what `arrays` gave."""

    @abstractmethod
    def parameters(self) -> int:
        """How many there are."""

    def peak_memory(self) -> int:
        """Bytes, of the process. Linux's getrusage would count the process that started this one, too."""
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))

    def train_step(self) -> float:
        """One step of the optimizer; the loss before it, over all its batches."""
        o, tokens = self.options, self.text.training
        begins = (self.generator.integers(len(tokens) - o.context, size=o.batch) for _ in range(o.accumulate))
        loss = self.accumulate(windows(tokens, b, o.context) for b in begins)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} at step {len(self.losses) + 1}: a smaller --lr may help")
        self.losses.append(loss)
        self.step(len(self.losses))
        return loss

    def validate(self) -> float:
        """The loss on sequences that lie evenly over the validation text: always the same ones."""
        o, tokens = self.options, self.text.validation
        begins = numpy.linspace(0, len(tokens) - o.context - 1, o.eval_batches * o.batch).astype(numpy.int64)
        parts = [
            self.loss(*windows(tokens, begins[i : i + o.batch], o.context)) for i in range(0, len(begins), o.batch)
        ]
        self.validation.append((len(self.losses), sum(parts) / len(parts)))
        return self.validation[-1][1]

    def sample(self) -> str:
        """What the model writes after the prompt."""
        o, generator = self.options, numpy.random.default_rng([self.options.seed, 2])
        tokens = self.text.prompt(o)
        return self.text.decode(generate(self.scores, o.context, tokens, o.sample, o.temperature, generator))

    def save(self) -> None:
        """Write the checkpoint: first beside it, then renamed over it, so that there always is a whole one."""
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
                numpy.savez(stream, about=json.dumps(about), **self.arrays())
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
            self.set_arrays(stored)
        self.generator.bit_generator.state = about["generator"]
        self.losses = about["losses"]
        self.validation = [(step, loss) for step, loss in about["validation"]]


def make_folder(name: str) -> None:
    """Make the folder for the results, if it isn't there."""
    try:
        Path(name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out: can't be made: {error}") from None


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
        f"{training.parameters():,} parameters, {len(text.training):,} {text.unit}s to learn from, "
        f"{len(text.validation):,} to validate on, {text.vocabulary} different ones; {o.attention} attention"
    )
    if not training.losses:
        progress.line(f"step 0: validation loss {training.validate():.4f} nats a {text.unit}")
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
        progress.line(f"a sample of {o.sample} {text.unit}s:\n{'-' * 72}\n{sample}\n{'-' * 72}")
    plot_losses(Path(o.out), training.losses, training.validation, text.unit)
    if steps:
        rate, memory = steps * o.tokens_per_step / seconds, training.peak_memory() / 2**30
        progress.line(f"{steps} steps in {seconds:.0f} s: {rate:,.0f} tokens/s; peak memory {memory:.2f} GiB")
    progress.line(f"results in {o.out}: {', '.join(sorted(p.name for p in Path(o.out).iterdir()))}")
    return Result(training.losses, training.validation, sample)


def plot_losses(folder: Path, losses: list[float], validation: list[tuple[int, float]], unit: str) -> None:
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
    axes.set(xlabel="step", ylabel=f"loss, nats a {unit}")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(folder / "losses.png", dpi=120)


def run(
    argv: Sequence[str] | None,
    description: str,
    options_type: type[AnyOptions],
    text_type: Callable[[AnyOptions], type[Text]],
    training_type: Callable[[AnyOptions, Text], Training],
) -> Result:
    """Train as a command line says; wrong options end the program with a message, before any work."""
    parser = argparse.ArgumentParser(description=description.partition("\n")[0], allow_abbrev=False)
    try:
        options = parse(parser, argv, options_type)
        text = text_type(options)(read_text(options.text), options.vocabulary, options.context)
        text.prompt(options)
        training = training_type(options, text)
        make_folder(options.out)
    except ValueError as error:
        parser.error(str(error))
    try:
        return train(training)
    except FloatingPointError as error:
        sys.exit(f"{parser.prog}: {error}")
