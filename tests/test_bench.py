"""python -m flash bench: what it measures, what it leaves out and why, and that nothing wrong is timed."""

from __future__ import annotations

import argparse
import json
import os
import pty
import re
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy
import pytest

import flash
from flash import bench
from flash.bench import facts, libraries, measure, options, report
from flash.bench.case import Case
from flash.bench.peers import PEERS

TINY = ["--length", "24", "--heads", "2", "--head-dim", "16", "--rounds", "2", "--seconds", "1e-3"]
TINY += ["--product-size", "16", "--limit", "60"]
PLAIN = [*TINY, "--array", "numpy", "--peers", "numpy"]
ALL = ["--operation", "forward", "backward", "forward+backward"]
COMMAND = [sys.executable, "-m", "flash", "bench"]


def strict(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture(autouse=True)
def impatience(monkeypatch):
    """Times that mean little, soon."""
    monkeypatch.setattr(measure, "SHORT", 1e-5)


@pytest.fixture
def measured(tmp_path, capsys):
    """measured(*options) runs the benchmark here: its status, what it stored, what it printed."""

    def run(*given):
        file = tmp_path / "results.json"
        status = bench.main([*given, "--json", str(file)])
        return status, strict(file.read_text()), capsys.readouterr().out

    return run


@pytest.fixture
def reference(monkeypatch):
    """reference(change) puts `change(results, number of the call)` behind every result of standard attention."""
    right = flash.reference.attention

    def replace(change):
        calls = []

        def attention(*arrays, **given):
            calls.append(given)
            return change(right(*arrays, **given), len(calls))

        monkeypatch.setattr(flash.reference, "attention", attention)

    return replace


# ---- What is measured ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        ["--causal", "--full"],
        ["--window", "5"],
        ["--full", "--window", "5", "--kv-heads", "1"],
        ["--block-sparse", "0.3", "--block-size", "16", "--length", "48"],
        ["--dtype", "bfloat16", "float16"],
    ],
    ids=" ".join,
)
def test_sides_of_pytorch_give_what_flash_gives(measured, given):
    pytest.importorskip("torch")
    pytest.importorskip("ml_dtypes")
    status, results, _ = measured(*TINY, *ALL, *given, "--peers", "numpy", "torch", "sdpa-flash", "sdpa-math")
    assert status == 0
    for row in results["rows"]:
        wanted = {"flash", "numpy", "torch", "sdpa-flash", "sdpa-math"}
        if row["operation"] == "backward":
            wanted -= {"numpy"}
            assert set(row["left_out"]) == {"numpy"}
        assert set(row["sides"]) == wanted
        for side in row["sides"].values():
            assert len(side["samples"]) == 2 and side["seconds"] > 0
    assert len(results["rows"]) == (6 if "--causal" in given or "--dtype" in given else 3)


@pytest.mark.parametrize("given", [["--full", "--window", "5"], ["--block-sparse", "0.3", "--block-size", "16"]])
def test_sides_of_jax_give_what_flash_gives(measured, given):
    pytest.importorskip("jax")
    status, results, _ = measured(*TINY, *ALL, *given, "--length", "33", "--array", "jax", "--peers", "jax-nn")
    assert status == 0
    assert [set(row["sides"]) for row in results["rows"]] == [{"flash", "jax-nn"}] * 3


@pytest.mark.parametrize("given", [["--causal"], ["--full", "--window", "5"], ["--block-sparse", "0.3"]], ids=" ".join)
def test_flex_attention_gives_what_flash_gives(monkeypatch, measured, given):
    """Without its compiler, which takes long."""
    torch = pytest.importorskip("torch")
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, dynamic=None, **x: compiled(f, **x) if x else f)
    sizes = ["--block-size", "16"] if "--block-sparse" in given else []
    status, results, _ = measured(*TINY, *ALL, *given, *sizes, "--length", "48", "--peers", "flex")
    assert status == 0
    assert [set(row["sides"]) for row in results["rows"]] == [{"flash", "flex"}, {"flash"}, {"flash"}]
    assert results["rows"][1]["left_out"] == {"flex": "has no backward on the CPU"}


