"""The command line of the benchmark. Whatever can't be measured is said before anything is."""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy

import flash
from flash._options import real, whole
from flash.bench.case import OPERATIONS, Case
from flash.bench.libraries import LIBRARIES, Missing, first_line
from flash.bench.measure import SAME
from flash.bench.peers import FLASH, PEERS
from flash.bench.report import read

# Of what depends on nothing else.
DEFAULTS: dict[str, Any] = {
    "operation": ["forward", "forward+backward"],
    "dtype": ["float32"],
    "length": [256, 512, 1024, 2048],
    "head_dim": [64],
    "window": [None],
    "block_sparse": [None],
    "block_size": 128,
    "dropout": 0.0,
    "device": "cpu",
}
ROUNDS = {"cpu": 31, "cuda": 100}
PRODUCT_SIZE = {"cpu": 2048, "cuda": 8192}
FILES = ("json", "png", "markdown", "input")


def parser_of() -> argparse.ArgumentParser:
    """What `--help` shows."""
    parser = argparse.ArgumentParser(
        prog="python -m flash bench",
        description="Times attention by flash and by what else is installed, in turn, on the CPU or on a GPU.",
        epilog="Options that take several values measure every combination. The number of threads is OpenMP's: "
        "OMP_NUM_THREADS=2 python -m flash bench. "
        "Sides for --peers: " + "; ".join(f"{name}, {peer.title}" for name, peer in PEERS.items()) + ".",
    )
    add = parser.add_argument_group("cases").add_argument
    add("--operation", nargs="+", choices=OPERATIONS, help="default: forward forward+backward")
    add("--dtype", nargs="+", choices=list(SAME), help="default: float32")
    add("--length", nargs="+", type=whole(1), metavar="N", help="of queries and keys, default: 256 512 1024 2048")
    add("--head-dim", nargs="+", type=whole(1), metavar="N", help="default: 64")
    add("--heads", type=whole(1), metavar="N", help="default: 8")
    add("--hidden", type=whole(1), metavar="N", help="heads times head dim, instead of --heads")
    add("--kv-heads", type=whole(1), metavar="N", help="of keys and values, default: as many as --heads")
    add("--batch", type=whole(1), metavar="N", help="default: 1")
    add("--tokens", type=whole(1), metavar="N", help="batch times length, instead of --batch")
    add("--causal", action="store_true", default=None, help="no query sees a later key; this is the default")
    add("--full", action="store_true", default=None, help="every query sees every key; with --causal: measure both")
    add("--window", nargs="+", type=whole(0), metavar="N", help="keys seen before a query and, unless causal, after it")
    share = real(lambda x: 0 < x <= 1, "above 0 and at most 1")
    add("--block-sparse", nargs="+", type=share, metavar="DENSITY", help="share of random blocks that a mask lists")
    sizes = (16, 32, 64, 128, 256)
    add("--block-size", type=int, choices=sizes, help="of --block-sparse, default: 128")
    dropout = real(lambda x: 0 <= x < 1, "at least 0 and below 1")
    add("--dropout", type=dropout, metavar="P", help="default: 0")
    add = parser.add_argument_group("what is compared, and how").add_argument
    add("--peers", nargs="*", choices=list(PEERS), metavar="NAME", help="default: all, but on the CPU not flex")
    add("--device", choices=["cpu", "cuda"], help="default: cpu")
    add("--array", choices=list(LIBRARIES), help="whose arrays flash gets, default: torch, else what is installed")
    positive = real(lambda x: x > 0, "above 0")
    add("--rounds", type=whole(1), metavar="N", help="of a case, at most; default: 31, on CUDA 100")
    add("--seconds", type=positive, metavar="S", help="for each side of a case, default: 0.25")
    add("--limit", type=positive, metavar="S", help="leave out what takes longer for one call, default: 1")
    add("--product-size", type=whole(1), metavar="N", help="of the matrix product, default: 2048, on CUDA 8192")
    add = parser.add_argument_group("results").add_argument
    add("--json", type=Path, metavar="FILE", help="store them, after each case")
    add("--png", type=Path, metavar="FILE", help="draw them, with matplotlib")
    add("--markdown", type=Path, metavar="FILE", help="write tables for documents")
    add("--input", type=Path, metavar="FILE", help="measure nothing: read what --json stored")
    return parser


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked, with `cases`, or for `--input` with `results`; leaves Python with 2 where one is wrong."""
    parser = parser_of()
    options = parser.parse_args(arguments)

    def refuse(name: str, why: object) -> None:
        parser.error(f"argument --{name.replace('_', '-')}: {why}")

    given = {name for name, value in vars(options).items() if value is not None}
    for name in sorted(given & set(FILES) - {"input"}):
        path = getattr(options, name)
        if path.is_dir() or not os.access(path.parent, os.W_OK):
            refuse(name, f"{path} can't be written")
    if options.png is not None and importlib.util.find_spec("matplotlib") is None:
        refuse("png", "needs matplotlib, which is not installed")
    if options.input is not None:
        for name in sorted(given - {"input", "png", "markdown"}):
            refuse(name, "nothing is measured with --input")
        try:
            options.results = read(options.input)
        except ValueError as error:
            refuse("input", error)
        return options

    for one, other in (("hidden", "heads"), ("tokens", "batch")):
        if one in given and other in given:
            refuse(one, f"not allowed with --{other}")
    if "block_size" in given and "block_sparse" not in given:
        refuse("block_size", "needs --block-sparse")
    for name, value in DEFAULTS.items():
        if name not in given:
            setattr(options, name, value)
    # Compiling takes longer there than all the rest.
    options.not_asked = {"flex": "compiling takes long on the CPU: name it with --peers"}
    if "peers" in given or options.device == "cuda":
        options.not_asked = {}
    defaults = {
        "rounds": ROUNDS[options.device],
        "product_size": PRODUCT_SIZE[options.device],
        "seconds": 0.25,
        "limit": 1.0,
        "peers": [name for name in PEERS if name not in options.not_asked],
    }
    for name, value in defaults.items():
        if name not in given:
            setattr(options, name, value)
    for name in ("operation", "dtype", "length", "head_dim", "window", "block_sparse", "peers"):
        setattr(options, name, list(dict.fromkeys(getattr(options, name))))

    for dim in options.head_dim:
        if options.hidden is not None and options.hidden % dim:
            refuse("hidden", f"{options.hidden} is no multiple of the head dim {dim}")
        x = numpy.empty((1, 1, dim), numpy.float32)
        try:
            flash.explain(x, x, x)
        except flash.FlashError as error:
            refuse("head_dim", error)
    options.cases = []
    for case in cases(options):
        if case.heads % case.kv_heads:
            refuse("kv_heads", f"{case.kv_heads} must divide the {case.heads} heads")
        options.cases.append(case)
    try:
        options.array = array_of(options)
    except Missing as missing:
        refuse("array" if "array" in given else "device", missing)
    return options


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """Every combination; lengths change first."""
    masks = [True] * (options.causal or not options.full) + [False] * bool(options.full)
    for dtype, operation, causal, window, density, dim, length in product(
        options.dtype,
        options.operation,
        masks,
        options.window,
        options.block_sparse,
        options.head_dim,
        options.length,
    ):
        heads = options.hidden // dim if options.hidden else options.heads or 8
        batch = max(1, options.tokens // length) if options.tokens else options.batch or 1
        yield Case(
            operation=operation,
            dtype=dtype,
            batch=batch,
            length=length,
            heads=heads,
            kv_heads=options.kv_heads or heads,
            head_dim=dim,
            causal=causal,
            window=window,
            density=density,
            block_size=options.block_size,
            dropout=options.dropout,
        )


def array_of(options: argparse.Namespace) -> str:
    """The library whose arrays flash gets: tried on a small problem in every dtype."""
    why = []
    for name in [options.array] if options.array else ("torch", "numpy", "cupy", "jax"):
        try:
            library = LIBRARIES[name](options.device)
            for dtype in options.dtype:
                small = Case("forward", dtype, 1, 16, 1, 1, 16, True)
                arrays = [library.array(x, dtype) for x in small.inputs()]
                library.wait(library.call_of(FLASH.make(small, library, 0.0), "forward", *arrays)())
            return str(name)
        except (Missing, flash.FlashError) as error:
            why.append(str(error))
        except Exception as error:  # whatever a broken driver makes a library raise
            why.append(f"{name}: {first_line(error)}")
    raise Missing("; ".join(why))
