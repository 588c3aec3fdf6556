"""Exact attention for NumPy, CuPy, PyTorch and JAX arrays, without the matrix of scores.

    flash.attention(q, k, v, causal=True)       q: N + (Lq, Hq, D),  k: N + (Lk, Hk, D),  v: N + (Lk, Hk, Dv)

On CPUs, and on NVIDIA GPUs of compute capability 8.0 or later. No array is copied, and no array library is imported:
results are of the kind of q, on its device. `python -m flash info` says what runs here.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from flash._lib import get_include, version
from flash.attention import attention, attention_backward, attention_vjp, workspace_bytes
from flash.block_mask import BlockMask
from flash.exceptions import CudaError, FlashError, FlashTypeError, FlashValueError, UnsupportedError
from flash.explain import explain, show_config
from flash.gradients import Gradients
from flash.tools import attention_weights, dropout_mask, merge

if TYPE_CHECKING:
    from flash import reference

__version__ = version()

__all__ = [
    "BlockMask",
    "CudaError",
    "FlashError",
    "FlashTypeError",
    "FlashValueError",
    "Gradients",
    "UnsupportedError",
    "__version__",
    "attention",
    "attention_backward",
    "attention_vjp",
    "attention_weights",
    "dropout_mask",
    "explain",
    "get_include",
    "merge",
    "reference",
    "show_config",
    "workspace_bytes",
]

# Submodules that are imported at first use: they need another package, or are needed rarely.
_LAZY = ("jax", "reference", "torch")


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'flash' has no attribute {name!r}")
    try:
        return import_module(f"flash.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"flash.{name}":
            raise
        raise AttributeError(f"flash.{name} is not part of flash {__version__}") from error


def __dir__() -> list[str]:
    return list(__all__)
