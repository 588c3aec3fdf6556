"""flash as an attention function of Hugging Face's `transformers`, which this file imports at first use only."""

from __future__ import annotations

from typing import Any

import torch

from flash.exceptions import FlashValueError, UnsupportedError
from flash.torch.functional import attention
from flash.torch.operators import Tensor


def register_transformers(name: str = "tiled") -> str:
    """Register flash with `transformers`, as an attention function that models can be told to use.

    Unlike a model with ``attn_implementation="sdpa"`` under `use`, it computes grouped heads without repeating keys,
    and models with softcap (Gemma 2) or sinks (gpt-oss), for which PyTorch has no function.

    Parameters
    ----------
    name : str
        What ``attn_implementation`` takes. It may not have "flash" in it: `transformers` takes such names for those of
        the package flash-attn.

    Returns
    -------
    str
        `name`.

    Raises
    ------
    ImportError
        `transformers` isn't installed, or is older than 4.53.

    Examples
    --------
    >>> import flash.torch
    >>> name = flash.torch.register_transformers()                                             # doctest: +SKIP
    >>> model = transformers.AutoModel.from_pretrained(folder, attn_implementation=name)       # doctest: +SKIP
    """
    if "flash" in name:
        raise FlashValueError(
            f"name: must be without 'flash', which transformers takes for the package flash-attn, got {name!r}"
        )
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(name, attention_forward)
    AttentionMaskInterface.register(name, sdpa_mask)
    return name


def attention_forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    cache: Any = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What a layer of `transformers` calls.

    query: (B, Hq, L, D), key and value: (B, H, S, D), attention_mask: bool or float, broadcasts to (B, Hq, L, S), or
    None; position_bias: added to the scores; s_aux: sinks, (Hq,). Returns (B, L, Hq, D), and no weights.
    """
    if cache is not None:
        raise UnsupportedError("cache: paged caches aren't available; use attn_implementation='sdpa' for this")
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    # A mask has the causal rule in it, and a single query that is decoded sees every key.
    causal = bool(is_causal) and attention_mask is None and q.shape[1] > 1
    is_bool = attention_mask is not None and attention_mask.dtype == torch.bool
    mask, bias = (attention_mask, position_bias) if is_bool else (None, attention_mask)
    if bias is None:
        bias = position_bias
    elif bias is not position_bias and position_bias is not None:
        bias = bias + position_bias
    o = attention(
        q, k, v, scale=scaling, causal=causal, q_offset=0 if causal else None, mask=mask, bias=bias, softcap=softcap,
        sinks=s_aux, dropout=dropout,
    )  # fmt: skip
    return o, None
