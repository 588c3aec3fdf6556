"""What a training run depends on: its options, on the command line and in a checkpoint.

These are train_gpt.py's. Another program derives from `Options`: a field of the same name takes its place.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy
from gpt import ATTENTIONS

T = TypeVar("T")
AnyOptions = TypeVar("AnyOptions", bound="Options")


def option(default: T, help: str, *, free: bool = False, **parser: Any) -> T:
    """A field of `Options` and its command-line option. free: may differ when a run is resumed."""
    field: T = dataclasses.field(default=default, metadata={"help": help, "free": free, "parser": parser})
    return field


@dataclasses.dataclass(frozen=True)
class Options:
    """Everything that a run depends on."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {}  # of an option "preset": values for what isn't given

    text: str = option("", "UTF-8 file to learn from; default: the source of Python's standard library", metavar="FILE")
    device: str = option("cpu", "cpu: NumPy; cuda: CuPy", choices=("cpu", "cuda"))
    dtype: str = option("float32", "of parameters and activations", choices=("float32", "float64"))
    attention: str = option("flash", "which attention to compute", choices=ATTENTIONS)
    block_size: int = option(32, "of block-sparse: side of a block, a power of two from 16 to 256")
    window: int = option(64, "of block-sparse: how many keys back a query sees, beside the first block")
    layers: int = option(4, "blocks of attention and MLP")
    heads: int = option(4, "attention heads; must divide d-model")
    d_model: int = option(128, "width of the model")
    context: int = option(128, "characters in a sequence")
    vocabulary: int = option(256, "characters told apart; the rarer ones count as one")
    batch: int = option(4, "sequences computed at once")
    accumulate: int = option(1, "batches whose gradients are added up in a step")
    steps: int = option(2000, "steps of the optimizer")
    lr: float = option(3e-3, "largest learning rate")
    warmup: int = option(100, "steps until the learning rate is at its largest; it then falls as a cosine to a tenth")
    beta1: float = option(0.9, "AdamW's memory of the gradient")
    beta2: float = option(0.99, "AdamW's memory of its square")
    weight_decay: float = option(0.1, "of the matrices only")
    clip: float = option(1.0, "largest norm of the gradient; 0 is off")
    seed: int = option(0, "of the first parameters, the batches and the sample")
    eval_every: int = option(250, "steps between looks at the validation text", free=True)
    eval_batches: int = option(16, "batches of validation text", free=True)
    checkpoint_every: int = option(250, "steps between checkpoints", free=True)
    until: int = option(0, "stop after this step, to be resumed; 0: don't", free=True)
    out: str = option("build/train_gpt", "folder for the results", free=True, metavar="FOLDER")
    resume: bool = option(False, "go on from the checkpoint in the folder", free=True)
    overwrite: bool = option(False, "start anew although the folder has a checkpoint", free=True)
    sample: int = option(400, "characters to write at the end", free=True)
    prompt: str = option("", "how the sample begins; default: a new line", free=True)
    temperature: float = option(0.8, "of the sample: 0 always takes the likeliest character", free=True)

    def check(self) -> None:
        """Raise ValueError if an option can't be right."""
        low = {name: 1 for name in ("layers", "heads", "d_model", "context", "window", "batch", "accumulate", "steps")}
        low |= {"vocabulary": 2, "eval_every": 1, "eval_batches": 1, "checkpoint_every": 1}
        low |= {name: 0 for name in ("warmup", "seed", "until", "sample", "weight_decay", "clip", "temperature")}
        for name, least in low.items():
            given = getattr(self, name)
            require(math.isfinite(given) and given >= least, self, name, f"a number from {least}")
        require(self.lr > 0 and math.isfinite(self.lr), self, "lr", "a number above 0")
        require(0 <= self.beta1 < 1, self, "beta1", "at least 0 and less than 1")
        require(0 <= self.beta2 < 1, self, "beta2", "at least 0 and less than 1")
        require(self.d_model % self.heads == 0, self, "heads", f"a divisor of --d-model, {self.d_model}")
        require(self.d_model // self.heads <= 256, self, "heads", "so many that a head is at most 256 wide")
        require(self.block_size in (16, 32, 64, 128, 256), self, "block_size", "a power of two from 16 to 256")
        require(self.until <= self.steps, self, "until", f"at most --steps, {self.steps}")
        require(self.text == "" or Path(self.text).is_file(), self, "text", "a file")

    def check_folder(self) -> None:
        """Raise ValueError if the folder's checkpoint, or that there is none, doesn't go with the options."""
        there = self.checkpoint.exists()
        if self.resume and self.overwrite:
            raise ValueError("--resume: goes on from the checkpoint, and --overwrite starts anew: give one of them")
        if self.resume and not there:
            raise ValueError(f"--resume: there is no checkpoint {self.checkpoint}")
        if there and not self.resume and not self.overwrite:
            raise ValueError(f"--out: {self.checkpoint} exists: --resume goes on from it, --overwrite starts anew")

    @property
    def checkpoint(self) -> Path:
        """The file that a run writes and resumes from."""
        return Path(self.out) / "checkpoint.npz"

    @property
    def tokens_per_step(self) -> int:
        """Over all accumulated batches."""
        return self.accumulate * self.batch * self.context


# Radford et al., "Language Models are Unsupervised Multitask Learners", 2019; the optimizer of Brown et al., "Language
# Models are Few-Shot Learners", arXiv:2005.14165, for its smallest model.
GPT2_SMALL: dict[str, Any] = {
    **{"tokenizer": "auto", "vocabulary": 50257, "context": 1024, "layers": 12, "heads": 12, "d_model": 768},
    **{"batch": 16, "accumulate": 16, "dropout": 0.1, "dtype": "bfloat16", "compile": True},
    **{"lr": 6e-4, "warmup": 700, "steps": 20000, "beta1": 0.9, "beta2": 0.95, "weight_decay": 0.1},
}


@dataclasses.dataclass(frozen=True)
class ModelOptions(Options):
    """What programs for frameworks have beside."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {"gpt2-small": GPT2_SMALL}

    preset: str = option("", "values for the options that aren't given", choices=("gpt2-small",))
    tokenizer: str = option(
        "characters",
        "what a token is; gpt2: byte pairs, by tiktoken or transformers; auto: gpt2 where it can be had",
        choices=("characters", "gpt2", "auto"),
    )
    dropout: float = option(0.0, "share of the activations and probabilities that is dropped in training")

    def check(self) -> None:
        super().check()
        require(0 <= self.dropout < 1, self, "dropout", "at least 0 and less than 1")


def require(right: bool, options: Options, name: str, wanted: str) -> None:
    """Raise ValueError with the option, what was wanted and what was given."""
    if not right:
        raise ValueError(f"--{name.replace('_', '-')}: must be {wanted}, got {getattr(options, name)}")


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None, kind: type[AnyOptions]) -> AnyOptions:
    """The options of a command line; with --resume, those that it doesn't give are the checkpoint's."""
    for field in dataclasses.fields(kind):
        flag = isinstance(field.default, bool)
        shown = "" if field.default in ("", False) else f" (default: {field.default})"
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            help=field.metadata["help"] + shown,
            default=argparse.SUPPRESS,
            **({"action": "store_true"} if flag else {"type": type(field.default)}),
            **field.metadata["parser"],
        )
    given = vars(parser.parse_args(argv))
    given = kind.presets.get(given.get("preset", ""), {}) | given
    options = kind(**given)
    options.check_folder()
    if options.resume:
        before = stored_options(options.checkpoint, kind)
        for name in before.keys() & given.keys():
            require(given[name] == before[name], options, name, f"{before[name]} as in the checkpoint to resume")
        options = dataclasses.replace(options, **before)
    options.check()
    return options


def stored_options(checkpoint: Path, kind: type[Options]) -> dict[str, Any]:
    """The options in a checkpoint that a resumed run must share."""
    names = [field.name for field in dataclasses.fields(kind) if not field.metadata["free"]]
    try:
        with open(checkpoint, "rb") as stream, numpy.load(stream) as stored:
            options = json.loads(str(stored["about"]))["options"]
            return {name: options[name] for name in names}
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"--resume: {checkpoint} is not a checkpoint of this program: {error}") from None