@pytest.mark.parametrize("array", ["numpy", "torch", "jax"])
def test_flash_on_each_kind_of_arrays(measured, array):
    pytest.importorskip(array)
    status, results, text = measured(*TINY, *ALL, "--array", array, "--peers", "numpy")
    assert status == 0
    assert f"on arrays of {array};" in text and array in results["machine"]["versions"]
    assert [set(row["sides"]) for row in results["rows"]] == [{"flash", "numpy"}, {"flash"}, {"flash", "numpy"}]


def test_dropout_is_timed_and_checked_without(monkeypatch, measured):
    dropped = []
    right = flash.attention
    monkeypatch.setattr(
        flash, "attention", lambda *x, **given: dropped.append(given.get("dropout", 0)) or right(*x, **given)
    )
    status, results, _ = measured(*PLAIN, "--dropout", "0.5", "--operation", "forward")
    assert status == 0 and {"flash", "numpy"} == set(results["rows"][0]["sides"])
    assert dropped.count(0) == 2  # one to see whether flash takes these arrays, one to compare
    assert dropped.count(0.5) >= 2


def test_a_block_mask_is_compared_with_none(measured):
    status, results, _ = measured(
        *PLAIN, "flash-dense", "--full", "--block-sparse", "0.3", "--block-size", "16", "--length", "96"
    )
    assert status == 0
    for row in results["rows"]:
        sides = row["sides"]
        assert 0.3 < row["listed"] < 0.5
        work = {name: side["gflops"] * side["seconds"] for name, side in sides.items()}
        assert work["flash"] / work["flash-dense"] == pytest.approx(row["listed"], rel=0.01)


