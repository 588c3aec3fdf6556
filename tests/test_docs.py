"""The documents: README's Python runs, what they link to exists, and what they name is there."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import flash

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md", *PAGES]


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


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # PyTorch's own, when it compiles
@pytest.mark.parametrize("page, package", [("docs/torch.md", "torch")])
def test_python_in_the_page_of_a_framework_runs(page, package):
    pytest.importorskip(package, reason=f"{package} is not installed")
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    names: dict[str, object] = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"{page}, block {number}", "exec"), names)
    assert len(blocks) > 1 and names["o"].shape == names["q"].shape


def headings(path):
    titles = re.findall(r"^#+ (.*)", path.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    path = ROOT / document
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if not target.startswith("https://"):
            file, _, heading = target.partition("#")
            assert path.parent.joinpath(file).exists(), target
            assert not heading or heading in headings(path.parent / file if file else path), target


@pytest.mark.parametrize("document", ["CONTRIBUTING.md", "docs/design.md", "docs/gpu.md"])
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


def test_the_list_of_what_has_not_run_on_a_gpu_has_every_kernel():
    built: dict[str, tuple[set[str], set[str]]] = {}
    rows = (ROOT / "cuda/instances.def").read_text()
    for name, head_dim, options in re.findall(r"^FLASH_KERNEL\(\w+, (\w+), \w+, (\d+), (\w+), \w+\)", rows, re.M):
        head_dims, variants = built.setdefault(name, (set(), set()))
        head_dims.add("any" if head_dim == "0" else head_dim)
        variants.add("with" if options == "options" else "without")
    listed = re.findall(r"^\| `(\w+)` \| ([\w, ]+) \| ([\w, ]+) \|$", (ROOT / "docs/gpu.md").read_text(), re.M)
    assert {name: (set(dims.split(", ")), set(options.split(", "))) for name, dims, options in listed} == built
