"""What happens to a call whose arrays are spread over several devices without shard_map.

Sequences and heads are independent problems, so they stay where they are; lengths and head dims are gathered. XLA asks
two things: how shardings spread from operands to results (for Shardy a rule with a letter for each kind of axis, for
the older GSPMD a function), and what each device then computes. Gradients that are sums over sequences or heads are
added up between the devices.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flash.jax.kernel import Array, Kernel, varying_axes

Axes: TypeAlias = tuple[str, ...]  # of a mesh

# The kinds of axes after those of N. "g" counts the query heads of a key head "h".
_KINDS = {
    "q": ("i", "h g", "d"), "k": ("j", "h", "d"), "v": ("j", "h", "e"), "do": ("i", "h g", "e"),
    "o": ("i", "h g", "e"), "lse": ("h g", "i"), "dlse": ("h g", "i"), "mask": ("h g", "i", "j"),
    "bias": ("h g", "i", "j"), "alibi_slopes": ("h g",), "q_scale": ("h",), "k_scale": ("h",), "v_scale": ("h",),
    "q_lens": (), "kv_lens": (), "q_offset": (),
}  # fmt: skip
_HEADS = "h", "h g"
_KEPT_WHOLE = "i", "j", "d", "e"


def partitioned(kernel: Kernel) -> Callable[..., tuple[Array, ...]]:
    """A kernel that knows how it is spread over devices."""

    def call(*operands: Array) -> tuple[Array, ...]:
        if varying_axes(*operands):  # within a shard_map they are spread already
            return kernel(*operands)
        layout = _Layout.of(kernel, operands)
        spread = custom_partitioning(lambda *parts: kernel(*parts))
        rule, options = layout.rule()
        known = inspect.signature(spread.def_partition).parameters
        if "need_replication_factors" in known:
            options["sharding_rule"] = rule
        else:  # versions whose default is not Shardy
            options = {}
        spread.def_partition(
            partition=partial(_partition, kernel, layout),
            infer_sharding_from_operands=lambda mesh, operands, _: _shardings(layout, mesh, operands, None)[1],
            **options,
        )
        return tuple(spread(*operands))

    call.__name__ = call.__qualname__ = "flash_attention"
    return call


def as_typed(x: Array, like: Array) -> Array:
    """An array with the sharding of like's type, where a mesh's axes are explicit: there, results are gathered."""
    sharding = getattr(jax.typeof(like), "sharding", None) if hasattr(jax.sharding, "reshard") else None
    if sharding is None or "Explicit" not in {getattr(kind, "name", "") for kind in sharding.mesh.axis_types}:
        return x
    return jax.sharding.reshard(x, sharding)


class _Layout(NamedTuple):
    """The kind of each axis of each operand and result; "" for one of size 1 that is broadcast, and what is whole."""

    operands: tuple[tuple[str, ...], ...]
    results: tuple[tuple[str, ...], ...]
    sizes: dict[str, int]
    is_whole: bool  # dropout counts sequences and heads from the first one

    @classmethod
    def of(cls, kernel: Kernel, operands: tuple[Array, ...]) -> _Layout:
        given = kernel.named(operands)
        q, k, v = (given[name].shape for name in "qkv")
        N = tuple(f"n{n}" for n in range(len(q) - 3))
        sizes = dict(zip((*N, "i", "h g", "d"), q, strict=True)) | {"j": k[-3], "h": k[-2], "e": v[-1]}

        def kinds(name: str, shape: tuple[int, ...]) -> tuple[str, ...]:
            if name not in _KINDS:
                return _kinds_of_list(name, shape, N, sizes)
            every = (*N, *_KINDS[name])[-len(shape) :] if shape else ()
            return tuple(kind if sizes[kind] == n else "" for kind, n in zip(every, shape, strict=True))

        names = [name if name in ("o", "lse") else name[1:] for name in kernel.results]
        shapes = [x.shape for x in kernel.shapes(operands)]
        return cls(
            tuple(kinds(name, x.shape) for name, x in given.items()),
            tuple(map(kinds, names, shapes)),
            sizes,
            kernel.dropout > 0.0,
        )

    def rule(self) -> tuple[str, dict[str, Any]]:
        """Shardy's rule, the sizes of factors that it can't find out itself, and the factors that are not spread."""
        groups = self.sizes["h g"] // self.sizes["h"]
        letters: list[str] = []

        def part(axes: tuple[str, ...]) -> str:
            named = []
            for kind in axes:
                text = {"": f"w{len(letters)}", "h g": "h" if groups == 1 else "(h g)"}.get(kind, kind)
                letters.append(text)
                named.append(text)
            return " ".join(named)

        rule = " -> ".join(", ".join(map(part, side)) for side in (self.operands, self.results))
        # Shardy wants them in the order in which they come first.
        factors = dict.fromkeys(factor for text in letters for factor in text.strip("()").split())
        whole = tuple(factor for factor in factors if self.is_whole or factor[0] not in "nhg")
        sizes = {"g": groups} if "(h g)" in letters else {}
        return rule, sizes | {"need_replication_factors": whole}


def _kinds_of_list(name: str, shape: tuple[int, ...], N: tuple[str, ...], sizes: dict[str, int]) -> tuple[str, ...]:
    """Of what isn't in _KINDS: sinks, the seed, and block lists, (B or 1, Hq or 1, rows + 1) and (nnz,)."""
    if name == "sinks":
        return ("h g",)
    if name in ("row_start", "column_start"):
        batch = N[0] if len(N) == 1 and shape[0] == sizes[N[0]] else ""
        return batch, "h g" if shape[1] == sizes["h g"] else "", ""
    return ("",) * len(shape)