def test_sizes_by_tokens_and_hidden(measured):
    sizes = ["--tokens", "48", "--hidden", "64", "--length", "12", "24", "100", "--head-dim", "16", "32"]
    given = ["--operation", "forward", "--rounds", "1", "--product-size", "16", "--array", "numpy", "--peers"]
    _, results, _ = measured(*sizes, *given)
    found = [(row["head_dim"], row["length"], row["batch"], row["heads"]) for row in results["rows"]]
    assert found == [(d, length, n, 64 // d) for d in (16, 32) for length, n in ((12, 4), (24, 2), (100, 1))]


def test_numbers_follow_from_the_samples(measured):
    _, results, text = measured(*PLAIN, "--full", "--operation", "forward+backward", "--rounds", "3")
    (row,) = results["rows"]
    ours, other, product = row["sides"]["flash"], row["sides"]["numpy"], row["product"]
    for side, work in ((ours, 14 * 2 * 24**2 * 16), (other, 14 * 2 * 24**2 * 16), (product, 2 * 16**3)):
        assert side["seconds"] == numpy.median(side["samples"])
        assert side["gflops"] == pytest.approx(work / side["seconds"] / 1e9, abs=1e-3, rel=1e-3)
    assert other["share_of_product"] == pytest.approx(other["gflops"] / product["gflops"], abs=1e-3)
    ratios = numpy.divide(other["samples"], ours["samples"])
    assert other["ratio"] == pytest.approx(numpy.median(ratios), rel=1e-3)
    assert other["ratio_quartiles"] == pytest.approx(list(numpy.quantile(ratios, [0.25, 0.75])), rel=1e-3)
    assert re.search(rf"^  numpy .* {other['ratio']:.2f} ", text, re.MULTILINE)


def test_sides_take_turns_and_leave_when_their_time_is_spent():
    """Their own time, not that of the others."""
    log = []

    def side(name, seconds):
        library = SimpleNamespace(device="cuda", start=lambda call, count: call() or (lambda: 1.0))
        return measure.Side(library, lambda: log.append(name) or time.sleep(seconds))

    sides = {"flash": side("flash", 0.0), "quick": side("quick", 0.0), "slow": side("slow", 0.02)}
    given = argparse.Namespace(device="cuda", rounds=12, seconds=0.1)
    measure.Session(given, bench.Progress(1)).rounds(sides, {})
    assert log == ["flash", "quick", "slow"] * 10 + ["flash", "quick"] * 2


# ---- What is left out ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, why",
    [
        (lambda o, n: o * numpy.float32(1.001), r"differs from flash by \d.\de-0[34] of the largest value"),
        (lambda o, n: numpy.where(o == o.max(), numpy.nan, o), "differs from flash by nan of the largest value"),
        (lambda o, n: o[:, 1:], r"differs: shape \(1, 23, 2, 16\), flash's is \(1, 24, 2, 16\)"),
    ],
    ids=["a little", "nan", "shape"],
)
def test_a_wrong_result_is_not_timed(reference, measured, change, why):
    reference(change)
    status, results, text = measured(*PLAIN, "--operation", "forward")
    (row,) = results["rows"]
    assert status == 1
    assert (set(row["sides"]), row["different"]) == ({"flash"}, ["numpy"])
    assert re.fullmatch(why, row["left_out"]["numpy"])
    assert f"  numpy: {row['left_out']['numpy']}" in text


def test_a_wrong_gradient_is_not_timed(monkeypatch, measured):
    right = flash.reference.attention_backward

    def wrong(*arrays, **given):
        gradients = right(*arrays, **given)
        return gradients._replace(dk=gradients.dk * numpy.float32(1.01))

    monkeypatch.setattr(flash.reference, "attention_backward", wrong)
    status, results, _ = measured(*PLAIN, "--operation", "forward+backward")
    assert (status, results["rows"][0]["different"]) == (1, ["numpy"])


def test_what_is_not_installed_is_named(monkeypatch, measured):
    for name in ("cupy", "jax", "torch"):
        monkeypatch.setitem(sys.modules, name, None)
    status, results, text = measured(*TINY, "--operation", "forward")
    assert status == 0
    assert (results["options"]["array"], set(results["rows"][0]["sides"])) == ("numpy", {"flash", "numpy"})
    left_out = {
        "cupy": "only on CUDA",
        "torch": "PyTorch is not installed",
        "sdpa-flash": "PyTorch is not installed",
        "sdpa-efficient": "only on CUDA",
        "sdpa-cudnn": "only on CUDA",
        "sdpa-math": "PyTorch is not installed",
        "jax-nn": "JAX is not installed",
        "jax-nn-cudnn": "only on CUDA",
    }
    assert results["rows"][0]["left_out"] == left_out
    assert {**left_out, **results["not_asked"]}.keys() | {"numpy", "flash-dense"} == PEERS.keys()
    for name, why in {**left_out, **results["not_asked"]}.items():
        assert f"\n  {name}: {why}\n" in text


def test_pytorch_says_why_it_has_no_kernel(measured):
    pytest.importorskip("torch")
    status, results, _ = measured(*TINY, "--dropout", "0.1", "--peers", "sdpa-flash", "--operation", "forward")
    assert status == 0
    assert "dropout" in results["rows"][0]["left_out"]["sdpa-flash"]


def test_what_is_too_slow_is_not_tried_again(measured):
    sizes = ["--operation", "forward", "--length", "16", "32", "8", "--limit", "1e-9"]
    _, results, _ = measured(*PLAIN, *sizes)
    reasons = [row["left_out"]["numpy"] for row in results["rows"]]
    assert [why.split(":")[0] for why in reasons] == ["too slow", "too slow, as a smaller case has shown", "too slow"]


def test_a_side_that_runs_out_of_memory_leaves_the_others(reference, measured):
    def change(o, call):
        if call == 4:  # the second that is timed
            raise MemoryError
        return o

    reference(change)
    status, results, _ = measured(*PLAIN, "--operation", "forward", "--length", "16", "24", "--rounds", "50")
    assert status == 0
    first, second = results["rows"]
    assert (first["left_out"], second["left_out"]) == ({"numpy": "out of memory"}, {})
    assert len(first["sides"]["numpy"]["samples"]) == 1
    assert len(first["sides"]["flash"]["samples"]) >= 3 and len(second["sides"]["numpy"]["samples"]) >= 3


def test_memory_that_is_not_there_is_not_asked_for(monkeypatch, measured):
    monkeypatch.setattr(measure, "free_bytes", lambda xp: 30_000)  # the inputs of both, not the scores
    status, results, _ = measured(*PLAIN, "--operation", "forward")
    assert status == 0
    assert results["rows"][0]["left_out"]["numpy"].startswith("out of memory: needs about 0.0 MiB of")
    monkeypatch.setattr(measure, "free_bytes", lambda xp: 1000)
    status, results, text = measured(*PLAIN, "--operation", "forward")
    assert status == 1 and results["rows"][0]["sides"] == {}
    assert "  flash: out of memory" in text


def test_flash_that_fails_is_reported(monkeypatch, measured):
    right = flash.attention

    def attention(q, *arrays, **given):
        if q.shape[1] == 24:
            raise flash.UnsupportedError("q: not today")
        return right(q, *arrays, **given)

    monkeypatch.setattr(flash, "attention", attention)
    status, results, text = measured(*PLAIN, "--operation", "forward", "--length", "24", "16")
    assert status == 1
    assert [set(row["sides"]) for row in results["rows"]] == [set(), {"flash", "numpy"}]
    assert "  flash: UnsupportedError: q: not today" in text


def test_an_interrupt_keeps_what_was_measured(monkeypatch, measured):
    """The cases before, and of the case at hand the rounds before."""
    right, calls = measure.Side.start, []

    def start(side):
        calls.append(side)
        if len(calls) == 2 * 3 + 3 + 2:  # a case of two rounds of three sides; a round; and one side more
            raise KeyboardInterrupt
        return right(side)

    monkeypatch.setattr(measure.Side, "start", start)
    status, results, text = measured(*PLAIN, "--operation", "forward", "--length", "16", "24", "32")
    assert status == 130 and results["interrupted"]
    rounds = [(row["length"], *(len(side["samples"]) for side in row["sides"].values())) for row in results["rows"]]
    assert rounds == [(16, 2, 2), (24, 1, 1)]
    assert "Interrupted" in text


def test_an_interrupt_before_the_first_sample(reference, measured):
    def change(o, call):
        raise KeyboardInterrupt

    reference(change)
    status, results, _ = measured(*PLAIN, "--operation", "forward")
    assert (status, results["rows"], results["interrupted"]) == (130, [], True)


# ---- Results ---------------------------------------------------------------------------------------------------------


def test_stored_results_give_the_same_tables(measured, tmp_path, capsys):
    markdown, again = tmp_path / "tables.md", tmp_path / "again.md"
    given = ["--length", "16", "24", "--kv-heads", "1", "--window", "4", "--markdown", str(markdown)]
    status, results, text = measured(*PLAIN, *given)
    assert status == 0 and text.count("lowest of 2:") == 2
    file = tmp_path / "results.json"
    assert bench.main(["--input", str(file), "--markdown", str(again)]) == 0
    assert capsys.readouterr().out.strip() == text.strip()
    assert again.read_text() == markdown.read_text()
    ratio = results["rows"][0]["sides"]["numpy"]["ratio"]
    line = f"| causal, length 16, batch 1, 2 heads of 16, 1 of keys, window 4 | .* | {ratio:.2f} "
    assert re.search(re.escape(line).replace(r"\.\*", ".*"), markdown.read_text())


def test_stored_results_name_no_place(measured, tmp_path):
    measured(*PLAIN)
    text = (tmp_path / "results.json").read_text()
    assert not re.search(r'"/|\b' + re.escape(os.uname().nodename) + r"\b", text)
    assert not list(tmp_path.glob("*.part"))


def test_a_picture(measured, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "picture.png"
    status, results, _ = measured(*PLAIN, "--png", str(picture))
    assert status == 0 and picture.read_bytes().startswith(b"\x89PNG")
    for rows in ([], results["rows"][:1] * 9):  # nothing; more than there are panels
        picture.unlink()
        many = [{**row, "head_dim": number} for number, row in enumerate(rows)]
        file = tmp_path / "other.json"
        report.write({**results, "rows": many}, file)
        assert bench.main(["--input", str(file), "--png", str(picture)]) == 0
        assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("option", ["json", "png", "markdown"])
def test_a_full_disk_is_reported_at_the_end(monkeypatch, capsys, tmp_path, option):
    def save(results, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bench.report, "write", save)
    monkeypatch.setattr(bench.report, "save_markdown", save)
    monkeypatch.setattr(bench.picture, "save", save)
    file = tmp_path / "file"
    assert bench.main([*PLAIN, f"--{option}", str(file)]) == 1
    out, err = capsys.readouterr()
    assert out.count("\n  numpy ") == 2
    assert err.count(f"flash bench: {file} can't be written: No space left on device") == 1


def test_the_commit_is_that_of_the_package(monkeypatch, tmp_path):
    """A package that lies in someone else's checkout, as in a virtual environment, has none."""
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    file = tmp_path / "facts.py"
    file.write_text("")
    monkeypatch.setattr(facts, "__file__", str(file))
    assert facts.commit() is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x"]
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "x"], check=True)
    assert re.fullmatch(r"[0-9a-f]{8}", facts.commit() or "")


