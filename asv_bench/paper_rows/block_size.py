"""Row 2: traffic and time against the size of blocks."""

from __future__ import annotations

from typing import Any

from .row import Line, Result, Row, Values, amount, doubling, factor, table

DIM, HEADS = 64, 8
ROWS = (16, 32, 64, 128)


class BlockSize(Row):
    name = "block_size"
    title = "Traffic and time against the size of blocks"
    kinds = ("cpu", "cuda", "emulator")
    has_figure = True
    text = """A forward whose tiles of queries have so many rows (FlashAttention, figure 2, middle): a block mask
    that lists every block makes tiles no larger than its blocks. Traffic is counted on the emulator, one head in
    float16 on tensor cores of 8.0; time is that of the same masks where they run. The paper's figure falls with the
    block size, traffic throughout, time to 256 rows, from where on other things limit it."""

    def measure(self, device: Any, is_small: bool) -> Values:
        if device.kind == "emulator":
            length = 256 if is_small else 1024
            counts = {str(rows): device.count("8.0", length, DIM, block=rows).total for rows in ROWS}
            return {"length": length, "bytes": counts}
        length = 512 if is_small else 4096
        q, k, v = (device.normal(1, length, HEADS, DIM) for _ in range(3))
        seconds = {}
        for rows in (*ROWS, 256):
            mask = device.flash.BlockMask.random(length, length, (rows, 64), density=1.0, seed=0).to(q)
            seconds[str(rows)] = device.seconds(lambda mask=mask: device.flash.attention(q, k, v, block_mask=mask))
        return {"length": length, "seconds": seconds}

    def lines(self, results: list[Result]) -> list[Line]:
        def show(x: Values) -> str:
            values = x.get("bytes") or x["seconds"]
            return factor(values["16"] / values["128"])

        return [
            Line("16 rows over 128 rows, traffic", "falls", show, ("emulator",), True),
            Line("16 rows over 128 rows, time", "falls", show, ("cpu", "cuda"), True),
        ]

    def details(self, result: Result) -> str:
        name, unit = ("bytes", "B") if "bytes" in result.values else ("seconds", "s")
        values = result.values[name]
        rows = [[name, *(amount(x, unit) for x in values.values())]]
        return f"length {result.values['length']}:\n\n" + table(["rows of a tile", *values], rows)

    def draw(self, figure: Any, results: list[Result]) -> None:
        for axes, name, unit in zip(figure.subplots(1, 2), ("bytes", "seconds"), ("MB", "ms"), strict=True):
            for result in results:
                if values := result.values.get(name):
                    scale = 1e-6 if name == "bytes" else 1e3
                    axes.plot([*map(int, values)], [scale * x for x in values.values()], "o-", label=result.machine)
            doubling(axes, (*ROWS, 256))
            axes.set(xlabel="rows of a tile", ylabel=unit, ylim=(0, None))
