"""The emulator against recordings of a real GPU: one instruction at a time, with the inputs that the GPU had.

tests/emulator/probes/README.md says what is recorded and how. Without a recording the probes still run here, without a
report of the emulator, and the comparison is tried on values that were made wrong.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import emulated_library
import numpy as np
import probes
import pytest

pytestmark = pytest.mark.slow  # the emulator is built first

PROBES = Path(__file__).parent / "emulator" / "probes"
RECORDED = sorted((PROBES / "recorded").glob("*/*.txt"))
TABLES = ["lanes", "hopper"]
# They also start tiles where a swizzle's pattern doesn't, to learn what a GPU does; the emulator reports that.
DESCRIPTORS = {f"wgmma_{matrix}_{order}_major" for matrix in "ab" for order in ("k", "mn")}


@pytest.fixture(scope="module")
def program() -> Path:
    return emulated_library.built("emulator_probes") / "probes"


def run(program: Path, folder: Path, table: str, inputs: Path | None = None, races: str = "0") -> Path:
    """The file that the emulator gives, with the inputs of another file or its own."""
    path = folder / f"emulated_{inputs.name if inputs else table}"
    command = [program, "run", table, *(["-i", inputs] if inputs else [])]
    with path.open("w") as out:
        environment = {**os.environ, "EMULATOR_DEVICES": "90", "EMULATOR_RACES": races}
        ran = subprocess.run(command, stdout=out, env=environment, timeout=300)
    assert ran.returncode in (0, 1)  # 1: a probe failed, and its line says why
    return path


def replay(program: Path, folder: Path, recording: Path, table: str) -> dict[str, probes.Comparison]:
    """Runs the probes of a recording on the emulator and compares."""
    recorded = probes.read(recording)
    emulated = probes.read(run(program, folder, table, recording))
    positive_inputs = folder / "positive.txt"
    probes.write(positive_inputs, probes.magnitudes(recorded))
    positive = probes.read(run(program, folder, table, positive_inputs))
    results = {}
    for name, probe in recorded.items():
        if probe.error:
            continue  # refused by the GPU: said when it was recorded
        results[name] = (
            probes.compare(probe, emulated[name], positive.get(name))
            if name in emulated
            else probes.Comparison(["there is no such probe any more: take it out of the recording"])
        )
    return results


@pytest.fixture(scope="module")
def emulated(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the emulator gives for the inputs of its own."""
    return run(program, tmp_path_factory.mktemp("probes"), "lanes")


@pytest.mark.parametrize(("table", "least"), [("lanes", 200), ("hopper", 60)])
def test_every_probe_runs_without_a_report(table: str, least: int, program: Path, tmp_path: Path) -> None:
    all_probes = probes.read(run(program, tmp_path, table, races="1"))
    assert len(all_probes) > least
    errors = {name: probe.error for name, probe in all_probes.items() if probe.error}
    assert set(errors) == (DESCRIPTORS if table == "hopper" else set())
    assert all(error.startswith("launch: misaligned") for error in errors.values())
    all_probes = probes.read(run(program, tmp_path, table))
    assert [name for name, probe in all_probes.items() if not probe.outputs] == []


@pytest.mark.parametrize("recording", RECORDED or [None], ids=lambda path: path and f"{path.parent.name}-{path.stem}")
def test_recorded(recording: Path | None, program: Path, tmp_path: Path) -> None:
    if recording is None:
        pytest.skip("nothing recorded on a GPU yet: tests/emulator/probes/README.md")
    assert recording.stem in TABLES
    results = replay(program, tmp_path, recording, recording.stem)
    assert results
    for name, result in results.items():
        if result.share:
            print(f"{name}: {result.share:.2f} of what is allowed")
    assert {name: result.different for name, result in results.items() if result.different} == {}


def test_recordings_are_small_and_say_where_they_come_from() -> None:
    if not RECORDED:
        pytest.skip("nothing recorded on a GPU yet: tests/emulator/probes/README.md")
    for recording in RECORDED:
        about = recording.read_text().splitlines()[0]
        assert about.startswith("# ") and "driver" in about and "CUDA" in about
    sizes: dict[str, int] = {}
    for recording in RECORDED:
        sizes[recording.parent.name] = sizes.get(recording.parent.name, 0) + recording.stat().st_size
    assert {gpu: size for gpu, size in sizes.items() if size >= 1 << 20} == {}


# What is made wrong, and by how much: a bit of one output, or a number in units of what is allowed.
@pytest.mark.parametrize(
    ("name", "change", "found"),
    [
        ("prmt_b32", lambda words: words ^ 0x100, True),
        ("atom_add_f32_shared", lambda words: words ^ 1, True),
        ("shfl_up", lambda words: words ^ 0x80000000, True),
        ("ex2_approx_f32", lambda words: words + 2, False),
        ("ex2_approx_f32", lambda words: words + 3, True),
        ("ex2_approx_f32", lambda words: words | 0x80000000, True),
        ("rcp_approx_f32", lambda words: words | 0x7F800001, True),  # NaN
        ("tanh_approx_f16x2", lambda words: words ^ 0x2000, True),
        ("mma_m16n8k16_f32_f16", lambda words: words + 1, False),
        ("mma_m16n8k16_f32_f16", lambda words: words ^ 0x400, True),
        ("mma_m16n8k8_f16", lambda words: words ^ 0x00040000, True),
    ],
)
def test_a_wrong_value_is_found(
    name: str, change: Callable[[np.ndarray], np.ndarray], found: bool, emulated: Path, program: Path, tmp_path: Path
) -> None:
    recorded = probes.read(emulated)
    recorded = {name: recorded[name]}
    _, words = recorded[name].outputs["d0"]
    lane = next(i for i, word in enumerate(words) if 0 < word & 0x7F800000 < 0x7F800000)  # an ordinary number
    words[lane : lane + 1] = change(words[lane : lane + 1])
    recording = tmp_path / "recording.txt"
    probes.write(recording, recorded)
    different = replay(program, tmp_path, recording, "lanes")[name].different
    assert bool(different) is found
    if found:
        assert f"first {lane}:" in different[0]


def test_what_was_recorded_is_compared_only_with_the_same_probe(emulated: Path, program: Path, tmp_path: Path) -> None:
    recorded = {name: probe for name, probe in probes.read(emulated).items() if name in ("fma_rn_f32", "prmt_b32")}
    recorded["fma_rn_f32"].text = "fma.rz.f32 d0, a0, b0, c0;"
    recorded["gone"] = probes.Probe("gone", outputs=recorded["prmt_b32"].outputs)
    recording = tmp_path / "recording.txt"
    probes.write(recording, recorded)
    results = replay(program, tmp_path, recording, "lanes")
    assert results["fma_rn_f32"].different == ["the probe has changed: record it again"]
    assert "no such probe" in results["gone"].different[0]
    assert results["prmt_b32"].different == []
