"""Stored results as text: for a terminal, and as Markdown for documents."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from flash._measure import seconds
from flash.bench.measure import Results

FORMAT = "flash bench 1"


def write(results: Results, path: Path) -> None:
    """Stores results, whole at any time: what lies there before stays until the new file is complete."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
    temporary.replace(path)


def read(path: Path) -> Results:
    """What `write` stored; ValueError where it is something else."""
    try:
        results: Results = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    parts = {"machine", "options", "not_asked", "interrupted", "rows"}
    if not isinstance(results, dict) or results.get("format") != FORMAT or not parts <= results.keys():
        raise ValueError(f"{path} doesn't hold results of this benchmark")
    return results


def save_markdown(results: Results, path: Path) -> None:
    """Writes the tables for documents."""
    path.write_text(markdown(results))


def text(results: Results) -> str:
    """All that is printed, each part with an empty line behind it."""
    parts = [heading(results), *(block(row) for row in results["rows"]), closing(results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def heading(results: Results) -> str:
    """On what machine, with what, and how to read it."""
    size = results["options"]["product_size"]
    return (
        f"{about(results)}\n"
        "Sides take turns; times are medians. A ratio is a side's time over flash's: above 1, flash is faster. Its\n"
        f"quartiles are those of the rounds. The share is that of the rate of a {size} x {size} matrix product."
    )


def about(results: Results) -> str:
    """The machine and the versions, in a sentence."""
    machine = results["machine"]
    commit = f" (commit {machine['commit']})" if machine["commit"] else ""
    threads = f"{machine['threads']} thread" + "s" * (machine["threads"] > 1)
    device = machine["gpu"] or f"{machine['cpu']}, {threads}, path {machine['flash_path']}"
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    array = results["options"]["array"]
    return f"{device}, {machine['date']}: flash {machine['flash']}{commit} on arrays of {array}; {versions}."


def block(row: Results) -> str:
    """The table of a case."""
    rate = ""
    if product := row["product"]:
        low, high = rate_quartiles(product)
        rate = f" (product in {product['dtype']}: {product['gflops']:.0f} GFLOP/s, {low:.0f} - {high:.0f})"
    lines = [f"{row['operation']} {row['dtype']}, {case_name(row)}{rate}"]
    if row["sides"]:
        width = max(len(name) for name in row["sides"])
        lines.append(
            f"  {'':<{width}} {'time':>9}  {'ratio':>6}  {'quartiles':<13} {'GFLOP/s':>9} {'share':>6} {'rounds':>7}"
        )
    for name, side in row["sides"].items():
        ratio, spread = f"{1:.2f}", ""
        if "ratio" in side:
            ratio, spread = (f"{side['ratio']:.2f}", "{:.2f} - {:.2f}".format(*side["ratio_quartiles"]))
        share = f"{side['share_of_product']:.0%}" if "share_of_product" in side else "-"
        lines.append(
            f"  {name:<{width}} {seconds(side['seconds']):>9}  {ratio:>6}  {spread:<13} {side['gflops']:>9.4g} "
            f"{share:>6} {len(side['samples']):>7}"
        )
    lines += [f"  {name}: {row['left_out'][name]}" for name in ("flash", *row["different"]) if name in row["left_out"]]
    return "\n".join(lines)


def rate_quartiles(side: Results) -> tuple[float, float]:
    """Of the rate, from those of the time."""
    low, high = side["quartiles"]
    return side["gflops"] * side["seconds"] / high, side["gflops"] * side["seconds"] / low


def case_name(row: Results) -> str:
    """A case without its operation and dtype."""
    parts = ["causal" if row["causal"] else "full", f"length {row['length']}", f"batch {row['batch']}"]
    parts.append(f"{row['heads']} heads of {row['head_dim']}")
    if row["kv_heads"] != row["heads"]:
        parts.append(f"{row['kv_heads']} of keys")
    if row["window"] is not None:
        parts.append(f"window {row['window']}")
    if row["density"] is not None:
        parts.append(f"{row['listed']:.0%} of the blocks")
    if row["dropout"]:
        parts.append(f"dropout {row['dropout']:g}")
    return ", ".join(parts)


def closing(results: Results) -> str:
    """What all cases come to, and what was left out of them."""
    rows = results["rows"]
    lines = []
    found = [one for one in summary(rows) if one["cases"] > 1]
    if found:
        width = max(len(f"{one['operation']} {one['dtype']}") for one in found)
        lines.append("Geometric mean of a side's ratios, and the lowest:")
        for one in found:
            name = f"{one['operation']} {one['dtype']}"
            lines.append(
                f"  {name:<{width}}  {one['side']:<14} {one['mean']:>7.2f}   lowest of {one['cases']}: "
                f"{one['lowest']:.2f} ({one['lowest_case']})"
            )
    reasons: dict[tuple[str, str], int] = {}
    for row in rows:
        for item in row["left_out"].items():
            reasons[item] = reasons.get(item, 0) + 1
    for item in results["not_asked"].items():
        reasons[item] = len(rows)
    if reasons:
        lines += [""] if lines else []
        lines.append("Left out:")
    for (name, why), count in reasons.items():
        lines.append(f"  {name}: {why}" + (f" ({count} of {len(rows)} cases)" if count < len(rows) else ""))
    if results["interrupted"]:
        lines.append("Interrupted: these are the cases that were measured before.")
    return "\n".join(lines)


def summary(rows: Iterable[Results]) -> Iterator[Results]:
    """For each operation, dtype and side: the geometric mean of the ratios and the lowest one."""
    groups: dict[tuple[str, str, str], list[Results]] = {}
    for row in rows:
        for name, side in row["sides"].items():
            if "ratio" in side:
                groups.setdefault((row["operation"], row["dtype"], name), []).append(row)
    for (operation, dtype, name), group in groups.items():
        lowest = min(group, key=lambda row: row["sides"][name]["ratio"])
        yield {
            "operation": operation,
            "dtype": dtype,
            "side": name,
            "cases": len(group),
            "mean": statistics.geometric_mean(row["sides"][name]["ratio"] for row in group),
            "lowest": lowest["sides"][name]["ratio"],
            "lowest_case": case_name(lowest),
        }


def markdown(results: Results) -> str:
    """Facts, summary, and for each operation and dtype a table of cases by sides."""
    lines = [
        f"{about(results)} Each figure is a side's time over flash's, the median of rounds in which all sides take "
        "turns, in brackets the quartiles; for flash it is the rate in GFLOP/s and the share of the matrix product's.",
        "",
        *table(
            ["operation", "dtype", "side", "cases", "geometric mean", "lowest"],
            [
                [
                    one["operation"],
                    one["dtype"],
                    one["side"],
                    one["cases"],
                    f"{one['mean']:.2f}",
                    f"{one['lowest']:.2f} ({one['lowest_case']})",
                ]
                for one in summary(results["rows"])
            ],
        ),
    ]
    for operation, dtype in dict.fromkeys((row["operation"], row["dtype"]) for row in results["rows"]):
        rows = [row for row in results["rows"] if (row["operation"], row["dtype"]) == (operation, dtype)]
        names = list(dict.fromkeys(name for row in rows for name in row["sides"]))
        lines += ["", f"{operation}, {dtype}:", ""]
        lines += table(["case", *names], [[case_name(row), *(cell(row, name) for name in names)] for row in rows])
    return "\n".join(lines) + "\n"


def cell(row: Results, name: str) -> str:
    """A side of a case in Markdown."""
    side: dict[str, Any] = row["sides"].get(name, {})
    if "ratio" in side:
        return "{:.2f} ({:.2f} - {:.2f})".format(side["ratio"], *side["ratio_quartiles"])
    if side:
        share = f" ({side['share_of_product']:.0%})" if "share_of_product" in side else ""
        return f"{side['gflops']:.4g}{share}"
    return ""


def table(titles: list[str], rows: list[list[Any]]) -> list[str]:
    """Lines of a Markdown table; none where it has no rows."""
    if not rows:
        return []
    return ["| " + " | ".join(map(str, cells)) + " |" for cells in (titles, ["---"] * len(titles), *rows)]
