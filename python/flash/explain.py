"""What a call would do, and what this installation can do, told by the library itself."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from flash._lib import lib, text
from flash.arrays import Array
from flash.call import Call
from flash.exceptions import FlashValueError
from flash.problem import ALL, check_names, wanted_gradients, write_problem

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from flash.problem import Options


class Explanation(Mapping[str, Any]):
    """What `explain` found, by name: ``explanation["flops"]`` or ``explanation.flops``. Printed, it is a table."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self._facts = facts

    def __getitem__(self, name: str) -> Any:
        return self._facts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._facts)

    def __len__(self) -> int:
        return len(self._facts)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["_facts"][name]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no fact {name!r}") from None

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._facts]

    def __repr__(self) -> str:
        return table(self._facts)


def explain(
    q: Array,
    k: Array,
    v: Array,
    *,
    backward: bool = False,
    wrt: Iterable[str] = ALL,
    deterministic: bool = False,
    **options: Unpack[Options],
) -> Explanation:
    """Which kernel and tiles would run and why not a faster one, and what it would cost. Nothing is computed.

    Parameters
    ----------
    q, k, v : arrays
        As in `flash.attention`.
    backward : bool
        Explain `flash.attention_backward`, with this `wrt` and `deterministic`, instead of `flash.attention`.
    wrt, deterministic, **options
        As in `flash.attention_backward`.

    Returns
    -------
    Explanation
        A mapping that prints as a table. Beside the kernel, its tiles and workspace:

        - `flops` come from the exact number of `visible_pairs` (an element mask isn't counted);
        - `bytes_read`, `bytes_written`: every element that is needed moves once, as if what is read again came from a
          cache;
        - `requested_bytes_read`, `requested_bytes_written`: what the CUDA kernels ask of memory and its caches, rows
          once for each tile that meets them, as the tiled algorithm has it (the paper's HBM accesses). Right to 2 %
          (read) and 5 % (written) of what the emulator counts from some hundreds of rows on; lists of blocks are left
          out. None on the CPU;
        - `standard_bytes`: what standard attention moves besides `bytes_read` and `bytes_written`, for its matrices of
          length x length: scores and probabilities, and their gradients;
        - `is_estimate`: lengths or block lists lie on a CUDA device and aren't read: whole sequences and the share of
          listed blocks stand for them;
        - `launches`: the CUDA kernels that would start, with their blocks, the threads and the shared memory of a
          block. Empty on the CPU.

    Raises
    ------
    FlashValueError, FlashTypeError, UnsupportedError
        As in `flash.attention`; and where no gradient is wanted.

    Examples
    --------
    >>> import numpy, flash
    >>> q = numpy.zeros((100, 4, 64), numpy.float32)
    >>> explanation = flash.explain(q, q, q, causal=True)
    >>> explanation.visible_pairs, explanation.operation
    (20200, 'forward')
    """
    check_names("explain", options)
    wanted = sum(wanted_gradients(wrt, options).values()) if backward else 0
    if backward and not wanted:
        raise FlashValueError("wrt: must name a gradient of an argument that is given, got none")
    with Call.on(q) as call:
        problem = write_problem(call, q, k, v, deterministic, **options)
        return Explanation(json.loads(text(lib.flash_explain, problem, wanted)))


def show_config(mode: Literal["stdout", "dicts"] = "stdout") -> dict[str, Any] | None:
    """Print what this installation is and can use: version, compiler, CPU paths, threads, CUDA devices.

    Parameters
    ----------
    mode : {"stdout", "dicts"}
        "dicts" returns the facts instead of printing them, as `numpy.show_config` does.

    Examples
    --------
    >>> import flash
    >>> flash.show_config(mode="dicts")["version"] == flash.__version__
    True
    """
    if mode not in ("stdout", "dicts"):
        raise FlashValueError(f"mode: must be 'stdout' or 'dicts', got {mode!r}")
    facts: dict[str, Any] = json.loads(text(lib.flash_config))
    if mode == "dicts":
        return facts
    print(table(facts))
    return None


def table(facts: Mapping[str, Any], indent: str = "") -> str:
    """Facts as lines of name and value; what they hold themselves is indented, or on one line where it is flat."""
    width = max((len(name) for name in facts), default=0)
    lines = []
    for name, value in facts.items():
        title = name.replace("_", " ") if name.isidentifier() else name  # a kernel's name stays as it is
        if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            for number, item in enumerate(value):
                lines += [f"{indent}{title} {number}", table(item, indent + "  ")]
        elif isinstance(value, Mapping) and any(isinstance(item, (str, list, Mapping)) for item in value.values()):
            lines += [f"{indent}{title}", table(value, indent + "  ")]
        else:
            lines.append(f"{indent}{title:<{width}}  {_value(name, value)}".rstrip())
    return "\n".join(lines)


def _value(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_value(key, item)}" for key, item in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(_value(name, item) for item in value) or "none"
    if name == "bytes" or "bytes" in name.split("_"):
        return _with_prefix(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))
    if name == "flops":
        return _with_prefix(value, 1000, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"))
    if isinstance(value, float) and value.is_integer():
        return f"{value:,.0f}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _with_prefix(value: float, base: int, units: tuple[str, ...]) -> str:
    for unit in units[:-1]:
        if value < base:
            return f"{value:.4g} {unit}"
        value /= base
    return f"{value:.4g} {units[-1]}"
