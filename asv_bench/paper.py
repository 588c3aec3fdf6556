#!/usr/bin/env python
"""The results of the FlashAttention papers measured anew: docs/paper.md, from stored measurements.

    python asv_bench/paper.py measure --machine NAME                      on this CPU, alone on it: less than 10 minutes
    python asv_bench/paper.py measure --machine NAME --device cuda        on a GPU
    python asv_bench/paper.py measure --machine emulator --device emulator         what the emulator counts
    python asv_bench/paper.py report                                      docs/paper.md and its pictures

`measure` writes docs/measured/paper/NAME/ROW.json, `--rows` chooses rows, `--small` tries them in seconds. The rows are
in paper_rows/.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

from paper_rows.block_size import BlockSize
from paper_rows.density import Density
from paper_rows.errors import Errors
from paper_rows.gpt2_medium import Gpt2Medium
from paper_rows.io_law import IoLaw
from paper_rows.length import Length
from paper_rows.row import FOLDER, KINDS, NOT_YET, ROOT, Line, Result, Row, load, table
from paper_rows.training import Training
from paper_rows.utilization import Utilization
from record import SOURCES, git

ROWS: list[Row] = [Gpt2Medium(), BlockSize(), Density(), Length(), IoLaw(), Utilization(), Errors(), Training()]
PAGE = ROOT / "docs/paper.md"
SECONDS = 1.0  # for each figure
OPENING = """\
# The papers' results, measured anew

