"""docs/paper.md: made of what is stored and of nothing else; measurements run, and the attentions are what they say."""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import emulated
import numpy
import pytest

import flash
from flash import reference

ROOT = Path(__file__).resolve().parent.parent
needs_git = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not in a git checkout")
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")


@pytest.fixture
def paper(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """asv_bench/paper.py."""
    monkeypatch.syspath_prepend(ROOT / "asv_bench")
    return importlib.import_module("paper")


@pytest.fixture
def attentions(paper: ModuleType) -> ModuleType:
    return importlib.import_module("paper_rows.attentions")


# ---- The page --------------------------------------------------------------------------------------------------------


def test_the_page_is_made_of_what_is_stored(paper: ModuleType) -> None:
    results = paper.load()
    assert paper.PAGE.read_text() == paper.page(results), "python asv_bench/paper.py report"
    measured = {(x.row, x.kind) for x in results}
    for row in paper.ROWS:
        for kind in {"cpu", "emulator"} & {*row.kinds}:
            assert (row.name, kind) in measured
        picture = ROOT / f"docs/figures/paper-{row.name}.svg"
        assert picture.exists() == row.has_figure
        if row.has_figure:
            ElementTree.parse(picture)


def test_the_page_says_what_has_not_been_measured(paper: ModuleType) -> None:
    empty = paper.page([])
    for row in paper.ROWS:
        assert row.title in empty
    assert empty.count(paper.NOT_YET) > 30 and "figures/" not in empty


def test_stored_measurements_are_strict_and_name_no_place(paper: ModuleType) -> None:

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    for path in paper.FOLDER.glob("*/*.json"):
        text = path.read_text()
        stored = json.loads(text, parse_constant=refuse)
        assert (stored["machine"], stored["row"]) == (path.parent.name, path.stem)
        assert stored["command"].startswith("python asv_bench/paper.py measure")
        assert stored["commit"] and stored["date"]
        assert not re.search(r'"/|\b' + re.escape(os.uname().nodename) + r"\b", text)


def test_pictures_are_drawn(paper: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    paper.report(paper.FOLDER, tmp_path / "paper.md")
    assert (tmp_path / "paper.md").read_text() == paper.PAGE.read_text()
    drawn = {path.name for path in (tmp_path / "figures").iterdir()}
    assert drawn == {f"paper-{row.name}.svg" for row in paper.ROWS if row.has_figure}


def test_amounts(paper: ModuleType) -> None:
    amount = importlib.import_module("paper_rows.row").amount
    values = {40.3e9: "40.3 GB", 4.4e9: "4.40 GB", 999.0: "999 B", 1e12: "1.00 TB", 3e16: "30000 TB", 0: "0 B"}
    assert {value: amount(value, "B") for value in values} == values
    assert amount(0.0417, "s") == "41.7 ms" and amount(2.5e-7, "s") == "0.250 us"


# ---- What is measured ------------------------------------------------------------------------------------------------


@needs_torch
@pytest.mark.parametrize("length", [32, 100, 7])
def test_local_attention_is_attention_in_a_window(attentions: ModuleType, length: int) -> None:
    import torch

    q, k, v, do = (torch.randn(2, length, 3, 16, dtype=torch.float64) for _ in range(4))
    found = attentions.local(16)(q, k, v)
    wanted = reference.attention(*(x.numpy() for x in (q, k, v)), window=(16, 16))
    assert numpy.abs(found.numpy() - wanted).max() < 1e-12
    gradients = attentions.training_step(attentions.local(16), q, k, v, do)()
    wanted = reference.attention_backward(*(x.numpy() for x in (do, q, k, v)), window=(16, 16))[:3]
    for one, other in zip(gradients, wanted, strict=True):
        assert numpy.abs(one.numpy() - other).max() < 1e-12


@needs_torch
def test_low_rank_attention_with_the_identity_is_exact(attentions: ModuleType) -> None:
    """And with another mixture it is standard attention to mixed keys, as many as its rank."""
    import torch

    q, k, v = (torch.randn(2, 40, 3, 16, dtype=torch.float64) for _ in range(3))
    exact = reference.attention(*(x.numpy() for x in (q, k, v)))
    everything = torch.eye(40, dtype=torch.float64)
    for function in (attentions.standard, attentions.low_rank(everything, everything)):
        assert numpy.abs(function(q, k, v).numpy() - exact).max() < 1e-12
    mix_k, mix_v = (torch.randn(5, 40, dtype=torch.float64) for _ in range(2))
    mixed = [torch.einsum("rn,bnhd->brhd", mix, x).numpy() for mix, x in ((mix_k, k), (mix_v, v))]
    found = attentions.low_rank(mix_k, mix_v)(q, k, v).numpy()
    assert numpy.abs(found - reference.attention(q.numpy(), *mixed)).max() < 1e-12


def stored_by(folder: Path) -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text())["values"] for path in folder.glob("*/*.json")}


@needs_git
@needs_torch
def test_rows_are_measured_on_the_cpu(paper: ModuleType, tmp_path: Path) -> None:
    """Small, in a process with one thread; and what is stored becomes a page."""
    folders = os.pathsep.join(dict.fromkeys(str(Path(folder).parent) for folder in flash.__path__))
    environment = {**os.environ, "PYTHONPATH": folders, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, ROOT / "asv_bench/paper.py", "measure", "--machine", "sample", "--small"]
    rows = [row.name for row in paper.ROWS if "cpu" in row.kinds]
    ran = subprocess.run([*command, "--folder", tmp_path], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    stored = stored_by(tmp_path)
    assert stored.keys() == {*rows}
    assert all(seconds > 0 for seconds in stored["gpt2_medium"]["seconds"].values())
    assert stored["length"]["found"]["standard"]["512"][1] > 4 * 4 * 512**2  # a matrix for each head
    assert stored["training"]["found"]["flash"]["tokens"] > 0
    page = paper.page(paper.load(tmp_path))
    assert "CPU, sample" in page and "not measured yet" in page


@needs_git
@pytest.mark.emulated
def test_rows_are_counted_on_the_emulator(paper: ModuleType, tmp_path: Path) -> None:
    assert emulated.lib is not None
    paper.main(["measure", "--machine", "sample", "--device", "emulator", "--small", "--folder", str(tmp_path)])
    stored = stored_by(tmp_path)
    assert stored.keys() == {row.name for row in paper.ROWS if "emulator" in row.kinds}
    traffic = stored["gpt2_medium"]
    for gpu, total in traffic["total"].items():
        assert math.isclose(total, traffic["predicted"][gpu], rel_tol=0.02) and total > traffic["needed"][gpu]
    law = next(row for row in paper.ROWS if row.name == "io_law")
    assert numpy.allclose(law.exponents(stored["io_law"]["points"]), (2, 2, -1), atol=1e-3)
