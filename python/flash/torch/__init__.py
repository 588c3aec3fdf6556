"""Attention for PyTorch: differentiable, and an operator that PyTorch's compilers and transforms know.

    flash.torch.attention(q, k, v, causal=True)             tensors N + (length, heads, dim), options of flash.attention
    flash.torch.scaled_dot_product_attention(q, k, v)       PyTorch's own signature and layout
    with flash.torch.use(): model(x)                        a model that calls PyTorch's function, unchanged

Importing it imports PyTorch, 2.7 or later; `import flash` doesn't.
"""

import torch.utils._pytree

if not hasattr(torch.utils._pytree, "register_constant"):
    raise ImportError(f"flash.torch: needs PyTorch 2.7 or later, this is {torch.__version__}")

from flash.torch import vmap as vmap  # registers what the operators do under torch.func.vmap
from flash.torch.functional import attention
from flash.torch.hugging_face import register_transformers
from flash.torch.sdpa import scaled_dot_product_attention, use

__all__ = ["attention", "register_transformers", "scaled_dot_product_attention", "use"]