def _partition(
    kernel: Kernel, layout: _Layout, mesh: Mesh, operands: Sequence[Any], results: Sequence[Any]
) -> tuple[Any, ...]:
    """What custom_partitioning asks for: the mesh, the work of a device, and shardings of results and operands."""
    of_operands, of_results, sums = _shardings(layout, mesh, operands, results)

    def on_a_device(*parts: Array) -> tuple[Array, ...]:
        made = kernel(*parts)
        return tuple(jax.lax.psum(x, axes) if axes else x for x, axes in zip(made, sums, strict=True))

    return mesh, on_a_device, of_results, of_operands


def _shardings(
    layout: _Layout, mesh: Mesh, operands: Sequence[Any], results: Sequence[Any] | None
) -> tuple[tuple[Any, ...], tuple[Any, ...], list[Axes]]:
    """Shardings of operands and results, and the mesh axes over which each result is a sum."""
    given = [] if layout.is_whole else [*zip(layout.operands, operands, strict=True)]
    chosen = _chosen_axes(layout, mesh, given)
    if mesh.empty:  # older versions of JAX, for arrays that came without a mesh
        mesh = Mesh(np.array(jax.devices()), ("device",))

    def spec(kinds: tuple[str, ...]) -> Any:
        return NamedSharding(mesh, PartitionSpec(*(chosen.get(_independent(kind)) or None for kind in kinds)))

    used = {axis for axes in chosen.values() for axis in axes}
    sums = []
    for kinds in layout.results:
        own = {axis for kind in kinds for axis in chosen.get(_independent(kind), ())}
        sums.append(tuple(axis for axis in mesh.axis_names if axis in used - own))
    return tuple(map(spec, layout.operands)), tuple(map(spec, layout.results)), sums


def _independent(kind: str) -> str:
    """Query heads go where their key head goes."""
    return "h" if kind in _HEADS else kind


def _chosen_axes(layout: _Layout, mesh: Mesh, given: list[tuple[tuple[str, ...], Any]]) -> dict[str, Axes]:
    """The mesh axes for each kind of axis that may be spread: those of the first operand that has any, if they fit."""
    chosen: dict[str, Axes] = {}
    taken: set[str] = set()
    for kinds, operand in given:
        spec = getattr(operand.sharding, "spec", None) or ()
        for kind, entry in zip(map(_independent, kinds), spec, strict=False):
            axes: Axes = () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)
            if not kind or kind in _KEPT_WHOLE or kind in chosen or not axes or taken & set(axes):
                continue
            if layout.sizes[kind] % math.prod(mesh.shape[axis] for axis in axes) == 0:
                chosen[kind] = axes
                taken |= {*axes}
    return chosen
