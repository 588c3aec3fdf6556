"""From the options of `flash.attention` to a `flash_problem`: the one place that reads them.

Checked here is only what C can't see: Python's types, and numbers that don't fit a C field. All else is checked, with
the same style of message, in the library.
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Iterable
from numbers import Real
from typing import Any, TypeAlias, TypedDict

import numpy as np

from flash._lib import ffi, lib
from flash.arrays import Array, is_array, shape_of, shown, tensor_at
from flash.block_mask import BlockMask
from flash.call import Call
from flash.exceptions import FlashTypeError, FlashValueError

Window: TypeAlias = tuple[int | None, int | None]


class Options(TypedDict, total=False):
    """The options that describe a problem: keyword arguments of every function that takes one."""

    scale: float | None
    causal: bool
    window: Window | None
    q_offset: int | Array | None
    q_lens: Array | None
    kv_lens: Array | None
    mask: Array | None
    bias: Array | None
    alibi_slopes: Array | None
    softcap: float | None
    sinks: Array | None
    block_mask: BlockMask | None
    dropout: float
    seed: int | Array
    q_scale: float | Array | None
    k_scale: float | Array | None
    v_scale: float | Array | None


_FIELDS = {"size_t": "Q", "uint64_t": "Q", "int64_t": "q", "double": "d"}


def layout(name: str) -> struct.Struct:
    """Packs the fields of a struct of flash.h, in their order. Pointers are given as addresses."""
    fields = ffi.typeof(name).fields
    return struct.Struct("=" + "".join(_FIELDS.get(field.type.cname, "Q") for _, field in fields))


_PROBLEM = layout("flash_problem")
_BLOCK_MASK = layout("flash_block_mask")
_PROBLEM_POINTER = ffi.typeof("flash_problem *")
_CAUSAL, _SCALE, _Q_OFFSET = lib.FLASH_CAUSAL, lib.FLASH_SCALE, lib.FLASH_Q_OFFSET
_WINDOW_LEFT, _WINDOW_RIGHT, _DETERMINISTIC = lib.FLASH_WINDOW_LEFT, lib.FLASH_WINDOW_RIGHT, lib.FLASH_DETERMINISTIC
_LOWEST, _HIGHEST = -(1 << 63), (1 << 63) - 1  # int64
_HIGHEST_SEED = (1 << 64) - 1
_GRADIENTS = {name: getattr(lib, f"FLASH_D{name.upper()}") for name in ("q", "k", "v", "bias", "sinks")}
ALL = tuple(_GRADIENTS)
NO_V: Any = object()  # stands for v where only the probabilities are wanted


def write_problem(
    call: Call,
    q: Array,
    k: Array,
    v: Array,
    deterministic: bool = False,
    /,
    scale: float | None = None,
    causal: bool = False,
    window: Window | None = None,
    q_offset: int | Array | None = None,
    q_lens: Array | None = None,
    kv_lens: Array | None = None,
    mask: Array | None = None,
    bias: Array | None = None,
    alibi_slopes: Array | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    block_mask: BlockMask | None = None,
    dropout: float = 0.0,
    seed: int | Array = 0,
    q_scale: float | Array | None = None,
    k_scale: float | Array | None = None,
    v_scale: float | Array | None = None,
) -> Any:
    """Writes a problem into the call's memory and returns the `flash_problem *`.

    `attention` passes its options by position, in this order, which is also that of its own signature: by name, 18 of
    them cost 0.8 us.
    """
    flags = 0
    if causal is not False and _flag(causal, "causal"):
        flags |= _CAUSAL
    if deterministic is not False and _flag(deterministic, "deterministic"):
        flags |= _DETERMINISTIC
    if scale is None:
        scale = 0.0
    else:
        scale = number(scale, "scale")
        flags |= _SCALE
    left, right = (None, None) if window is None else _window(window)
    if left is not None:
        flags |= _WINDOW_LEFT
    if right is not None:
        flags |= _WINDOW_RIGHT
    q_offsets = None
    if q_offset is not None:
        if is_array(q_offset):
            q_offsets = q_offset
        else:
            q_offset = integer(q_offset, "q_offset", _LOWEST, _HIGHEST)
            flags |= _Q_OFFSET
    seeds = None
    if type(seed) is not int and is_array(seed):
        seeds, seed = seed, 0
    elif type(seed) is not int or seed != 0:
        seed = integer(seed, "seed", 0, _HIGHEST_SEED)

    read = call.read
    q_address = read(q, "q")
    memory, offset, address = call.place(_PROBLEM.size)
    _PROBLEM.pack_into(
        memory,
        offset,
        _PROBLEM.size,
        q_address,
        read(k, "k"),
        0 if v is NO_V else read(v, "v"),
        0 if mask is None else read(mask, "mask"),
        0 if bias is None else read(bias, "bias"),
        0 if alibi_slopes is None else read(alibi_slopes, "alibi_slopes"),
        0 if sinks is None else read(sinks, "sinks"),
        0 if q_lens is None else read(q_lens, "q_lens"),
        0 if kv_lens is None else read(kv_lens, "kv_lens"),
        0 if q_offsets is None else read(q_offsets, "q_offset"),
        0 if q_scale is None else _read_scale(call, q_scale, "q_scale"),
        0 if k_scale is None else _read_scale(call, k_scale, "k_scale"),
        0 if v_scale is None else _read_scale(call, v_scale, "v_scale"),
        0 if seeds is None else read(seeds, "seed"),
        0 if block_mask is None else _read_block_mask(call, q, q_address, block_mask),
        scale,
        0.0 if softcap is None else number(softcap, "softcap"),
        dropout if type(dropout) is float else number(dropout, "dropout"),
        0 if q_offset is None or q_offsets is not None else q_offset,
        0 if left is None else left,
        0 if right is None else right,
        seed,
        flags,
    )
    return ffi.cast(_PROBLEM_POINTER, address)


def wanted_gradients(wrt: Iterable[str], options: Options) -> dict[str, int]:
    """The names and bits of the gradients that are asked for and whose argument is given."""
    if isinstance(wrt, str):
        raise FlashTypeError(f"wrt: must be a collection of names such as ('q', 'k'), got the string {wrt!r}")
    if wrt is ALL:
        names = set(ALL)
    else:
        try:
            names = set(wrt)
        except TypeError:
            raise FlashTypeError(f"wrt: must be a collection of names, got {shown(wrt)}") from None
        if not names <= _GRADIENTS.keys():
            unknown = ", ".join(sorted(map(repr, names - _GRADIENTS.keys())))
            raise FlashValueError(f"wrt: must name some of {', '.join(ALL)}, got {unknown}")
    for name in ("bias", "sinks"):
        if options.get(name) is None:
            names.discard(name)
    return {name: bit for name, bit in _GRADIENTS.items() if name in names}


def check_names(function: str, options: Options) -> None:
    """Raises what Python raises for a function without `**options`."""
    unknown = options.keys() - Options.__annotations__.keys()
    if unknown:
        raise TypeError(f"{function}() got an unexpected keyword argument {min(unknown)!r}")


def _read_scale(call: Call, x: float | Array, argument: str) -> int:
    return call.read(x if is_array(x) else call.scalar(number(x, argument)), argument)


def _read_block_mask(call: Call, q: Array, q_address: int, block_mask: BlockMask) -> int:
    if not isinstance(block_mask, BlockMask):
        raise FlashTypeError(f"block_mask: must be a flash.BlockMask, got {shown(block_mask)}")
    shape = shape_of(tensor_at(q_address))
    if len(shape) < 3:
        return 0  # the library says what is wrong with q
    lists = [call.read(x, "block_mask") for x in block_mask.lists_for(q, shape[:-3], shape[-2])]
    return call.write(_BLOCK_MASK, _BLOCK_MASK.size, block_mask.block_q, block_mask.block_k, *lists)


def _flag(x: Any, argument: str) -> bool:
    if not isinstance(x, (bool, np.bool_)):
        raise FlashTypeError(f"{argument}: must be a bool, got {shown(x)}")
    return bool(x)


def number(x: Any, argument: str) -> float:
    """A real number that isn't a bool, as a float."""
    if type(x) is float:
        return x
    if isinstance(x, (bool, np.bool_)) or not isinstance(x, Real):
        raise FlashTypeError(f"{argument}: must be a real number, got {shown(x)}")
    try:
        return float(x)
    except OverflowError:
        raise FlashValueError(f"{argument}: must fit a double, got an integer of {len(str(x))} digits") from None


def integer(x: Any, argument: str, lowest: int, highest: int) -> int:
    """An integer in a range, both ends included. bool isn't one; NumPy's integers are."""
    if isinstance(x, bool):
        raise FlashTypeError(f"{argument}: must be an int, got {shown(x)}")
    try:
        value = operator.index(x)
    except TypeError:
        raise FlashTypeError(f"{argument}: must be an int, got {shown(x)}") from None
    if not lowest <= value <= highest:
        raise FlashValueError(f"{argument}: must be {lowest} to {highest}, got {value}")
    return value


def _window(window: Any) -> tuple[int | None, int | None]:
    if isinstance(window, (str, bytes)) or is_array(window):
        raise FlashTypeError(f"window: must be None or a pair (left, right), got {shown(window)}")
    try:
        left, right = window
    except TypeError:
        raise FlashTypeError(f"window: must be None or a pair (left, right), got {shown(window)}") from None
    except ValueError:
        raise FlashValueError(f"window: must be None or a pair (left, right), got {shown(window)}") from None
    return (
        None if left is None else integer(left, "window_left", _LOWEST, _HIGHEST),
        None if right is None else integer(right, "window_right", _LOWEST, _HIGHEST),
    )