# ---- The command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, message",
    [
        ("--operation sideways", "argument --operation: invalid choice: 'sideways'"),
        ("--dtype float64", "argument --dtype: invalid choice: 'float64'"),
        ("--length 0", "argument --length: must be at least 1, got 0"),
        ("--length 12 x", "argument --length: must be a whole number, got 'x'"),
        ("--head-dim 600", "argument --head-dim: q: last axis (the head dimension) must be at most 576, got 600"),
        ("--heads -1", "argument --heads: must be at least 1, got -1"),
        ("--heads 3 --kv-heads 2", "argument --kv-heads: 2 must divide the 3 heads"),
        ("--hidden 100", "argument --hidden: 100 is no multiple of the head dim 64"),
        ("--hidden 128 --heads 2", "argument --hidden: not allowed with --heads"),
        ("--batch 0", "argument --batch: must be at least 1, got 0"),
        ("--tokens 9 --batch 2", "argument --tokens: not allowed with --batch"),
        ("--window -1", "argument --window: must be at least 0, got -1"),
        ("--block-sparse 1.5", "argument --block-sparse: must be above 0 and at most 1, got 1.5"),
        ("--block-sparse 0.5 --block-size 100", "argument --block-size: invalid choice: 100"),
        ("--block-size 64", "argument --block-size: needs --block-sparse"),
        ("--dropout 1", "argument --dropout: must be at least 0 and below 1, got 1"),
        ("--dropout x", "argument --dropout: must be a number, got 'x'"),
        ("--peers nobody", "argument --peers: invalid choice: 'nobody'"),
        ("--device tpu", "argument --device: invalid choice: 'tpu'"),
        ("--array cupy", "argument --array: CuPy has no arrays on the CPU"),
        ("--array numpy --device cuda", "argument --array: NumPy has no arrays on CUDA"),
        ("--rounds 0", "argument --rounds: must be at least 1, got 0"),
        ("--seconds 0", "argument --seconds: must be above 0, got 0"),
        ("--seconds inf", "argument --seconds: must be above 0, got inf"),
        ("--limit nan", "argument --limit: must be above 0, got nan"),
        ("--product-size 0", "argument --product-size: must be at least 1, got 0"),
        ("--json nowhere/x.json", "argument --json: nowhere/x.json can't be written"),
        ("--png .", "argument --png: . can't be written"),
        ("--markdown nowhere/x.md", "argument --markdown: nowhere/x.md can't be written"),
        ("--input nowhere.json", "argument --input: nowhere.json can't be read: No such file"),
        ("--input FILE --length 3", "argument --length: nothing is measured with --input"),
        ("--nonsense", "unrecognized arguments: --nonsense"),
    ],
)
def test_wrong_options(monkeypatch, capsys, tmp_path, given, message):
    monkeypatch.setattr(bench, "run", lambda options: pytest.fail("measures nevertheless"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        bench.main(given.split())
    out, err = capsys.readouterr()
    assert (exit_.value.code, out) == (2, "")
    assert message in err.splitlines()[-1]


@pytest.mark.parametrize(
    "text, why",
    [("[1", "is not JSON"), ("[]", "doesn't hold results"), ('{"format": "flash bench 1"}', "doesn't hold results")],
)
def test_wrong_input(capsys, tmp_path, text, why):
    file = tmp_path / "file"
    file.write_text(text)
    with pytest.raises(SystemExit):
        bench.main(["--input", str(file)])
    assert "argument --input: " in (err := capsys.readouterr().err) and why in err


def test_no_matplotlib_and_no_ml_dtypes(monkeypatch, capsys):
    monkeypatch.setattr(options.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    dtype = ["--array", "numpy", "--dtype", "bfloat16"]
    for given, message in (
        (["--png", "x.png"], "argument --png: needs matplotlib, which is not installed"),
        (dtype, "argument --array: bfloat16 in NumPy needs the package ml_dtypes"),
    ):
        with pytest.raises(SystemExit):
            bench.main(given)
        assert message in capsys.readouterr().err


def test_no_gpu(monkeypatch, capsys):
    for name in ("cupy", "jax", "torch"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit):
        bench.main(["--device", "cuda"])
    assert "argument --device: PyTorch is not installed; NumPy has no arrays on CUDA" in capsys.readouterr().err


def test_the_command_and_its_progress_bar():
    """As a user runs it, with a terminal for standard error."""
    ours, theirs = pty.openpty()
    done = subprocess.run([*COMMAND, *PLAIN], stdout=subprocess.PIPE, stderr=theirs, text=True, timeout=100)
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert done.returncode == 0, shown
    assert "[########" in shown and ": numpy" in shown and "\x1b" not in done.stdout
    assert done.stdout.count("\n  numpy ") == 2


def test_import_flash_does_not_import_it():
    code = "import flash, sys; print([name for name in sys.modules if name.startswith('flash.bench')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_help_names_every_side(capsys):
    with pytest.raises(SystemExit):
        bench.main(["--help"])
    text = capsys.readouterr().out
    assert [name for name in PEERS if name not in text] == []


# ---- The clock of a GPU, on stand-ins --------------------------------------------------------------------------------


class Event:
    def __init__(self, log):
        self.log = log

    def record(self):
        self.log.append("event")

    def synchronize(self):
        self.log.append("wait")

    def elapsed_time(self, last):
        return 8.0


@pytest.mark.parametrize("name", ["cupy", "torch"])
def test_a_gpu_is_timed_by_events_behind_a_flushed_cache(name):
    log = []
    cuda = SimpleNamespace(Event=lambda **_: Event(log), get_elapsed_time=lambda first, last: 8.0)
    library = object.__new__(libraries.LIBRARIES[name])
    library.device, library.module = "cuda", SimpleNamespace(cuda=cuda)
    library.flushed = SimpleNamespace(fill=lambda value: log.append("flush"), zero_=lambda: log.append("flush"))
    read = library.start(lambda: log.append("call"), 2)
    assert log == ["flush", "event", "call", "call", "event"]  # and the host goes on
    assert read() == pytest.approx(4e-3)
    assert log[-1] == "wait"


def test_cases_know_their_work():
    case = Case("forward", "float32", 2, 10, 4, 2, 8, causal=True, window=3)
    seen = case.seen
    assert seen.sum() == 1 + 2 + 3 + 4 * 7 and not seen[0, 1] and seen[9, 6] and not seen[9, 5]
    assert case.flops() == 4 * 2 * 4 * 8 * seen.sum()
    assert [x.shape for x in case.inputs()] == [(2, 10, 4, 8), (2, 10, 2, 8), (2, 10, 2, 8), (2, 10, 4, 8)]
    assert case.input_bytes == sum(x.nbytes for x in case.inputs())
