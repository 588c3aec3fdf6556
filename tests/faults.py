"""Seeded faults: would the tests notice, if a barrier, a bound or an address in a kernel were wrong?

    python tests/faults.py [--all | --per-kernel N] [--kernels PATTERN] [--jobs N] [--record FILE]

The emulator changes one statement of a kernel's PTX at a time (tests/emulator/faults.h says which and how), and the
problems of fault_problems.py run on the kernel with the fault in it, those that reach the statement. It is caught by

- a report: a race, an access out of bounds, a read of what nobody wrote, a deadlock, a trap;
- time: three times as many instructions as without the fault;
- traffic: other bytes read or written than without the fault, or bytes written twice. Traffic is held against formulas
  by other tests;
- numbers: a result that the numeric rule (numeric.py) does not allow.

A compiler makes copies of a comparison, where it unrolls a loop or splits it by what it knows, and in some copies the
outcome is always the same; so it is with the constants of addresses. A fault there that changes no value in any problem
is a `copy` if the same line of the source has another copy of the statement, in which such faults are all caught.
So is one that gives a comparison of constants the outcome that it has. Copies don't count, nor does what survivors.txt
shows to be equivalent; of the other faults at least 95 % must be caught, and survivors.txt must give a reason for each
that is not. Without --all a fixed sample of each kernel is tried,
chosen by a hash of where the fault lies in the source. Kernels come from the library, so a new one is met without being
named anywhere.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import sys
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import emulated

ROOT = Path(__file__).parent.parent
LIST = Path(__file__).parent / "survivors.txt"
LEAST_CAUGHT = 0.95
PER_KERNEL = 2
MOST_TIMES_THE_INSTRUCTIONS = 3
ALWAYS = ("always true", "always false")
MOST_PROBLEMS = 64  # for a kernel that goes before many others, the cheapest
MOST_PROBLEMS_OF_LISTED = 4  # for a fault that survivors.txt has a reason for
BATCH = 4  # problems that a kernel is parsed for once
MOST_COPIES = 6  # of a comparison that are looked at to tell whether it is tested
CHUNK = 6  # faults that a process takes at once


# ---- Faults ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """One fault. `place` is where in the source, by its text, so that it stays the same when lines move."""

    kernel: str  # as in the PTX
    name: str  # forward_any<64, false>
    position: int  # in the emulator's list for the kernel
    kind: str
    what: str
    ptx_line: int
    ptx: str
    replacement: str
    place: str

    def __str__(self) -> str:
        return f"{self.name} | {self.place} | {self.what}"

    @property
    def line(self) -> str:
        """Of the source, whoever inlined it."""
        return self.place.split(" @ ")[0]

    def is_like(self, other: Fault) -> bool:
        """Whether both are faults of one kind in one line of the source, so maybe in copies of one statement."""
        if (self.kind, self.line) != (other.kind, other.line):
            return False
        if self.kind != "predicate":
            return self.what == other.what
        return self.compared == other.compared and self.what.endswith(ALWAYS) == other.what.endswith(ALWAYS)

    @property
    def names(self) -> tuple[str, str]:
        """What survivors.txt may call it: by `what`, or closer, such as `setp always true in setp.lt.s32 %, %, 65;`."""
        return self.what, f"{self.what} in {re.sub(r'%[a-z]+[0-9]+', '%', self.ptx)}"

    @property
    def changes_nothing(self) -> bool:
        """Whether it is the outcome that a comparison of constants, as the flags of products are, has anyway."""
        parts = re.search(r"setp\.ne\.b32 \w+, (%r\d+), 0;", self.ptx)
        if parts is None or parts[1] not in _constants(self.kernel):
            return False
        return self.what == f"setp {ALWAYS[_constants(self.kernel)[parts[1]] == 0]}"

    @property
    def compared(self) -> tuple[str, str]:
        """Type and, if there is one, the constant that a comparison is with."""
        type_, _, last = self.ptx.removesuffix(";").rpartition(",")
        return re.sub(r".*setp\.\w+\.", "", type_).split()[0], last.strip() if "%" not in last else ""


def kernels() -> dict[str, str]:
    """Short names of the library's kernels by their names in the PTX."""
    return {kernel: _short(kernel) for kernel in json.loads(emulated.lib.emulated_kernels())}


