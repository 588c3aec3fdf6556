"""Row 1: operations, traffic and time of attention in GPT-2 medium."""

from __future__ import annotations

from typing import Any

from .attentions import standard, training_step
from .row import NOT_YET, Line, Result, Row, Values, amount, factor

LENGTH, HEADS, DIM, SEQUENCES = 1024, 16, 64, 64
GPUS = ("8.0", "9.0")  # whose tiles are counted


class Gpt2Medium(Row):
    name = "gpt2_medium"
    title = "GPT-2 medium: operations, traffic, time"
    kinds = ("cpu", "cuda", "emulator")
    text = f"""Forward and backward of attention at length {LENGTH}, head dim {DIM}, {HEADS} heads, {SEQUENCES}
    sequences (FlashAttention, figure 2, left). Operations are those of matrix products, 4 N^2 d a head forward, 8
    (standard) or 10 (flash, which makes the scores once more) backward. The paper's GFLOPs are fewer than the
    problem it names has by this count; their ratio is what can be compared. Its standard attention also masks and
    drops, which moves more matrices. Traffic of flash: the kernels ask memory and its caches for so much, counted
    on the emulator for one head in float16 (heads are independent) and predicted by `flash.explain`; of memory
    itself they need every element once, if what is read again comes from a cache. The paper's figure, of memory,
    lies between the two, as that of a GPU will ([how to read it](gpu.md#memory-traffic)). That of standard
    attention is predicted, and [the prediction tested](../tests/test_explain.py). On the CPU time is that of some
    of the sequences in float32, times what they are a share of; standard attention is PyTorch's products and
    softmax."""

    def measure(self, device: Any, is_small: bool) -> Values:
        if device.kind == "emulator":
            count = {(gpu, way): device.count(gpu, LENGTH, DIM, way) for gpu in GPUS for way in (False, True)}
            return {
                what: {
                    gpu: SEQUENCES * HEADS * sum(getattr(count[gpu, way], what) for way in (False, True))
                    for gpu in GPUS
                }
                for what in ("total", "predicted", "needed")
            }
        sequences = 1 if is_small else 4 if device.kind == "cpu" else SEQUENCES
        q, k, v, do = (device.normal(sequences, LENGTH, HEADS, DIM) for _ in range(4))
        functions = {"standard": standard, "flash": device.flash.torch.attention}
        seconds = {
            name: device.seconds(training_step(function, q, k, v, do)) * SEQUENCES / sequences
            for name, function in functions.items()
        }
        told = [device.flash.explain(q, k, v, backward=backward) for backward in (False, True)]
        flops = sum(x.flops for x in told) * SEQUENCES / sequences
        half = 1 if device.dtype.itemsize == 2 else 2
        moved = [x.bytes_read + x.bytes_written for x in told]
        standard_bytes = sum(x.standard_bytes for x in told) + sum(moved)
        return {
            "sequences": sequences,
            "seconds": seconds,
            "flops": {"flash": flops, "standard": flops * 12 / 14},
            "standard_bytes": standard_bytes * SEQUENCES / sequences / half,  # in 16 bits
        }

    def lines(self, results: list[Result]) -> list[Line]:
        def time(name: str) -> Any:
            return lambda x: amount(x["seconds"][name], "s") if "seconds" in x else None

        def flops(name: str) -> Any:
            return lambda x: amount(x["flops"][name], "FLOP") if "flops" in x else None

        def traffic(what: str, gpu: str) -> Any:
            return lambda x: amount(x[what][gpu], "B") if what in x else NOT_YET

        def ratio(x: Values) -> str | None:
            return factor(x["seconds"]["standard"] / x["seconds"]["flash"]) if "seconds" in x else None

        counted, timed = ("cuda", "emulator"), ("cpu", "cuda")
        return [
            Line("operations, standard", "66.6 GFLOP", flops("standard"), timed),
            Line("operations, flash", "75.2 GFLOP", flops("flash"), timed),
            Line("of standard's", "1.13x", lambda x: factor(x["flops"]["flash"] / x["flops"]["standard"]), timed),
            Line(
                "traffic, standard, 16 bits, predicted",
                "40.3 GB",
                lambda x: amount(x["standard_bytes"], "B") if "standard_bytes" in x else None,
                timed,
            ),
            *(
                Line(
                    f"traffic, flash, tiles for {gpu}, {how}",
                    "4.4 GB",
                    traffic(what, gpu),
                    kinds,
                    gpu == "8.0" and what != "predicted",
                )
                for gpu in GPUS
                for what, how, kinds in (
                    ("total", "asked for, counted", counted),
                    ("predicted", "asked for, predicted", ("emulator",)),
                    ("needed", "every element once", counted),
                )
            ),
            Line("time, standard", "41.7 ms", time("standard"), timed),
            Line("time, flash", "7.3 ms", time("flash"), timed, True),
            Line("standard's time over flash's", "5.7x", ratio, timed, True),
        ]
