"""Attention in JAX programs: differentiable, and under jit, grad, vmap, checkpoint, scan and sharding.

    flash.jax.attention(q, k, v, causal=True)                        q: N + (Lq, Hq, D), as everywhere in flash
    flash.jax.dot_product_attention(query, key, value)               the signature of jax.nn.dot_product_attention

Calls go through XLA's foreign function interface into libflash, on the CPU and on CUDA. From the user inwards:
`api` and `nn` read the arguments, `gradients` says how they are differentiated, `batching` what vmap does, `sharding`
what happens to arrays that lie on several devices, and `kernel` is one call of the library.
"""

import jax

if not hasattr(jax, "ffi"):
    raise ImportError(f"flash.jax: needs JAX 0.5 or later, which has jax.ffi, got {jax.__version__}")

from flash.jax.api import attention
from flash.jax.nn import dot_product_attention

__all__ = ["attention", "dot_product_attention"]
