"""python -m flash bench: attention by flash and by what else is installed, timed in turn on this machine.

From the inside outwards: `case` is one problem, `libraries` has the arrays, the clocks and attention as a call, `peers`
what flash is compared with; `measure` checks every side's results and times all in turn; `report` and `picture` show
what is stored, `facts` of which machine, and `options` is the command line.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import suppress

from flash._measure import Progress
from flash.bench import picture, report
from flash.bench.facts import machine_facts
from flash.bench.measure import Results, Session
from flash.bench.options import parse

# Options that decide the results beside the cases.
_STORED = "device", "array", "peers", "rounds", "seconds", "limit", "product_size"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark: 0; 1 where a side's results differ from flash's or flash failed; 130 after Ctrl-C."""
    try:
        options = parse(arguments)
        if options.input is None:
            results = run(options)
        else:
            results = options.results
            print(report.text(results))
        wrong = any(row["different"] or "flash" in row["left_out"] for row in results["rows"])
        written = write_files(options, results)
    except KeyboardInterrupt:
        print("\nflash bench: interrupted", file=sys.stderr)
        return 130
    return 130 if results["interrupted"] else int(wrong or not written)


def run(options: argparse.Namespace) -> Results:
    """Measures every case, and prints and stores each when it is finished."""
    progress = Progress(1 + len(options.cases))
    session = Session(options, progress)
    progress.step("loading array libraries")
    results: Results = {
        "format": report.FORMAT,
        "machine": machine_facts(session.load()),
        "options": {name: getattr(options, name) for name in _STORED},
        "not_asked": options.not_asked,
        "interrupted": False,
        "rows": [],
    }

    def say(text: str) -> None:
        progress.clear()
        if text:
            print(f"{text}\n", flush=True)

    say(report.heading(results))
    for case in options.cases:
        progress.step(str(case))
        row = session.measure(case)
        results["interrupted"] = session.interrupted
        if row is not None:
            results["rows"].append(row)
            say(report.block(row))
        if options.json is not None:
            with suppress(OSError):  # the last one says why
                report.write(results, options.json)
        if session.interrupted:
            break
    say(report.closing(results))
    return results


def write_files(options: argparse.Namespace, results: Results) -> bool:
    """What was asked for beside the table; whether all could be written."""
    written = True
    files = (options.json, report.write), (options.png, picture.save), (options.markdown, report.save_markdown)
    for path, save in files:
        if path is not None:
            try:
                save(results, path)
            except OSError as error:
                print(f"flash bench: {path} can't be written: {error.strerror}", file=sys.stderr)
                written = False
    return written
