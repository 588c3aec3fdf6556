"""Fixtures: `kind`, every kind of arrays that flash takes, and `backend`, one kind for each place where it computes."""

import pytest
from kinds import BACKENDS, KINDS


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request):
    """NumPy, PyTorch, JAX, CuPy: skipped, with the reason, where it can't run."""
    request.param.require()
    return request.param


@pytest.fixture(params=BACKENDS, ids=lambda kind: kind.backend)
def backend(request):
    """NumPy for the CPU and, where there is a GPU, CuPy for CUDA."""
    return request.param
