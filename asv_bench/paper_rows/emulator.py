"""CUDA kernels on the emulator of the tests, for what it counts. paper.py starts a process with its library."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

from .row import ROOT

sys.path.append(str(ROOT / "tests"))

import emulated
import numpy

import flash

DEVICES = {"8.0": emulated.AMPERE, "8.6": emulated.SMALL, "9.0": emulated.HOPPER}


class Counted(NamedTuple):
    """Bytes that a call asked for, and those predicted."""

    read: int
    written: int
    of_keys: int  # k and v among those read
    predicted: int  # read and written
    needed: int  # every element once

    @property
    def total(self) -> int:
        return self.read + self.written


class Emulator:
    """Stands where a device does."""

    kind = "emulator"
    about = "the kernels' PTX, run on the CPU"

    def __init__(self) -> None:
        if emulated.lib is None:
            raise SystemExit("FLASH_LIBRARY is not an emulated library")
        if "cupy" not in sys.modules:
            emulated.install()

    def attention(self, q: Any, k: Any, v: Any, **options: Any) -> Any:
        """Of NumPy's arrays, on Hopper."""
        with emulated.Device(emulated.HOPPER), emulated.running(checks=0):
            options = {name: emulated.asarray(x) for name, x in options.items()}
            return emulated.asnumpy(flash.attention(*map(emulated.asarray, (q, k, v)), **options))

    def count(self, capability: str, length: int, dim: int, backward: bool = False, block: int = 0) -> Counted:
        """Of one head in float16. block: rows of a block mask that lists everything, so that tiles have no more."""
        rng = numpy.random.default_rng(3)
        with emulated.Device(DEVICES[capability]), emulated.running(checks=emulated.TRAFFIC):
            q, k, v, do = (emulated.asarray(rng.normal(size=(length, 1, dim)).astype("f2")) for _ in range(4))
            options: dict[str, Any] = {}
            if block:
                shape = -(-length // block), -(-length // 64)
                everything = numpy.ones(shape, bool)
                options["block_mask"] = flash.BlockMask.from_dense(everything, (block, 64), Lq=length, Lk=length)
            told: Any = flash.explain(q, k, v, backward=backward, **options)
            emulated.launches()
            o, lse = flash.attention(q, k, v, return_lse=True, **options)
            if backward:
                emulated.launches()
                flash.attention_backward(do, q, k, v, o, lse, **options)
            launches = emulated.launches()
        buffers = [x for launch in launches for x in launch["buffers"] if not x["name"].endswith(" int32")]  # no lists
        read, written, added = (
            sum(x[name] for x in buffers) for name in ("read_sectors", "written_sectors", "atomic_bytes")
        )
        keys = {x.host.__array_interface__["data"][0] for x in (k, v)}
        of_keys = sum(x["read_bytes"] for x in buffers if x["address"] in keys)
        predicted = round(told.requested_bytes_read + told.requested_bytes_written)
        needed = round(told.bytes_read + told.bytes_written)
        return Counted(32 * read, 32 * written + added, of_keys, predicted, needed)
