"""The documents: README's Python runs, what they link to exists, and what they name is there."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import flash

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/design.md", "examples/README.md"]


def test_python_in_the_readme_runs(capsys):
    """In one namespace, as a reader would type it."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, object] = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"README.md, block {number}", "exec"), names)
    assert names["dq"].shape == names["q"].shape
    text = capsys.readouterr().out
    assert "% of the blocks" in text
    assert "workspace" in text


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    text = (ROOT / document).read_text()
    headings = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)", text, re.M)
    }
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in headings, target
        elif not target.startswith("https://"):
            assert (ROOT / document).parent.joinpath(target).exists(), target


@pytest.mark.parametrize("document", ["CONTRIBUTING.md", "docs/design.md"])
def test_named_source_files_exist(document):
    named = re.findall(r"`((?:src|python|tests|cmake|docs)/[\w/.]+\.\w+)`", (ROOT / document).read_text())
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_readme_names_every_function_and_option():
    text = (ROOT / "README.md").read_text()
    functions = {name for name in flash.__all__ if inspect.isfunction(getattr(flash, name))} - {"get_include"}
    elsewhere = {"q", "k", "v", "seed", "out", "workspace", "return_lse", "q_scale", "k_scale", "v_scale"}
    options = set(inspect.signature(flash.attention).parameters) - elsewhere
    assert {name for name in functions | options if f"`{name}`" not in text} == set()


def test_the_changelog_knows_this_version():
    assert f"\n## {flash.__version__}" in (ROOT / "CHANGELOG.md").read_text()