def _short(mangled: str) -> str:
    """forward_any<64, false> of _ZN5flash11forward_anyILi64ELb0EEEvNS_13ForwardParamsE.

    Types are left out: kernels that differ in the type of numbers only are counted, and sampled, as one.
    """
    name = re.match(r"_ZN5flash(\d+)", mangled)
    if name is None:
        return mangled
    start, length = name.end(), int(name[1])
    arguments = re.match(
        r"I((?:NS_\d+[A-Za-z0-9]+?E|L(?:NS_\d+[A-Za-z0-9]+?E|[a-z]+)\d+E)+)E", mangled[start + length :]
    )
    values = re.findall(r"L(NS_\d+[A-Za-z0-9]+?E|[a-z]+)(\d+)E", arguments[1]) if arguments else []
    texts = [("false", "true")[int(value)] if type_ == "b" else value for type_, value in values]
    return mangled[start : start + length] + (f"<{', '.join(texts)}>" if texts else "")


@cache
def _constants(kernel: str) -> dict[str, int]:
    """The registers of a kernel that nothing but one constant is written to."""
    text = emulated.lib.emulated_ptx(kernel.encode()).decode()
    body = text[text.index(f".entry {kernel}(") :].partition("\n}\n")[0]
    written = Counter(re.findall(r"^\s*(?:@!?%\w+\s+)?[a-z][\w.:]*\s+(%r\d+)[,|]", body, re.MULTILINE))
    grouped = set(re.findall(r"%r\d+", " ".join(re.findall(r"\{[^{}]*\}", body))))
    found = re.findall(r"^\s*mov\.u32\s+(%r\d+), (-?\d+);", body, re.MULTILINE)
    return {name: int(number) for name, number in found if written[name] == 1 and name not in grouped}


@cache
def _source(file: str) -> list[str]:
    found = [path for folder in ("cuda", "src") for path in sorted((ROOT / folder).rglob(file))]
    return found[0].read_text().splitlines() if found else []


def _line(file: str, line: int) -> str:
    lines = _source(file)
    return f"{file}: {lines[line - 1].strip() if 0 < line <= len(lines) else line}"


@cache
def faults_of(kernel: str) -> list[Fault]:
    found, name = [], _short(kernel)
    for position, x in enumerate(json.loads(emulated.lib.emulated_faults(kernel.encode()))):
        place = _line(x["file"], x["line"])
        if (x["file"], x["line"]) != (x["caller_file"], x["caller_line"]):
            place += " @ " + _line(x["caller_file"], x["caller_line"])
        keys = ("kind", "what", "ptx_line", "ptx", "replacement")
        found.append(Fault(kernel, name, position, *(x[key] for key in keys), place))
    return found


def sample(faults: list[Fault], number: int) -> list[Fault]:
    """Those with the smallest hashes of what stays the same when the kernel is compiled again."""
    seen: Counter[str] = Counter()
    hashes = []
    for fault in faults:
        text = str(fault)
        seen[text] += 1
        hashes.append((zlib.crc32(f"{text} | {seen[text]}".encode()), fault))
    return [fault for _, fault in sorted(hashes, key=lambda x: x[0])[:number]]


# ---- Whether they are caught -----------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """caught: by what; "" if by nothing. reached: by how many problems until then."""

    caught: str
    reached: int
    seconds: float = 0.0
    seen: str = ""  # of what survived: what the problems that reach it never show
    is_copy: bool = False


class Undisturbed(NamedTuple):
    """What a problem does without a fault."""

    outputs: dict[str, Any]
    traffic: dict[str, list[Any]]
    instructions: int  # of the longest launch


