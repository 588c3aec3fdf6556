"""Stored results as a picture: rates, and times over flash's, against the length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flash.bench.measure import Results
from flash.bench.report import rate_quartiles

PANELS = 6  # beside each other, at most


def save(results: Results, path: Path) -> None:
    """Draws a PNG. Takes matplotlib; OSError where it can't be written."""
    from matplotlib.figure import Figure

    groups: dict[str, list[Results]] = {}
    for row in results["rows"]:
        if row["sides"]:
            groups.setdefault(group_name(row), []).append(row)
    chosen = dict(list(groups.items())[:PANELS]) or {"nothing was measured": []}
    figure = Figure(figsize=(1.5 + 4.6 * len(chosen), 7.5), layout="constrained")
    axes = figure.subplots(2, len(chosen), squeeze=False)
    names = list(dict.fromkeys(name for rows in chosen.values() for row in rows for name in row["sides"]))
    for column, (title, rows) in enumerate(chosen.items()):
        rates, ratios = axes[0][column], axes[1][column]
        for number, name in enumerate(names):
            style: dict[str, Any] = {"color": f"C{number}", "marker": "o", "label": name, "capsize": 3}
            measured = [(row["length"], row["sides"][name]) for row in rows if name in row["sides"]]
            if measured:
                lengths, sides = zip(*measured, strict=True)
                values = [side["gflops"] for side in sides]
                rates.errorbar(lengths, values, spread(values, [rate_quartiles(side) for side in sides]), **style)
                values = [side.get("ratio", 1.0) for side in sides]
                around = [side.get("ratio_quartiles", (1.0, 1.0)) for side in sides]
                ratios.errorbar(lengths, values, spread(values, around), **style)
        products = [(row["length"], row["product"]["gflops"]) for row in rows if row["product"]]
        if products:
            rates.plot(*zip(*products, strict=True), "k--", label="matrix product")
        rates.set(title=title, ylabel="GFLOP/s", ylim=(0, None))
        ratios.set(ylabel="time / flash's time", yscale="log")
        ratios.yaxis.set_major_formatter("{x:g}")
        for axis in (rates, ratios):
            ticks = sorted({row["length"] for row in rows})
            axis.set(xlabel="length", xscale="log")
            axis.set_xticks(ticks, [str(length) for length in ticks], rotation=45)
            axis.set_xticks([], minor=True)
            axis.grid(True, alpha=0.3)
    if names:
        figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    machine = results["machine"]
    left_out = f"; {len(groups) - PANELS} more groups are not shown" if len(groups) > PANELS else ""
    figure.suptitle(f"flash {machine['flash']}, {machine['gpu'] or machine['cpu']}, {machine['date']}{left_out}")
    figure.savefig(path, dpi=120, format="png")


def group_name(row: Results) -> str:
    """What the cases of a panel share: all but the length."""
    lines = [f"{row['operation']} {row['dtype']}", f"{row['heads']} heads of {row['head_dim']}"]
    lines.append("causal" if row["causal"] else "full")
    if row["kv_heads"] != row["heads"]:
        lines[1] += f", {row['kv_heads']} of keys"
    if row["window"] is not None:
        lines[2] += f", window {row['window']}"
    if row["density"] is not None:
        lines[2] += f", blocks {row['density']:g}"
    return "\n".join(lines)


def spread(values: list[float], around: list[tuple[float, float]]) -> list[list[float]]:
    """Quartiles as matplotlib takes them: distances below and above."""
    low = [max(0.0, value - pair[0]) for value, pair in zip(values, around, strict=True)]
    high = [max(0.0, pair[1] - value) for value, pair in zip(values, around, strict=True)]
    return [low, high]
