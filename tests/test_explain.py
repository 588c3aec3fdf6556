"""What `flash.explain` predicts of memory traffic, held against counts of things that ran.

Byte for byte the kernels' traffic is in test_traffic.py. Here: what explain says without running anything is right to a
few percent; and standard attention, run as kernels of its own, moves the matrices that explain counts for it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import emulated
import emulated_library
import numpy
import pytest
from traffic import Calls, Case

import flash
from flash import reference

SHAPE: dict[str, Any] = {"Lq": 512, "Lk": 512, "Hq": 2, "Hk": 1, "dtype": "float16"}
PATTERNS: dict[str, dict[str, Any]] = {
    "dense": {},
    "causal": {"causal": True},
    "window": {"window": (150, 0)},
    "blocks": {"block_size": (128, 64)},
    "large_blocks": {"block_size": (256, 128), "density": 0.3},
    "off_the_tiles": {"B": 2, "Lq": 530, "Lk": 700, "Hq": 1, "causal": True},
}
DEVICES = {"ampere": emulated.AMPERE, "hopper": emulated.HOPPER}
DIMS = [("float16", 128), ("float16", 192), ("float16", 256), ("float32", 64), ("float32", 256), ("float32", 576)]


def check(case: Case, deterministic: bool = False, reads: float = 0.02, writes: float = 0.05) -> None:
    """Prediction over count, forward and backward, differs from 1 by no more than this."""
    calls = Calls(case, deterministic=deterministic)
    first = next(n for n, kernel in enumerate(calls.launches) if kernel.startswith("backward"))
    kernels = [*calls.launches]
    for told, names in zip(calls.explained, (kernels[:first], kernels[first:]), strict=True):
        read, written = calls.requested_bytes(names)
        assert told.requested_bytes_read == pytest.approx(read, rel=reads), names
        assert told.requested_bytes_written == pytest.approx(written, rel=writes), names
        assert told.requested_bytes_read >= told.bytes_read or case.has_blocks


@pytest.mark.emulated
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_requested_bytes(pattern: str, device: str) -> None:
    check(Case("", **{**SHAPE, **PATTERNS[pattern], "device": DEVICES[device]}))


@pytest.mark.emulated
@pytest.mark.parametrize("dim", [96, 128, 192, 256])
def test_requested_bytes_of_hopper(dim: int) -> None:
    check(Case("", **{**SHAPE, "Hq": 1, "D": dim, "Dv": dim, "causal": True, "device": emulated.HOPPER}))


@pytest.mark.emulated
@pytest.mark.parametrize(("dtype", "dim"), DIMS)
def test_requested_bytes_of_other_kernels(dtype: str, dim: int) -> None:
    """Deterministic gradients on tensor cores, and the kernels for float32, whose rows come in chunks."""
    length = 256 if dim <= 256 else 130
    case = Case("", **{**SHAPE, "Lq": length, "Lk": length, "Hq": 1, "D": dim, "Dv": dim, "dtype": dtype})
    check(case, deterministic=True)


@pytest.mark.emulated
@pytest.mark.parametrize(("dtype", "least"), [("float32", 0.7), ("float16", 0.6)])
def test_requested_bytes_of_bias_and_sinks(dtype: str, least: float) -> None:
    """A bias isn't read in whole sectors, and counts by its elements; on tensor cores two loads ask for each sector."""
    case = Case("", **{**SHAPE, "dtype": dtype})
    calls = Calls(case, with_bias=True, with_sinks=True)
    backward = [kernel for kernel in calls.launches if kernel.startswith("backward")]
    for told, names in zip(calls.explained, ([case.kernel("forward")], backward), strict=True):
        read, written = calls.requested_bytes(names)
        assert least < told.requested_bytes_read / read < 1.02
        assert told.requested_bytes_written == pytest.approx(written, rel=0.05)


def test_the_cpu_requests_nothing() -> None:
    x = numpy.zeros((100, 2, 16), "f4")
    told = flash.explain(x, x, x)
    assert told.requested_bytes_read is None and told.requested_bytes_written is None
    assert "requested bytes read     -" in str(told)


# What Nsight Compute prints with --csv --print-units base, but for columns that are not read.
NCU = """
==PROF== Connected to process 1
"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"
"0","void flash::forward_sm90<__half, 64>(ForwardParams)","dram__bytes_read.sum","byte","1,048,576"
"0","void flash::forward_sm90<__half, 64>(ForwardParams)","lts__t_sectors_op_read.sum","sector","65536"
"1","void flash::backward_prepare_any(PrepareParams)","dram__bytes_write.sum","byte","524288"
"2","void flash::backward_sm90<__half, 64>(BackwardParams)","lts__t_sectors_op_write.sum","sector","32768"
"2","void flash::backward_sm90<__half, 64>(BackwardParams)","lts__t_sectors_op_red.sum","sector","32768"
"""


def test_counts_of_a_profiler_beside_prediction(tmp_path: Any) -> None:
    """asv_bench/traffic_cuda.py: its call runs, its metrics are those it reads, and a profile becomes a table."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    script = [sys.executable, emulated_library.ROOT / "asv_bench/traffic_cuda.py"]
    sizes = ["--device", "cpu", "--batch", "1", "--length", "256", "--heads", "2", "--density", "0.5"]

    def run(*more: Any) -> str:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [Path(flash.__file__).parents[1]]))}
        done = subprocess.run([*script, *more], env=environment, capture_output=True, text=True)
        return done.stdout + done.stderr

    assert run(*sizes) == ""
    assert set(re.findall(r'"(\w+__\w+\.sum)"', NCU)) <= set(run("--metrics").strip().split(","))
    profile = tmp_path / "traffic.csv"
    profile.write_text(NCU)
    told = run(*sizes, "--read", profile)
    assert "| forward, counted | 1.0 MiB | 0.0 MiB | 2.0 MiB | 0.0 MiB |" in told
    assert "| backward, counted | 0.0 MiB | 0.5 MiB | 0.0 MiB | 2.0 MiB |" in told
    assert "| forward, predicted | 0.2 MiB | 0.1 MiB | - | - |" in told
    profile.write_text("==ERROR== no permission")
    assert "--read: there is no table in it" in run(*sizes, "--read", profile)


@pytest.mark.parametrize(("N", "d"), [(192, 64), (130, 40)])
def test_standard_attention_moves_its_matrices(N: int, d: int, tmp_path: Any) -> None:
    """emulator/standard.cu, counted on the emulator: scores, probabilities and their gradients, in float16."""
    program = emulated_library.built("standard_attention") / "standard_attention"
    rng = numpy.random.default_rng(4)
    q, k, v, do = arrays = [rng.normal(size=(N, 1, d)).astype("f2") for _ in range(4)]
    given, results = tmp_path / "given", tmp_path / "results"
    given.write_bytes(b"".join(x.tobytes() for x in arrays))
    ran = subprocess.run([program, str(N), str(d), given, results], capture_output=True, text=True, check=True)

    found = numpy.fromfile(results, "f2").reshape(4, N, 1, d).astype("f8")
    exact = [reference.attention(q, k, v, dtype="f8"), *reference.attention_backward(do, q, k, v, dtype="f8")[:3]]
    for one, other in zip(found, exact, strict=True):
        assert numpy.abs(one - other).max() < 4e-3 * numpy.abs(other).max()

    matrices = {"s", "p", "dp", "ds"}
    for name, counts in json.loads(ran.stdout).items():
        counted = sum(sum(bytes_) for array, bytes_ in counts.items() if array in matrices)
        assert counted == flash.explain(q, k, v, backward=name == "backward").standard_bytes