class Bench:
    """The problems on the emulated device, and what they do without faults, as far as a process has learnt it."""

    def __init__(self) -> None:
        import fault_problems

        fault_problems.KIND.require()
        self._problems = list(fault_problems.problems())
        self._undisturbed: dict[int, Undisturbed] = {}
        self._lines: dict[int, dict[str, set[int]]] = {}  # of the PTX that a problem runs, by kernel
        self._known: dict[str, dict[int, bool]] = defaultdict(dict)  # whether faults are caught, by kernel and position
        self._launching: dict[str, list[int]] = defaultdict(list)  # problems by kernel
        with emulated.running(checks=emulated.NOTHING):
            for n, problem in enumerate(self._problems):
                emulated.launches()
                problem.run()
                for kernel in {launch["kernel"] for launch in emulated.launches()}:
                    self._launching[kernel].append(n)
        for ns in self._launching.values():
            ns.sort(key=lambda n: self._problems[n].cost)
            del ns[MOST_PROBLEMS:]

    def try_fault(self, fault: Fault) -> Outcome:
        start = time.monotonic()
        is_listed = entry_of(fault, reached=True) is not None
        if fault.changes_nothing:
            return Outcome("", reached=0, is_copy=True)
        outcome = self._try(fault, MOST_PROBLEMS_OF_LISTED if is_listed else MOST_PROBLEMS)
        is_copy = not is_listed and outcome.seen != "" and self._is_copy(fault)
        return outcome._replace(seconds=time.monotonic() - start, is_copy=is_copy)

    def _try(self, fault: Fault, most: int) -> Outcome:
        """Runs the problems that reach the fault, the cheapest first, until one catches it."""
        reaching = islice((n for n in self._launching[fault.kernel] if self._reaches(fault, n)), most)
        first = next(reaching, None)
        if first is None or (caught := self._caught(fault, first)):
            return Outcome("" if first is None else caught, reached=int(first is not None))
        probe, never = self._probe(fault)
        reached, is_shown = 0, False
        batch = [first, *islice(reaching, BATCH)]
        while batch:
            # A problem that doesn't show the difference can't catch the fault, and to see that takes less time.
            showing = self._trapping(fault, probe, batch) if probe else batch
            is_shown = is_shown or bool(showing)
            for n in showing:
                if n != first and (caught := self._caught(fault, n)):
                    return Outcome(caught, reached + batch.index(n) + 1)
            reached += len(batch)
            batch = list(islice(reaching, BATCH))
        return Outcome("", reached, seen="" if is_shown else never)

    def undisturbed(self, n: int) -> Undisturbed:
        known = self._undisturbed.get(n)
        if known is None:
            emulated.launches()
            outputs = self._problems[n].run()
            self._problems[n].judge(outputs)
            ran = emulated.launches()
            longest = max(launch["warp_instructions"] for launch in ran)
            known = self._undisturbed[n] = Undisturbed(outputs, _traffic(ran), longest)
        return known

    def _is_copy(self, fault: Fault) -> bool:
        """Whether another copy of the statement is tested, in all that `fault` says it never shows here."""
        groups = defaultdict(list)
        for other in faults_of(fault.kernel):
            if other.ptx_line != fault.ptx_line and other.is_like(fault):
                groups[other.ptx_line].append(other)
        copies = list(groups.values())[:MOST_COPIES]
        return any(all(self._is_caught(other) for other in faults) for faults in copies)

    def _is_caught(self, fault: Fault) -> bool:
        known = self._known[fault.kernel]
        if fault.position not in known:
            known[fault.position] = self._try(fault, MOST_PROBLEMS).caught != ""
        return known[fault.position]

    def _reaches(self, fault: Fault, n: int) -> bool:
        if n not in self._lines:
            emulated.launches()
            with emulated.running(checks=emulated.LINES):
                self._problems[n].run()
            lines = self._lines[n] = defaultdict(set)
            for launch in emulated.launches():
                lines[launch["kernel"]].update(launch["executed_lines"])
        return fault.ptx_line in self._lines[n][fault.kernel]

    def _probe(self, fault: Fault) -> tuple[str, str]:
        """What traps where the fault makes a difference to its own statement, and what is never so if nothing traps.

        Empty where there is no such thing.
        """
        if fault.kind == "address":
            return self._probe_of_constant(fault), "never different"
        parts = re.fullmatch(
            r"(@!?%\w+ )?setp\.\w+\.(?:(?:and|or|xor)\.)?(\w+)\s+([^,|]+)[^,]*,([^,]+),([^,;]+).*", fault.ptx
        )
        if fault.kind != "predicate" or parts is None:
            return "", ""
        guard, type_, predicate, a, b = (part or "" for part in parts.groups())
        if "always" in fault.what:
            never = "true" if "true" not in fault.what else "false"
            return f"{fault.ptx} @{'' if never == 'true' else '!'}{predicate} trap;", f"never {never}"
        test = f"setp.eq.{type_} %probe, {a}, {b}; @%probe trap;"
        return (f"{{ .reg .pred %probe; {test} }} {fault.ptx}" if not guard else ""), "never equal"

    def _probe_of_constant(self, fault: Fault) -> str:
        """Traps where a constant's change changes its statement's result, unlike that of a bit that is 0 anyway."""
        parts = re.fullmatch(r"(\w+)\.(\S+)\s+(%\w+),(.*)", fault.replacement)
        if parts is None or "wide" in fault.ptx:
            return ""
        opcode, types, result, operands = parts.groups()
        bits = types[-2:]
        if not fault.what.startswith("constant") or bits not in ("32", "64"):
            return ""
        changed = f".reg .b{bits} %probe; .reg .pred %differs; {opcode}.{types} %probe, {operands}"
        return f"{{ {changed} {fault.ptx} setp.ne.b{bits} %differs, %probe, {result}; @%differs trap; }}"

    def _trapping(self, fault: Fault, probe: str, ns: list[int]) -> list[int]:
        """Those of the problems in which the probe in place of the fault's statement traps."""
        text = emulated.lib.emulated_ptx(fault.kernel.encode()).decode()
        line = " ".join(text.splitlines()[fault.ptx_line - 1].split())
        if fault.ptx not in line:
            return ns
        planted = line.replace(fault.ptx, probe, 1)  # a line of inline PTX may hold more than the statement
        problem = emulated.lib.emulated_plant(fault.kernel.encode(), fault.ptx_line, planted.encode())
        assert problem is None, f"{probe}: {problem}"
        try:
            with emulated.running(checks=0):
                return [n for n in ns if self._fails(n)]
        finally:
            emulated.lib.emulated_plant(None, 0, b"")

    def _fails(self, n: int) -> bool:
        import flash

        try:
            self._problems[n].run()
        except flash.CudaError:
            return True
        return False

    def _caught(self, fault: Fault, n: int) -> str:
        """By what the problem catches the fault, "" if by nothing."""
        import flash

        right = self.undisturbed(n)
        emulated.launches()
        problem = emulated.lib.emulated_seed(fault.kernel.encode(), fault.position)
        assert problem is None, f"{fault}: {problem}"
        try:
            most = MOST_TIMES_THE_INSTRUCTIONS * right.instructions + 10_000
            with emulated.running(most_instructions=most):
                outputs = self._problems[n].run()
        except flash.CudaError as error:
            return _report(str(error))
        finally:
            emulated.lib.emulated_plant(None, 0, b"")
        if _traffic(emulated.launches()) != right.traffic:
            return "traffic"
        if all(outputs[name].tobytes() == x.tobytes() for name, x in right.outputs.items()):
            return ""
        try:
            self._problems[n].judge(outputs)
        except AssertionError:
            return "numbers"
        return ""


