"""Row 7: errors of 16-bit and 8-bit attention."""

from __future__ import annotations

import sys
from typing import Any

from .row import ROOT, Line, Result, Row, Values

PAPER = {
    ("float16, standard attention", "with outliers"): "3.2e-4",
    ("float16, flash", "with outliers"): "1.9e-4",
    ("float8, flash", "with outliers"): "2.4e-2",
    ("float8, flash, q and k rotated", "with outliers"): "9.1e-3 (and factors for blocks)",
}
HEADLINES = ("float16, flash", "float8, flash, q and k rotated")


class Errors(Row):
    name = "errors"
    title = "Errors in float16 and float8"
    kinds = ("cpu", "cuda", "emulator")
    text = """Root of the mean square error of o against float64 on the inputs before any rounding, with
    FlashAttention-3's inputs (section 4.3 and table 3): q, k and v of N(0, 1), in the columns of outliers with N(0,
    100) added to one number in a thousand; 128 queries, 1024 keys, head dim 128, 2 heads. The paper's table, whose
    problem is larger, is that with outliers. On the emulator it is [Hopper's kernels](forward_fp8_sm90.md#error);
    the CPU has no float8."""

    def measure(self, device: Any, is_small: bool) -> Values:
        sys.path.append(str(ROOT / "tests"))
        import float8_errors

        run = self.by_torch(device) if device.kind != "emulator" else device.attention
        with_float8 = device.kind == "emulator" or (
            device.kind == "cuda" and device.torch.cuda.get_device_capability() == (9, 0)
        )
        return {
            name: float8_errors.errors(run, outliers, with_float8)
            for name, outliers in (("N(0, 1)", False), ("with outliers", True))
        }

    def by_torch(self, device: Any) -> Any:
        """attention(q, k, v, **options) of NumPy's arrays, computed on the device."""
        torch = device.torch

        def tensor(x: Any) -> Any:
            bits = x if x.dtype.kind == "f" else x.view(f"i{x.dtype.itemsize}")  # what NumPy has no float of
            return torch.from_numpy(bits.copy()).to(device.kind).view(getattr(torch, x.dtype.name))

        def attention(q: Any, k: Any, v: Any, **options: Any) -> Any:
            options = {name: tensor(x) for name, x in options.items()}
            return device.flash.attention(tensor(q), tensor(k), tensor(v), **options).double().cpu().numpy()

        return attention

    def lines(self, results: list[Result]) -> list[Line]:
        names = list(dict.fromkeys(name for x in results for column in x.values.values() for name in column))
        kinds = {name: ("cuda", "emulator") if "float8" in name else self.kinds for name in names}
        return [
            Line(f"{name}, {column}", PAPER.get((name, column), ""), self.shown(name, column), kinds[name],
                 column == "with outliers" and name in HEADLINES)
            for name in names
            for column in ("N(0, 1)", "with outliers")
        ]  # fmt: skip

    def shown(self, name: str, column: str) -> Any:
        return lambda x: f"{x[column][name]:.1e}".replace("e-0", "e-") if name in x[column] else None
