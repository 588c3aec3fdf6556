"""The demonstration: its table, its verdict, and what it survives."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys

import numpy
import pytest

import flash
from flash import demo

COMMAND = [sys.executable, "-m", "flash", "demo"]
ROW = re.compile(r"^ *(\d+)  (forward|gradients|block-sparse) .* (PASS|FAIL|-)$", re.MULTILINE)


def run(*options: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*COMMAND, *options], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == status, done.stdout + done.stderr
    return done


def run_here(capsys, *options: str) -> tuple[int, str]:
    """The exit status and the output of a small demonstration in this process."""
    with pytest.raises(SystemExit) as exit_:
        demo.main(["--no-picture", "--lengths", "96", *options])
    return exit_.value.code, capsys.readouterr().out


def test_quick(tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "picture.png"
    done = run("--quick", "--output", str(picture))
    rows = ROW.findall(done.stdout)
    assert [row[:2] for row in rows] == [(n, name) for n in ("128", "256", "512") for name in demo.OPERATIONS]
    assert {row[2] for row in rows} == {"PASS"}
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert f"Picture: {picture}" in done.stdout
    last = done.stdout.splitlines()[-1]
    assert last.startswith("flash demo: 9 of 9 checks passed; at length 512")
    assert last.endswith(".")
    assert "[27/27] 512 block-sparse: check" in done.stderr  # no terminal: plain lines


def test_standard_attention_is_refused_memory():
    done = run("--lengths", "64", "1024", "--memory-limit", "24", "--no-picture")
    assert len(ROW.findall(done.stdout)) == 6
    for line in done.stdout.splitlines():
        if match := ROW.match(line):
            assert ("out of memory" in line) == (match[1] == "1024"), done.stdout
    assert "6 of 6 checks passed" in done.stdout


def test_standard_attention_raises_memory_error(monkeypatch, capsys):
    standard = flash.reference.attention

    def attention(*arrays, **options):
        if "dtype" not in options:  # not the check's
            raise MemoryError
        return standard(*arrays, **options)

    monkeypatch.setattr(flash.reference, "attention", attention)
    status, text = run_here(capsys)
    assert (status, text.count("out of memory"), text.count("PASS")) == (0, 2, 3)


def test_standard_attention_that_would_not_fit_is_not_tried(monkeypatch, capsys):
    monkeypatch.setattr(demo, "free_bytes", lambda xp: 1000)
    status, text = run_here(capsys)
    assert (status, text.count("out of memory"), text.count("PASS")) == (0, 3, 3)


@pytest.mark.parametrize(
    ("name", "failures"), [("attention", 2), ("attention_vjp", 1)], ids=["wrong output", "wrong gradient"]
)
def test_a_wrong_result_fails(monkeypatch, capsys, name, failures):
    right = getattr(flash, name)

    def wrong_attention(*arrays, **options):
        return right(*arrays, **options) * 1.001

    def wrong_vjp(*arrays, **options):
        o, vjp = right(*arrays, **options)
        return o, lambda do: vjp(do)._replace(dv=numpy.full_like(do, numpy.nan))

    monkeypatch.setattr(flash, name, wrong_attention if name == "attention" else wrong_vjp)
    status, text = run_here(capsys)
    assert (status, text.count("FAIL"), text.count("PASS")) == (1, failures, 3 - failures)
    assert f"{3 - failures} of 3 checks passed" in text.splitlines()[-1]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_dtypes(capsys, dtype):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    status, text = run_here(capsys, "--dtype", dtype, "--dim", "40", "--heads", "2", "--seed", "3")
    assert (status, text.count("PASS")) == (0, 3)


def test_slow_things_are_left_out(monkeypatch, capsys):
    """With no time at all, nothing runs; with nothing checked, the demonstration has not succeeded."""
    monkeypatch.setattr(demo, "_BUDGET", -1.0)
    status, text = run_here(capsys)
    assert (status, text.count("too slow"), text.count("PASS")) == (1, 6, 0)


def test_long_gradients_are_checked_in_part(monkeypatch, capsys):
    monkeypatch.setattr(demo, "_CHECK_LENGTH", 64)
    status, text = run_here(capsys)
    assert (status, text.count("PASS")) == (0, 3)
    assert "only dq is checked" in text


def test_a_picture_that_cannot_be_written(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    status, text = run_here(capsys, "--output", str(tmp_path / "nowhere" / "picture.png"))
    assert status == 0
    assert "No picture" in text


def test_unsupported_gpu_falls_back_to_numpy(monkeypatch):
    """A stand-in for CuPy, on whose arrays flash raises what it raises without CUDA kernels."""

    class CuPy:
        ones = staticmethod(numpy.ones)

    def attention(*_, **__):
        raise flash.UnsupportedError("q: CUDA arrays aren't supported yet")

    monkeypatch.setitem(sys.modules, "cupy", CuPy)
    monkeypatch.setattr(flash, "attention", attention)
    xp, about = demo.best_device()
    assert xp is numpy
    assert "no GPU is used: q: CUDA arrays aren't supported yet" in about


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lengths", "0"], "must be at least 64"),
        (["--dtype", "float64"], "invalid choice"),
        (["--seed", "-1"], "must be at least 0"),
        (["--nonsense"], "unrecognized arguments"),
    ],
)
def test_wrong_options(options, message):
    assert message in run(*options, status=2).stderr


def test_help():
    assert "--memory-limit" in run("--help").stdout


def test_interrupt():
    process = subprocess.Popen([*COMMAND, "--no-picture"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors


def test_progress_bar_on_a_terminal():
    ours, theirs = pty.openpty()
    command = [*COMMAND, "--no-picture", "--lengths", "64"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, text=True, check=True, timeout=60)
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert "\r\x1b[K[####" in shown
    assert "\x1b" not in done.stdout
