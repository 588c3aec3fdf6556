"""Row 3: time of block-sparse attention against the fraction of non-zero blocks."""

from __future__ import annotations

from functools import partial
from typing import Any

from .attentions import training_step
from .row import Line, Result, Row, Values, amount, table

DIM, BLOCK = 64, 128
DENSITIES = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)


class Density(Row):
    name = "density"
    title = "Block-sparse: time against the fraction of non-zero blocks"
    kinds = ("cpu", "cuda")
    has_figure = True
    text = """Forward and backward through random block masks of 128 x 128 (FlashAttention, figure 2, right, in
    which the time is in proportion to the fraction, above a floor)."""

    def measure(self, device: Any, is_small: bool) -> Values:
        length, heads = (1024, 1) if is_small else (4096, 4) if device.kind == "cpu" else (4096, 64)
        arrays = [device.normal(1, length, heads, DIM) for _ in range(4)]
        attention, mask_of = device.flash.torch.attention, device.flash.BlockMask.random
        seconds = {}
        for density in DENSITIES:
            mask = mask_of(length, length, BLOCK, density=density, seed=1).to(arrays[0])
            seconds[str(density)] = device.seconds(training_step(partial(attention, block_mask=mask), *arrays))
        return {
            "length": length,
            "heads": heads,
            "seconds": seconds,
            "dense": device.seconds(training_step(attention, *arrays)),
        }

    def lines(self, results: list[Result]) -> list[Line]:
        def share(density: str) -> Any:
            return lambda x: f"{x['seconds'][density] / x['dense']:.0%}"

        name = "time at {:.0%} of the blocks, of that without a mask"
        return [
            Line(name.format(density), "in proportion", share(str(density)), is_headline=density == 0.2)
            for density in DENSITIES
        ]

    def details(self, result: Result) -> str:
        x = result.values
        rows = [[amount(seconds, "s") for seconds in (*x["seconds"].values(), x["dense"])]]
        titles = [*(f"{float(name):.0%}" for name in x["seconds"]), "no mask"]
        return f"length {x['length']}, {x['heads']} heads:\n\n" + table(titles, rows)

    def draw(self, figure: Any, results: list[Result]) -> None:
        axes = figure.subplots()
        for result in results:
            x = result.values
            axes.plot([*map(float, x["seconds"])], [1e3 * s for s in x["seconds"].values()], "o-", label=result.machine)
            axes.axhline(1e3 * x["dense"], linestyle=":", color="grey", label="without a mask")
        axes.set(xlabel="fraction of non-zero blocks", ylabel="ms", xlim=(0, None), ylim=(0, None))
