"""Row 6: the share of the machine's matrix-product rate."""

from __future__ import annotations

import itertools
import statistics
from typing import Any

from .row import Line, Result, Row, Values, table

OPERATIONS = ("forward", "backward")


class Utilization(Row):
    name = "utilization"
    title = "Share of the machine's rate of matrix products"
    kinds = ("cpu", "cuda")
    text = """FlashAttention-2 states shares of the A100's theoretical peak, FlashAttention-3 of the H100's. Here
    the rate of `flash.attention` and `attention_backward` is set beside that of a large product of PyTorch's in the
    same dtype, timed in the same run: what a machine can do rather than what its data sheet says. A share above 100
    % is one of a product that doesn't reach the peak. Causal problems count half the operations."""

    def measure(self, device: Any, is_small: bool) -> Values:
        torch, is_cpu = device.torch, device.kind == "cpu"
        length, heads = (512, 1) if is_small else (2048, 8) if is_cpu else (8192, 32)
        size = 512 if is_small else 2048 if is_cpu else 8192
        products, rates = {}, []
        for dtype in ("float32", "bfloat16") if is_cpu else ("bfloat16",):
            kind = {"dtype": getattr(torch, dtype)}
            a, b = device.normal(size, size, **kind), device.normal(size, size, **kind)
            samples = []  # beside each case, as the machine's clock may change
            for dim, causal in itertools.product((64, 128), (False, True)):
                samples.append(device.seconds(lambda a=a, b=b: a @ b))
                q, k, v, do = (device.normal(1, length, heads, dim, **kind) for _ in range(4))
                saved = device.flash.attention(q, k, v, causal=causal, return_lse=True)
                calls = {
                    "forward": lambda q=q, k=k, v=v, causal=causal: device.flash.attention(q, k, v, causal=causal),
                    "backward": lambda q=q, k=k, v=v, do=do, saved=saved, causal=causal: (
                        device.flash.attention_backward(do, q, k, v, *saved, causal=causal)
                    ),
                }
                for operation, call in calls.items():
                    told = device.flash.explain(q, k, v, causal=causal, backward=operation == "backward")
                    rates.append([dtype, operation, dim, causal, told.flops / device.seconds(call)])
            products[dtype] = 2 * size**3 / statistics.median(samples)
        return {"length": length, "heads": heads, "products": products, "rates": rates}

    def lines(self, results: list[Result]) -> list[Line]:
        papers = {
            "forward": "up to 73 % (FlashAttention-2), 75 % (FlashAttention-3)",
            "backward": "up to 63 % (FlashAttention-2)",
        }
        kinds = {"float32": ("cpu",), "bfloat16": ("cpu", "cuda")}

        def shares(dtype: str, operation: str) -> Any:
            def show(x: Values) -> str | None:
                found = [rate / x["products"][dtype] for d, o, _, _, rate in x["rates"] if (d, o) == (dtype, operation)]
                return f"{min(found):.0%} to {max(found):.0%}" if found else None

            return show

        return [
            Line(
                f"{operation}, {dtype}", papers[operation], shares(dtype, operation), kinds[dtype], dtype == "bfloat16"
            )
            for operation in OPERATIONS
            for dtype in kinds
        ]

    def details(self, result: Result) -> str:
        x = result.values
        cases = list(dict.fromkeys((dim, causal) for _, _, dim, causal, _ in x["rates"]))
        found = {(d, o, dim, causal): rate for d, o, dim, causal, rate in x["rates"]}
        rows = []
        for dtype, product in x["products"].items():
            for operation in OPERATIONS:
                cells = (found[dtype, operation, dim, causal] for dim, causal in cases)
                shown = (f"{rate / 1e9:.0f} ({rate / product:.0%})" for rate in cells)
                rows.append([f"{operation}, {dtype}", *shown, f"{product / 1e9:.0f}"])
        titles = [f"D {dim}, {'causal' if causal else 'full'}" for dim, causal in cases]
        about = f"GFLOP/s, in brackets the share of the product's; length {x['length']}, {x['heads']} heads:"
        return about + "\n\n" + table(["", *titles, "product"], rows)
