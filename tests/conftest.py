"""Fixtures: `kind`, every kind of arrays that flash takes, and `backend`, one kind for each place where it computes.

What computes on the emulated device gets the mark `emulated`.
"""

import json
import os
import zlib
from collections import Counter
from pathlib import Path

import emulated
import pytest
from kinds import BACKENDS, KINDS, NumPy


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(config, items):
    """Marks the tests whose kind of arrays is the emulated one, and leaves out of them what `in_turn` says; skips all
    marked ones where there is no emulator. What a kind doesn't have as dtype is no test of its.
    """
    skip = pytest.mark.skip(reason="FLASH_LIBRARY is not an emulated library; test_emulated.py runs this with one")
    kept, dropped, groups = [], [], {}
    for item in items:
        arguments = item.callspec.params if hasattr(item, "callspec") else {}
        kind = next((x for x in arguments.values() if isinstance(x, NumPy)), None)
        left_out = kind is not None and arguments.get("dtype", kind.dtypes[0]) not in kind.dtypes
        if kind is not None and kind.name == "emulated" and not left_out:
            item.add_marker("emulated")
            if emulated.lib is not None and (axes := item.get_closest_marker("in_turn")):
                others = [(name, id(x)) for name, x in arguments.items() if name not in axes.args]
                groups.setdefault((item.parent.nodeid, item.originalname, *others), []).append(item)
        if emulated.lib is None and item.get_closest_marker("emulated"):
            item.add_marker(skip)
        (dropped if left_out else kept).append(item)
    turns = Counter()  # of each test
    for (module, test, *_), group in groups.items():
        chosen = group[turns[module, test] % len(group)]
        turns[module, test] += 1
        dropped += [item for item in group if item is not chosen]
    left_out = set(dropped)
    items[:] = [item for item in kept if item not in left_out]
    config.hook.pytest_deselected(items=dropped)


RAN = pytest.StashKey[set]()


@pytest.fixture(autouse=True)
def emulated_order(request):
    """On the emulator: in which order warps and blocks run, when copies arrive, and for the numeric sweep on which of
    the large devices, by the test's name."""
    if emulated.lib is None:
        yield
        return
    number = zlib.crc32(request.node.name.encode())
    fixtures = request.fixturenames  # vast memory lies on one device for all tests
    is_sweep = "backend" in fixtures and "vast" not in fixtures and emulated.lib.emulated_devices() > emulated.AMPERE
    chosen = (emulated.HOPPER, emulated.AMPERE)[number // 9 % 2] if is_sweep else 0
    with emulated.running(order=number % 3, copies=number // 3 % 3, seed=number), emulated.Device(chosen):
        yield
    if "backend" in request.fixturenames:
        request.config.stash.setdefault(RAN, set()).update(launch["kernel"] for launch in emulated.launches())


def pytest_sessionfinish(session):
    """Leaves word of the kernels that there are and of those whose results the sweep has checked."""
    folder = os.environ.get("FLASH_EMULATED_KERNELS")
    if folder and RAN in session.config.stash:
        known = {"all": json.loads(emulated.lib.emulated_kernels()), "ran": sorted(session.config.stash[RAN])}
        Path(folder, f"{os.getpid()}.json").write_text(json.dumps(known))


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request):
    """NumPy, PyTorch, JAX, CuPy: skipped, with the reason, where it can't run."""
    request.param.require()
    return request.param


@pytest.fixture(params=BACKENDS, ids=lambda kind: kind.backend)
def backend(request):
    """NumPy for the CPU, and for CUDA what can run here: CuPy, or its stand-in on the emulator."""
    return request.param
