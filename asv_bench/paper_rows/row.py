"""What a row of docs/paper.md is: how it is measured, what is kept of that, how it is shown."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs/measured/paper"
NOT_YET = "not measured yet"
KINDS = {"cpu": "CPU", "cuda": "GPU", "emulator": "emulator"}  # where something is measured

Values = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """What one machine gave for a row: a file of docs/measured/paper."""

    row: str
    kind: str
    machine: str
    about: str  # the device, in words
    commit: str
    date: str
    command: str
    values: Values

    def store(self, folder: Path = FOLDER) -> Path:
        path = folder / self.machine / f"{self.row}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(shortened(asdict(self)), indent=1, allow_nan=False) + "\n")
        return path


def load(folder: Path = FOLDER) -> list[Result]:
    """All that was measured, in an order that doesn't depend on the file system."""
    return [Result(**json.loads(path.read_text())) for path in sorted(folder.glob("*/*.json"))]


def shortened(value: Any) -> Any:
    """With numbers to 5 digits."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {name: shortened(item) for name, item in value.items()}
    return [shortened(item) for item in value] if isinstance(value, list) else value


class Line(NamedTuple):
    """One quantity of a row's table, beside the paper's figure."""

    name: str
    paper: str
    show: Callable[[Values], str | None]  # of a machine's values; None where they don't say
    kinds: Sequence[str] = ("cpu", "cuda")  # that can measure it
    is_headline: bool = False


class Row(ABC):
    """One result of the papers."""

    name: str  # of its files
    title: str
    text: str  # what is measured, for the reader
    kinds: tuple[str, ...]
    has_figure = False

    @abstractmethod
    def measure(self, device: Any, is_small: bool) -> Values:
        """Numbers, text and lists of them, for a file. is_small: in a second or two, to see that it works."""

    @abstractmethod
    def lines(self, results: list[Result]) -> list[Line]:
        """The table beside the paper."""

    def details(self, result: Result) -> str:
        """A table of one machine's own, in Markdown."""
        return ""

    def draw(self, figure: Any, results: list[Result]) -> None:
        """The picture, where `has_figure`."""
        raise NotImplementedError


def doubling(axes: Any, values: Sequence[int]) -> None:
    """An axis along which each value is twice the one before."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(values, [str(value) for value in values], rotation=45)
    axes.set_xticks([], minor=True)


# ---- Text ------------------------------------------------------------------------------------------------------------


def table(titles: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def amount(value: float, units: str) -> str:
    """To three digits with a prefix: 40300000000, "B" is 40.3 GB."""
    power = min(4, max(-2, math.floor(math.log10(abs(value)) / 3))) if value else 0
    scaled = value / 1000.0**power
    digits = max(0, 2 - math.floor(math.log10(abs(scaled)))) if scaled else 0
    return f"{scaled:.{digits}f} {['u', 'm', '', 'k', 'M', 'G', 'T'][power + 2]}{units}"


def factor(value: float) -> str:
    return f"{value:.2f}x"
