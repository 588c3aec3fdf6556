"""Row 4: time and memory against the length, of exact, block-sparse and approximate attentions."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from .attentions import Function, local, low_rank, standard, training_step
from .row import Line, Result, Row, Values, amount, doubling, factor, table

DIM, RANK, WINDOW, BLOCK = 64, 256, 128, 128
NAMES = ("standard", "flash", "block-sparse", "low rank", "local")
MATRICES = 5  # of length x length that standard attention holds at once


class Length(Row):
    name = "length"
    title = "Time and memory against the length"
    kinds = ("cpu", "cuda")
    has_figure = True
    text = f"""Forward and backward, one sequence (FlashAttention, figure 3). Block-sparse is flash with the
    butterfly pattern in blocks of {BLOCK}; low rank is Linformer's attention to {RANK} mixed keys, local a window
    of {WINDOW} keys to each side, both in PyTorch's operations
    ([definitions](../asv_bench/paper_rows/attentions.py)). Memory is the peak beside the inputs. In the paper flash
    is up to 3 times as fast as standard attention to length 2048, and the approximations overtake it between 512
    and 1024; block-sparse is faster than all at every length; flash takes up to 20 times less memory than standard
    attention and, at 64K, half of what the others take."""

    def measure(self, device: Any, is_small: bool) -> Values:
        lengths = (256, 512) if is_small else (256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
        heads = 4 if device.kind == "cpu" else 16
        most_seconds = 1 if is_small else 25
        found: dict[str, dict[str, list[Any]]] = {name: {} for name in NAMES}  # seconds and bytes, or why not
        for length in lengths:
            arrays = [device.normal(1, length, heads, DIM) for _ in range(4)]
            for name, function in self.functions(device, length):
                before = [x for x in found[name].values() if isinstance(x[0], float)]
                growth = 4 if name in ("standard", "flash") else 2.2
                if (
                    name == "standard"
                    and MATRICES * heads * length**2 * device.dtype.itemsize > device.free_bytes() / 2
                ):
                    found[name][str(length)] = ["out of memory", "out of memory"]
                elif before and growth * before[-1][0] > most_seconds:
                    found[name][str(length)] = ["too slow", "too slow"]
                else:
                    call = training_step(function, *arrays)
                    if length == lengths[0]:
                        call()  # what a first call keeps isn't the attention's
                    bytes_ = device.peak_bytes(call)
                    found[name][str(length)] = [device.seconds(call), float(bytes_)]
        return {"heads": heads, "found": found}

    def functions(self, device: Any, length: int) -> Iterator[tuple[str, Function]]:
        yield "standard", standard
        yield "flash", device.flash.torch.attention
        mask = device.flash.BlockMask.butterfly(length, length, BLOCK).to(device.normal(1))
        yield "block-sparse", partial(device.flash.torch.attention, block_mask=mask)
        yield "low rank", low_rank(*(device.normal(min(RANK, length), length) / length**0.5 for _ in range(2)))
        yield "local", local(WINDOW)

    def lines(self, results: list[Result]) -> list[Line]:
        def ratio(index: int, name: str, length: int) -> Any:
            def show(x: Values) -> str | None:
                one, flash = (x["found"][n].get(str(length), ["-"] * 2)[index] for n in (name, "flash"))
                return factor(one / flash) if isinstance(one, float) and isinstance(flash, float) else None

            return show

        lines = [
            Line(
                f"time over flash's at {length}, standard",
                "up to 3x",
                ratio(0, "standard", length),
                is_headline=length == 2048,
            )
            for length in (512, 2048)
        ]
        lines += [
            Line(f"time over flash's at {length}, {name}", paper, ratio(0, name, length))
            for length, paper in ((512, "above 1x"), (1024, "below 1x"))
            for name in ("low rank", "local")
        ]
        lines += [
            Line("time over flash's at 2048, block-sparse", "below 1x", ratio(0, "block-sparse", 2048)),
            Line("memory over flash's at 2048, standard", "up to 20x", ratio(1, "standard", 2048), is_headline=True),
            Line("memory over flash's at 16384, low rank", "2x (64K)", ratio(1, "low rank", 16384)),
            Line("memory over flash's at 16384, local", "2x (64K)", ratio(1, "local", 16384)),
        ]
        return lines

    def details(self, result: Result) -> str:
        lengths = [*result.values["found"]["flash"]]

        def shown(value: float | str, unit: str) -> str:
            return value if isinstance(value, str) else amount(value, unit)

        tables = [
            table(
                [title, *lengths],
                [
                    [name, *(shown(x[index], unit) for x in result.values["found"][name].values())]
                    for name in NAMES
                ],
            )
            for index, (title, unit) in enumerate((("time", "s"), ("memory", "B")))
        ]  # fmt: skip
        return f"{result.values['heads']} heads:\n\n" + "\n\n".join(tables)

    def draw(self, figure: Any, results: list[Result]) -> None:
        for index, (axes, unit) in enumerate(zip(figure.subplots(1, 2), ("seconds", "bytes"), strict=True)):
            for style, result in zip(("o-", "s--", "^:"), results, strict=False):
                for number, name in enumerate(NAMES):
                    found = {
                        int(n): x[index] for n, x in result.values["found"][name].items() if isinstance(x[index], float)
                    }
                    axes.loglog(
                        [*found], [*found.values()], style, color=f"C{number}", label=f"{name}, {result.machine}"
                    )
            doubling(axes, sorted({int(n) for result in results for n in result.values["found"]["flash"]}))
            axes.set(xlabel="length", ylabel=unit)
