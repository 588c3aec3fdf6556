"""Row 8: speed and memory of training the GPT of the examples."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from typing import Any

from .row import ROOT, Line, Result, Row, Values, amount, factor, table

ATTENTIONS = ("standard", "sdpa", "flash", "block-sparse")
PROGRAM = "examples/train_gpt_torch.py"
LAST = re.compile(r"steps in \d+ s: ([\d,]+) tokens/s; peak memory ([\d.]+) GiB")
SIZES = {
    "small": "--context 256 --layers 1 --heads 2 --d-model 64 --batch 1 --steps 2",
    "cpu": "--context 2048 --layers 4 --heads 6 --d-model 384 --batch 2 --steps 6",
    "cuda": "--preset gpt2-small --device cuda --tokenizer characters --steps 30",
}
COMMON = "--warmup 1 --eval-batches 1 --eval-every 1000 --checkpoint-every 1000 --sample 0 --overwrite"


class Training(Row):
    name = "training"
    title = "Training: speed and memory"
    kinds = ("cpu", "cuda")
    text = """Tokens a second and peak memory as the example prints them after a few steps, by attention. The paper
    trains GPT-2 small in 2.7 days on eight A100s where Hugging Face's implementation takes 9.5 and Megatron-LM's
    4.7, and GPT-2 medium in 6.9 instead of 21.0 and 11.5; a model so small as the CPU's spends a smaller part of
    its time on attention."""

    def measure(self, device: Any, is_small: bool) -> Values:
        sizes = SIZES["small" if is_small else device.kind]
        found = {}
        for attention in ("flash",) if is_small else ATTENTIONS:
            with tempfile.TemporaryDirectory() as folder:
                words = f"{PROGRAM} --attention {attention} {sizes} {COMMON}".split()
                command = [sys.executable, *words, "--out", folder]
                ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            rate, memory = LAST.findall(ran.stdout)[-1]
            found[attention] = {"tokens": float(rate.replace(",", "")), "bytes": float(memory) * 2**30}
        return {"sizes": sizes, "found": found}

    def lines(self, results: list[Result]) -> list[Line]:
        def ratio(other: str, what: str) -> Any:
            def show(x: Values) -> str | None:
                if other not in x["found"]:
                    return None
                one, flash = x["found"][other][what], x["found"]["flash"][what]
                return factor(flash / one if what == "tokens" else one / flash)

            return show

        return [
            Line("speed over that with standard attention", "3.5x (small), 3.0x (medium)", ratio("standard", "tokens"),
                 is_headline=True),
            Line("speed over that with PyTorch's attention", "", ratio("sdpa", "tokens")),
            Line("standard attention's memory over flash's", "", ratio("standard", "bytes"), is_headline=True),
        ]  # fmt: skip

    def details(self, result: Result) -> str:
        rows = [[name, f"{x['tokens']:,.0f}", amount(x["bytes"], "B")] for name, x in result.values["found"].items()]
        return f"`{result.values['sizes']}`:\n\n" + table(["attention", "tokens a second", "peak memory"], rows)
