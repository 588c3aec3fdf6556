"""What a probe gave on a GPU against what it gives on the emulator: the files of tests/emulator/probes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import ml_dtypes
import numpy as np

# The letters of columns: how many numbers a word holds, and what they are.
FORMATS = {"f": (np.float32, 23), "h": (np.float16, 10), "b": (ml_dtypes.bfloat16, 7)}
SIGNS = {"f": 0x80000000, "h": 0x80008000, "b": 0x80008000}


@dataclass
class Probe:
    """One probe of a file: its columns are (format, words) by name."""

    name: str
    text: str = ""
    tolerance: str = "exact"
    error: str = ""
    inputs: dict[str, tuple[str, np.ndarray]] = field(default_factory=dict)
    outputs: dict[str, tuple[str, np.ndarray]] = field(default_factory=dict)


def read(path: Path) -> dict[str, Probe]:
    """The probes of a file, by name."""
    probes: dict[str, Probe] = {}
    for line in path.read_text().splitlines():
        key, _, rest = line.partition(" ")
        if key == "probe":
            probe = probes[rest] = Probe(rest)
        elif key in ("in", "out"):
            name, letter, *words = rest.split(" ")
            columns = probe.inputs if key == "in" else probe.outputs
            columns[name] = letter, np.array([int(word, 16) for word in words], np.uint32)
        elif key in ("text", "tolerance", "error"):
            setattr(probe, key, rest)
    return probes


def write(path: Path, probes: dict[str, Probe]) -> None:
    """The probes as a file that the program reads."""
    lines = []
    for probe in probes.values():
        lines += [f"probe {probe.name}", f"text {probe.text}", f"tolerance {probe.tolerance}"]
        lines += [f"error {probe.error}"] if probe.error else []
        for key, columns in (("in", probe.inputs), ("out", probe.outputs)):
            for name, (letter, words) in columns.items():
                lines.append(" ".join([key, name, letter, *(f"{word:x}" for word in words)]))
    path.write_text("\n".join(lines) + "\n")


def magnitudes(probes: dict[str, Probe]) -> dict[str, Probe]:
    """The probes of sums with every input made positive: their outputs are the sums of the terms' magnitudes."""
    positive = {}
    for probe in probes.values():
        if probe.tolerance.startswith("sum"):
            inputs = {name: (f, words & ~np.uint32(SIGNS[f])) for name, (f, words) in probe.inputs.items()}
            positive[probe.name] = Probe(probe.name, probe.text, probe.tolerance, "", inputs)
    return positive


def numbers(letter: str, words: np.ndarray) -> np.ndarray:
    """What the words hold, in float64: one row a word."""
    dtype = FORMATS[letter][0]
    with np.errstate(invalid="ignore"):  # signalling NaNs
        return words.view(dtype).reshape(len(words), -1).astype(np.float64)


def spacing(letter: str, values: np.ndarray) -> np.ndarray:
    """One unit in the last place of each value."""
    dtype, fraction = FORMATS[letter]
    smallest = float(ml_dtypes.finfo(dtype).smallest_normal)
    exponent = np.floor(np.log2(np.clip(np.abs(values), smallest, float(ml_dtypes.finfo(dtype).max))))
    return 2.0 ** (exponent - fraction)


def allowed(tolerance: str, letter: str, wanted: np.ndarray, terms: np.ndarray | None) -> np.ndarray:
    """The largest deviation of each value from the emulator's, which is the exact one rounded."""
    words = tolerance.split(" ")
    limit = np.zeros_like(wanted)
    for kind, amount in zip(words[::2], words[1::2], strict=True):
        size = 2.0 ** float(amount[2:]) if amount.startswith("2^") else float(amount)
        if kind == "ulp":
            part = (size + 0.5) * spacing(letter, wanted)
        elif kind == "relative":
            part = size * np.abs(wanted) + 0.5 * spacing(letter, wanted)
        elif kind == "absolute":
            part = size + 0.5 * spacing(letter, wanted)
        else:
            assert kind == "sum" and terms is not None, tolerance
            part = size * 2.0**-23 * terms + spacing(letter, wanted)  # and one rounding
        limit = np.maximum(limit, part)
    return limit


@dataclass
class Comparison:
    """Of one probe: `different` says where, empty if all is well; `share` is the largest part used of the tolerance."""

    different: list[str]
    share: float = 0.0


def compare(recorded: Probe, emulated: Probe, positive: Probe | None = None) -> Comparison:
    """The outputs of a GPU and of the emulator; `positive` are the emulator's for magnitudes()."""
    result = Comparison([])
    if emulated.error:
        result.different.append(f"the emulator failed: {emulated.error}")
    if recorded.text != emulated.text:
        result.different.append("the probe has changed: record it again")
    if result.different:
        return result
    for name, (letter, words) in recorded.outputs.items():
        own = emulated.outputs[name][1]
        if letter == "x":
            bad = words != own
            got, wanted = words[:, None], own[:, None]
        else:
            got, wanted = numbers(letter, words), numbers(letter, own)
            same = (got == wanted) & (np.signbit(got) == np.signbit(wanted)) | np.isnan(got) & np.isnan(wanted)
            if emulated.tolerance != "exact":
                with np.errstate(invalid="ignore", over="ignore"):
                    terms = None if positive is None else numbers(letter, positive.outputs[name][1])
                    limit = allowed(emulated.tolerance, letter, wanted, terms)
                    off = np.abs(got - wanted)
                finite = np.isfinite(got) & np.isfinite(wanted)
                same |= finite & ~(off > limit)
                # The largest finite value and infinity are neighbours.
                largest = float(ml_dtypes.finfo(FORMATS[letter][0]).max)
                ends = np.clip(got, -largest, largest), np.clip(wanted, -largest, largest)
                one_infinite = np.isinf(got) ^ np.isinf(wanted)
                same |= one_infinite & (np.abs(ends[0] - ends[1]) <= spacing(letter, ends[1]))
                inside = finite & (limit > 0) & np.isfinite(limit)
                if inside.any():
                    result.share = max(result.share, float((off[inside] / limit[inside]).max()))
            bad = ~same.all(axis=1)
        if bad.any():
            at = int(np.flatnonzero(bad)[0])
            values = f"recorded {words[at]:#010x} {got[at].tolist()}, emulated {own[at]:#010x} {wanted[at].tolist()}"
            lane = {k: f"{w[at]:#x}" for k, (_, w) in recorded.inputs.items() if len(w) == len(words)}
            result.different.append(
                f"{name}: {int(bad.sum())} of {len(bad)} words, first {at}: {values}, inputs {lane}"
            )
    return result
