"""Row 5: the law of the paper's theorem 2, N^2 d^2 / M, in counted bytes."""

from __future__ import annotations

from typing import Any

from .row import Line, Result, Row, Values, amount, table

SIZE = 2  # bytes of a number
BUILT = (("8.6", 64), ("8.0", 64), ("9.0", 64), ("8.6", 256), ("8.0", 256), ("9.0", 256))


class IoLaw(Row):
    name = "io_law"
    title = "The law of traffic"
    kinds = ("emulator",)
    has_figure = True
    text = """Theorem 2 of FlashAttention: accesses of memory grow as N^2 d^2 / M, M being the size of on-chip
    memory. Counted on the emulator for the forward on tensor cores of 8.0, one head in float16, with tiles of 16 to
    128 queries: a tile's rows take M = rows x d x 2 bytes, which is what is varied here (the rest of on-chip memory
    holds two tiles of keys, whose size doesn't change how often keys are read). Bytes are those of k and v, which
    are read again for each tile; q and o move once. Exponents are fitted to all points by least squares of the
    logarithms."""

    def measure(self, device: Any, is_small: bool) -> Values:
        lengths, dims, rows = (
            ((256, 512), (64, 128), (32, 128)) if is_small else ((256, 512, 1024), (64, 128), (16, 32, 64, 128))
        )
        points = [
            [N, d, n * d * SIZE, device.count("8.0", N, d, block=n).of_keys]
            for N in lengths
            for d in dims
            for n in rows
        ]
        length = 256 if is_small else 768
        built = [[gpu, d, device.count(gpu, length, d).of_keys] for gpu, d in BUILT]
        return {"points": points, "length": length, "built": built}

    def exponents(self, points: list[list[float]]) -> list[float]:
        """Of N, d and M."""
        import numpy

        logs = numpy.log([[*point, 1.0] for point in points])
        x = numpy.column_stack([logs[:, :3], numpy.ones(len(points))])
        return [float(n) for n in numpy.linalg.lstsq(x, logs[:, 3], rcond=None)[0][:3]]

    def lines(self, results: list[Result]) -> list[Line]:
        def exponent(index: int) -> Any:
            return lambda x: f"{self.exponents(x['points'])[index]:.3f}".replace("-0.000", "0.000")

        return [
            Line(f"exponent of {name}", paper, exponent(index), ("emulator",), True)
            for index, (name, paper) in enumerate((("N", "2"), ("d", "2"), ("M", "-1")))
        ]

    def details(self, result: Result) -> str:
        x = result.values
        rows = [[gpu, d, amount(bytes_, "B")] for gpu, d, bytes_ in x["built"]]
        title = (
            f"the kernels as built, length {x['length']}. GPUs whose blocks may have more shared memory (8.6: 99 KiB, "
            "8.0: 163, 9.0: 227) read k and v less often, where a tile can use it:"
        )
        return title + "\n\n" + table(["compute capability", "d", "k and v read"], rows)

    def draw(self, figure: Any, results: list[Result]) -> None:
        axes = figure.subplots()
        for result in results:
            points = result.values["points"]
            law = [N**2 * d**2 / M for N, d, M, _ in points]
            axes.loglog(law, [point[3] for point in points], "o", label="counted")
            ends = [min(law), max(law)]
            axes.loglog(ends, [4 * SIZE * x for x in ends], "-", color="grey", label="8 N^2 d^2 / M")
        axes.set(xlabel="N^2 d^2 / M", ylabel="bytes of k and v read")