What [FlashAttention](https://arxiv.org/abs/2205.14135), [FlashAttention-2](https://arxiv.org/abs/2307.08691) and
[FlashAttention-3](https://arxiv.org/abs/2407.08608) report of themselves, beside what this project measures. This page
is made by `python asv_bench/paper.py report` from the files in `docs/measured/paper/`; nothing in it is written by
hand. Figures of the papers are those of their GPUs, an A100 and an H100; a CPU's are there so that the same thing can
be looked at where there is no GPU, as ratios rather than as times. [No CUDA code has run on a GPU yet](gpu.md): what is
said of kernels was counted on [the emulator](emulator.md).
"""


# ---- Measuring -------------------------------------------------------------------------------------------------------


def measure(options: argparse.Namespace) -> None:
    if options.device == "emulator":
        if "FLASH_LIBRARY" not in os.environ:  # flash opens its library when it is imported
            sys.path.append(str(ROOT / "tests"))
            from emulated_library import environment

            os.execve(sys.executable, [sys.executable, *sys.argv], environment())
        from paper_rows.emulator import Emulator

        device: object = Emulator()
    else:
        from paper_rows.device import Device

        device = Device(options.device, 0.0 if options.small else options.seconds)
    changed = git("status", "--porcelain", "--", *SOURCES)
    commit = git("rev-parse", "--short=8", "HEAD") + ("+" if changed else "")
    for row in ROWS:
        if row.name in options.rows and options.device in row.kinds:
            print(f"{row.title} ...", flush=True)
            command = f"python asv_bench/paper.py measure --machine {options.machine} --device {options.device}"
            if options.small:
                command += " --small"
            elif options.seconds != SECONDS:
                command += f" --seconds {options.seconds:g}"
            values = row.measure(device, options.small)
            about, date = device.about, time.strftime("%Y-%m-%d", time.gmtime())  # type: ignore[attr-defined]
            result = Result(row.name, options.device, options.machine, about, commit, date, command, values)
            print(f"    {result.store(options.folder)}")


# ---- The page --------------------------------------------------------------------------------------------------------


def columns(row: Row, results: list[Result], kinds: list[str]) -> list[tuple[str, str, Result | None]]:
    """(title, kind, result) of each machine, and of each kind that no machine stands for."""
    found: list[tuple[str, str, Result | None]] = []
    for kind in kinds:
        machines = [x for x in results if x.kind == kind]
        found += [(KINDS[kind] if kind == x.machine else f"{KINDS[kind]}, {x.machine}", kind, x) for x in machines]
        if not machines and kind in row.kinds:
            found.append((KINDS[kind], kind, None))
    return found


def cell(line: Line, kind: str, result: Result | None) -> str:
    if kind not in line.kinds:
        return ""
    if result is None:
        return NOT_YET
    return line.show(result.values) or ""


def section(number: int, row: Row, results: list[Result]) -> str:
    beside = columns(row, results, list(row.kinds))
    parts = [f"## {number}. {row.title}", textwrap.fill(" ".join(row.text.split()), 120, break_on_hyphens=False)]
    lines = [[line.name, line.paper, *(cell(line, kind, x) for _, kind, x in beside)] for line in row.lines(results)]
    parts.append(table(["", "the papers", *(title for title, _, _ in beside)], lines))
    parts += [f"{x.machine}: {text}" for x in results if (text := row.details(x))]
    if row.has_figure and results:
        parts.append(f"![{row.title}](figures/paper-{row.name}.svg)")
    made = [f"- {x.machine} ({x.about}), commit {x.commit}, {x.date}: `{x.command} --rows {row.name}`" for x in results]
    missing = [kind for kind in row.kinds if not any(x.kind == kind for x in results)]
    command = f"python asv_bench/paper.py measure --machine NAME --rows {row.name} --device"
    made += [f"- {KINDS[kind]}: {NOT_YET}: `{command} {kind}`" for kind in missing]
    return "\n\n".join([*parts, "\n".join(made)])


def page(results: list[Result]) -> str:
    of = {row.name: [x for x in results if x.row == row.name] for row in ROWS}
    summary = []
    for number, row in enumerate(ROWS, 1):
        for line in row.lines(of[row.name]):
            if line.is_headline:
                cells = []
                for kind in KINDS:
                    found = [cell(line, kind, x) for x in of[row.name] if x.kind == kind]
                    cells.append("; ".join(filter(None, found)) if found else cell(line, kind, None))
                title = f"{number}. {row.title}"
                anchor = re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
                summary.append([f"[{title}](#{anchor})", line.name, line.paper, *cells])
    titles = ["", "", "the papers", *KINDS.values()]
    sections = [section(number, row, of[row.name]) for number, row in enumerate(ROWS, 1)]
    return "\n\n".join([OPENING.rstrip(), table(titles, summary), *sections]) + "\n"


def draw(row: Row, results: list[Result], path: Path) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    # Text stays text, and nothing in the file depends on when it was made.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "flash", "font.size": 9}):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        row.draw(figure, results)
        labelled: dict[str, Any] = {}
        for axes in figure.axes:
            axes.grid(alpha=0.3)
            labelled |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(labelled.values(), labelled.keys(), loc="outside right upper", fontsize="small")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None, "Creator": None})


def report(folder: Path, target: Path) -> None:
    results = load(folder)
    target.write_text(page(results))
    for row in ROWS:
        of_row = [x for x in results if x.row == row.name]
        if row.has_figure and of_row:
            draw(row, of_row, target.parent / "figures" / f"paper-{row.name}.svg")


def main(arguments: list[str] | None = None) -> None:
    names = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(description="The papers' results measured anew.")
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure", help="measure here and store")
    measuring.add_argument("--machine", required=True, help="a name for this machine, the same every time")
    measuring.add_argument("--device", default="cpu", choices=list(KINDS))
    measuring.add_argument("--rows", nargs="+", default=names, choices=names)
    measuring.add_argument("--small", action="store_true", help="to see that it works")
    measuring.add_argument("--seconds", type=float, default=SECONDS, help="for each figure, default: %(default)s")
    reporting = commands.add_parser("report", help="write the page from what is stored")
    reporting.add_argument("--output", type=Path, default=PAGE)
    for command in (measuring, reporting):
        command.add_argument("--folder", type=Path, default=FOLDER, help="where measurements are")
    options = parser.parse_args(arguments)
    if options.command == "measure":
        measure(options)
    else:
        report(options.folder, options.output)


if __name__ == "__main__":
    main()
