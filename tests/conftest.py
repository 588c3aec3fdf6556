"""Fixtures: `kind`, every kind of arrays that flash takes, `backend`, one kind for each place where it computes, and
what builds the emulator's programs. What computes on the emulated device gets the mark `emulated`.
"""

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import emulated
import pytest
from kinds import BACKENDS, KINDS


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items):
    """Marks the tests whose kind of arrays is the emulated one; skips all marked ones where there is no emulator."""
    skip = pytest.mark.skip(reason="FLASH_LIBRARY is not an emulated library; test_emulated.py runs this with one")
    for item in items:
        arguments = item.callspec.params.values() if hasattr(item, "callspec") else ()
        if any(getattr(x, "name", None) == "emulated" for x in arguments):
            item.add_marker("emulated")
        if emulated.lib is None and item.get_closest_marker("emulated"):
            item.add_marker(skip)


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request):
    """NumPy, PyTorch, JAX, CuPy: skipped, with the reason, where it can't run."""
    request.param.require()
    return request.param


@pytest.fixture(params=BACKENDS, ids=lambda kind: kind.backend)
def backend(request):
    """NumPy for the CPU and, where there is a GPU, CuPy for CUDA."""
    return request.param


def cutlass_sources():
    """The folder of CUTLASS's include/ and examples/ in the wheel nvidia-cutlass; None without it."""
    spec = importlib.util.find_spec("cutlass_library")
    return spec and Path(spec.submodule_search_locations[0]) / "source"


@pytest.fixture(scope="session")
def cutlass():
    """The same; skips without it."""
    return cutlass_sources() or pytest.skip("CUTLASS is not installed: pip install --no-deps nvidia-cutlass")


@pytest.fixture(scope="session")
def build_emulator(tmp_path_factory):
    """build_emulator(target) builds a target of tests/emulator and returns the build folder, the same for all."""
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    folder = tmp_path_factory.mktemp("emulator")
    source = Path(__file__).parent / "emulator"
    configure = ["cmake", "-S", source, "-B", folder, f"-DEMULATOR_CUTLASS={cutlass_sources() or ''}"]
    subprocess.run(configure, check=True, capture_output=True)

    def build(target):
        command = ["cmake", "--build", folder, "--parallel", str(os.cpu_count()), "--target", target]
        built = subprocess.run(command, capture_output=True, text=True)
        assert built.returncode == 0, built.stdout + built.stderr
        return folder

    return build
