"""What the operators do under `torch.func.vmap`: the batch becomes one more leading axis, and it stays one call."""

from __future__ import annotations

from typing import Any

import torch

from flash.exceptions import UnsupportedError
from flash.torch.operators import NAMES, Settings, Tensor, backward_operator, operator


def _forward(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    dims = dict(zip(NAMES, in_dims, strict=True))
    batch = _Batch(info.batch_size, dims, dict(zip(NAMES, args, strict=True)))
    if batch.only_one_by_one():
        results = [operator(*(batch.part(name, n) for name in NAMES)) for n in range(info.batch_size)]
        return tuple(torch.stack(x) for x in zip(*results, strict=True)), (0, 0)
    return operator(*(batch.whole(name) for name in NAMES)), (0, 0)


_BACKWARD_NAMES = "do", "dlse", "q", "k", "v", "o", "lse", *Settings._fields


def _backward(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    *tensors, wanted = args
    dims = dict(zip(_BACKWARD_NAMES, in_dims[: len(tensors)], strict=True))
    batch = _Batch(info.batch_size, dims, dict(zip(_BACKWARD_NAMES, tensors, strict=True)))
    _, _, _, bias_is_wanted, sinks_are_wanted = wanted
    if sinks_are_wanted or batch.only_one_by_one():
        results = [
            backward_operator(*(batch.part(name, n) for name in _BACKWARD_NAMES), wanted)
            for n in range(info.batch_size)
        ]
        found = [torch.stack(x) for x in zip(*results, strict=True)]
    else:
        if bias_is_wanted:
            batch.give_axis("bias")
        found = backward_operator(*(batch.whole(name) for name in _BACKWARD_NAMES), wanted)
    return found, [0] * len(found)


class _Batch:
    """Arguments of which some have a batch axis that the others lack. It becomes the first leading axis of all."""

    leading = frozenset({"do", "dlse", "q", "k", "v", "o", "lse", "q_offsets", "q_lens", "kv_lens"})  # N + ...

    def __init__(self, size: int, dims: dict[str, int | None], arguments: dict[str, Any]):
        if arguments["dropout"]:
            raise UnsupportedError(
                "dropout: can't be used under torch.func.vmap, since what is dropped depends on a sequence's place in "
                f"the batch; give q, k and v a leading axis instead, got dropout {arguments['dropout']}"
            )
        self.size, self.dims, self.arguments = size, dims, arguments

    def only_one_by_one(self) -> bool:
        """Whether something differs within the batch that a single call has in common for all its sequences."""
        common = "sinks", "seeds", "q_scale", "k_scale", "v_scale", "row_start", "columns", "column_start", "rows"
        return any(self.dims[name] is not None for name in common)

    def part(self, name: str, n: int) -> Any:
        """An argument of the n-th call of a batch."""
        x, dim = self.arguments[name], self.dims[name]
        return x if dim is None else x.select(dim, n)

    def give_axis(self, name: str) -> None:
        """Give an argument a batch axis of its own, for a gradient that has one."""
        if self.dims[name] is None:
            self.arguments[name] = self._expanded(self.arguments[name])
            self.dims[name] = 0

    def whole(self, name: str) -> Any:
        """An argument of the one call for the whole batch."""
        x, dim = self.arguments[name], self.dims[name]
        if x is None:
            return None
        leading = self._leading_axes()
        if dim is None:
            has_leading = name in self.leading or (name.endswith(("slopes", "_scale")) and x.ndim > 1)
            # Else it is broadcast, or has no leading axes.
            return self._expanded(x) if has_leading else x
        x = x.movedim(dim, 0)
        if name in ("mask", "bias"):
            return x[(slice(None), *[None] * (leading + 4 - x.ndim))]  # a view: it may be large
        if name == "alibi_slopes" and x.ndim == 2 and leading:
            *N, _, _, _ = self.whole("q").shape
            return x.reshape((self.size, *[1] * leading, -1)).expand((*N, -1))
        return x

    def _leading_axes(self) -> int:
        """How many leading axes N one problem of the batch has."""
        q: Tensor = self.arguments["q"]
        return int(q.ndim) - 3 - (self.dims["q"] is not None)

    def _expanded(self, x: Tensor) -> Tensor:
        return x.expand((self.size, *x.shape))


torch.library.register_vmap("flash::attention", _forward)
torch.library.register_vmap("flash::attention_backward", _backward)