def _traffic(launches: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """By kernel and buffer, without addresses, which differ from run to run."""
    counted = ("name", "bytes", "read_bytes", "read_unique_bytes", "written_bytes", "written_unique_bytes")
    counted += ("written_twice_bytes", "atomic_bytes")
    traffic = defaultdict(list)
    for launch in launches:
        traffic[launch["kernel"]].append(sorted(tuple(buffer[x] for x in counted) for buffer in launch["buffers"]))
    return traffic


REPORTS = (
    "out of bounds", "misaligned", "read only", "uninitialised", "race", "in flight", "missing fence", "mbarrier",
    "barrier", "deadlock", "trap", "timeout", "launch",
)  # fmt: skip


def _report(text: str) -> str:
    found = {kind: text.find(kind) for kind in REPORTS if kind in text}
    return min(found, key=lambda kind: found[kind]) if found else "report"


@cache
def bench() -> Bench:
    return Bench()


def try_faults(faults: list[tuple[str, int]]) -> list[Outcome]:
    """Runs in a process of its own. faults: kernel and position."""
    return [bench().try_fault(faults_of(kernel)[position]) for kernel, position in faults]


# ---- The list of survivors -------------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """A line of survivors.txt."""

    kernel: str
    place: str
    what: str
    verdict: str  # equivalent, unreachable, missed
    reason: str

    @property
    def excuses(self) -> bool:
        """Whether what it lists does not count."""
        return self.verdict != "missed"

    def fits(self, fault: Fault) -> bool:
        is_there = _fits(self.kernel, fault.name) and _fits(self.place, fault.place)
        return is_there and any(_fits(self.what, name) for name in fault.names)


VERDICTS = "equivalent", "unreachable", "missed"


@cache
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, text.split("*"))))


def _fits(pattern: str, text: str) -> bool:
    # A source line may hold stars of its own: it fits itself, too.
    return text == pattern or _pattern(pattern).fullmatch(text) is not None


@cache
def entries() -> list[Entry]:
    found, reason = [], ""
    for line in LIST.read_text().splitlines():
        if line.startswith("# ") or not line.strip():
            continue
        if not line.startswith(" "):
            verdict, _, reason = line.partition(": ")
            assert verdict in VERDICTS, line
            continue
        kernel, place, what = (part.strip() for part in line.split(" | "))
        found.append(Entry(kernel, place, what, verdict, reason))
    return found


