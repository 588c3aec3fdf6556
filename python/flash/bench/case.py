"""One problem that is measured: its size, its options, its inputs, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy

import flash

Array: TypeAlias = Any

OPERATIONS = ("forward", "backward", "forward+backward")
SEED = 2205_14135  # of inputs, blocks and dropout


@dataclass(frozen=True)
class Case:
    """As many keys as queries. Its fields are those of a row in the stored results."""

    operation: str
    dtype: str
    batch: int
    length: int
    heads: int
    kv_heads: int
    head_dim: int
    causal: bool
    window: int | None = None  # keys that a query sees on each side; with `causal` on the left
    density: float | None = None  # share of the blocks that a block mask lists
    block_size: int = 128
    dropout: float = 0.0

    def __str__(self) -> str:
        mask = "causal" if self.causal else "full"
        return f"{self.operation} {self.dtype}, {mask}, length {self.length}"

    @property
    def window_pair(self) -> tuple[int, int] | None:
        """As `flash.attention` takes it."""
        return None if self.window is None else (self.window, 0 if self.causal else self.window)

    @cached_property
    def blocks(self) -> flash.BlockMask | None:
        """Random blocks, and those of the diagonal: softmax over no key at all is something else in each library."""
        if self.density is None:
            return None
        sizes = self.length, self.length, self.block_size
        return flash.BlockMask.random(*sizes, density=self.density, seed=SEED) | flash.BlockMask.sliding_window(
            *sizes, (0, 0)
        )

    def options(self, dropout: float, blocks: bool = True) -> dict[str, Any]:
        """The options of `flash.attention`; blocks: whether the block mask is one."""
        options: dict[str, Any] = {"causal": self.causal, "window": self.window_pair}
        if blocks and self.blocks is not None:
            options["block_mask"] = self.blocks
        return {**options, "dropout": dropout, "seed": SEED} if dropout else options

    @property
    def seen(self) -> Array | None:
        """Which query sees which key, bool (length, length); None where causal or full says it all."""
        if self.window is None and self.density is None:
            return None
        position = numpy.empty((self.length, 1, 1), numpy.float32)
        options = self.options(dropout=0.0)
        return numpy.ascontiguousarray(flash.reference.visible(position, position, **options)[0])

    def inputs(self) -> list[Array]:
        """q, k, v and do in float32: (batch, length, heads, head_dim)."""
        random = numpy.random.default_rng(SEED)
        heads = self.heads, self.kv_heads, self.kv_heads, self.heads
        return [random.standard_normal((self.batch, self.length, n, self.head_dim), numpy.float32) for n in heads]

    @property
    def input_bytes(self) -> int:
        """What `inputs` takes."""
        return 8 * self.batch * self.length * (self.heads + self.kv_heads) * self.head_dim

    @property
    def scores(self) -> int:
        """Elements of the matrix of scores."""
        return self.batch * self.heads * self.length**2

    def flops(self, blocks: bool = True) -> int:
        """Operations that the visible pairs need."""
        q, k = (
            numpy.empty((self.batch, self.length, heads, self.head_dim), numpy.float32)
            for heads in (self.heads, self.kv_heads)
        )
        options = self.options(0.0, blocks)
        kinds = {"forward": (False,), "backward": (True,), "forward+backward": (False, True)}[self.operation]
        return sum(int(flash.explain(q, k, k, backward=kind, **options).flops) for kind in kinds)