def entry_of(fault: Fault, reached: bool) -> Entry | None:
    """reached: whether problems reach it, as none does what is listed as unreachable."""
    fitting = (entry for entry in entries() if entry.fits(fault))
    return next((entry for entry in fitting if not (reached and entry.verdict == "unreachable")), None)


# ---- The table -------------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What came of the faults of one kernel."""

    faults: int = 0
    excused: int = 0  # copies, and what is shown to be equivalent
    caught: int = 0

    @property
    def share(self) -> float:
        return self.caught / max(1, self.faults - self.excused)

    def add(self, outcome: Outcome, entry: Entry | None) -> None:
        self.faults += 1
        self.caught += outcome.caught != ""
        self.excused += outcome.is_copy or (entry is not None and entry.excuses)


def run(faults: list[Fault], jobs: int) -> list[Outcome]:
    chunks = [faults[n : n + CHUNK] for n in range(0, len(faults), CHUNK)]
    keys = [[(fault.kernel, fault.position) for fault in chunk] for chunk in chunks]
    bench()  # before the fork: once for all, as the lists of faults are
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("fork")) as pool:
        return [outcome for outcomes in pool.map(try_faults, keys) for outcome in outcomes]


def show(faults: list[Fault], outcomes: list[Outcome]) -> bool:
    """Prints the table; whether enough are caught, and all survivors are listed."""
    total, by_kernel, by_what = Tally(), defaultdict(Tally), defaultdict(Counter)
    unlisted = []
    for fault, outcome in zip(faults, outcomes, strict=True):
        entry = None if outcome.caught else entry_of(fault, outcome.reached > 0)
        for tally in (total, by_kernel[fault.name], by_kernel[f"  {fault.kind}"]):
            tally.add(outcome, entry)
        left = "copy" if outcome.is_copy else entry.verdict if entry is not None else "survived"
        by_what[fault.kind][outcome.caught or left] += 1
        if not outcome.caught and not outcome.is_copy and entry is None:
            unlisted.append((fault, outcome))
    print(f"{'kernel':32} {'faults':>7} {'equivalent':>10} {'caught':>7} {'share':>7}")
    rows: Iterable[tuple[str, Tally]] = [*by_kernel.items(), ("all", total)]
    for name, tally in sorted(rows, key=lambda row: (row[0] == "all", row[0])):
        print(f"{name:32} {tally.faults:7} {tally.excused:10} {tally.caught:7} {tally.share:7.1%}")
    for kind, counts in by_what.items():
        print(f"{kind}: {', '.join(f'{what} {count}' for what, count in counts.most_common())}")
    for fault, outcome in unlisted:
        reached = f"{outcome.reached} problems reach it" if outcome.reached else "no problem reaches it"
        reached += f", {outcome.seen}" if outcome.seen else ""
        print(f"not caught, not in {LIST.name}: {fault}\n    {fault.ptx}    ->    {fault.replacement} ({reached})")
    print(f"{total.share:.2%} of {total.faults - total.excused} caught, {len(unlisted)} survivors without a reason")
    return total.share >= LEAST_CAUGHT and not unlisted


def main() -> int:
    parser = argparse.ArgumentParser(description="Seeds faults into the CUDA kernels and sees which are caught.")
    parser.add_argument("--all", action="store_true", help="every fault of every kernel")
    parser.add_argument("--per-kernel", type=int, default=PER_KERNEL, help="how many otherwise")
    parser.add_argument("--kernels", default="*", help="pattern of short names, such as 'forward_any<64*'")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--record", type=Path, help="write every fault and its outcome to this file, as JSON lines")
    arguments = parser.parse_args()
    if emulated.lib is None:  # in this process the library was opened already
        from emulated_library import environment

        os.execve(sys.executable, [sys.executable, *sys.argv], environment())

    known: dict[str, list[Fault]] = defaultdict(list)
    for kernel, name in kernels().items():
        if _fits(arguments.kernels, name):
            known[name] += faults_of(kernel)
    number = sys.maxsize if arguments.all else arguments.per_kernel
    chosen = [fault for faults in known.values() for fault in sample(faults, number)]
    start = time.monotonic()
    outcomes = run(chosen, arguments.jobs)
    if arguments.record:
        records = (fault.__dict__ | outcome._asdict() for fault, outcome in zip(chosen, outcomes, strict=True))
        arguments.record.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    good = show(chosen, outcomes)
    print(f"{time.monotonic() - start:.0f} s")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
