"""Train a GPT with PyTorch and `flash.torch.attention`, on the CPU or on a GPU.

    python examples/train_gpt_torch.py                             two minutes on two cores, on Python's own source
    python examples/train_gpt_torch.py --attention standard        the same losses to rounding
    python examples/train_gpt_torch.py --attention sdpa            PyTorch's own attention
    python examples/train_gpt_torch.py --preset gpt2-small --device cuda --text FILE         GPT-2 small
    python examples/train_gpt_torch.py --resume                    go on after Ctrl-C, with the losses it would have had

The model is in gpt_torch.py and the same as in gpt.py: without dropout, train_gpt.py has the same losses. The options
are in gpt_options.py, the text, the loop and the checkpoint in training.py. The folder --out gets checkpoint.npz,
losses.csv and, where matplotlib is installed, losses.png.

A GPT-2 small has 124 million parameters; its preset takes 16 batches of 16 sequences of 1024 tokens a step, in bfloat16
and compiled. Its tokens are byte pairs, where tiktoken or transformers is installed and can fetch GPT-2's vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import training
from gpt_options import ModelOptions, option, require
from gpt_torch import ATTENTIONS, Tensor, TorchGPT
from training import learning_rate, text_type


@dataclasses.dataclass(frozen=True)
class Options(ModelOptions):
    """Everything that a run depends on."""

    device: str = option("cpu", "where to compute", choices=("cpu", "cuda"))
    dtype: str = option("float32", "bfloat16 is by autocast", choices=("float32", "bfloat16", "float64"))
    attention: str = option("flash", "which attention to compute", choices=ATTENTIONS)
    out: str = option("build/train_gpt_torch", "folder for the results", free=True, metavar="FOLDER")
    compile: bool = option(False, "by torch.compile")

    def check(self) -> None:
        super().check()
        there = self.device == "cpu" or torch.cuda.is_available()
        require(there, self, "device", "cpu where PyTorch has no GPU")


class Training(training.Training):
    """Training with PyTorch."""

    options: Options

    def make(self) -> None:
        o = self.options
        torch.manual_seed(o.seed)  # of dropout
        self.device = torch.device(o.device)
        self.model = TorchGPT(self.shape, o.dropout, o.seed).to(self.device)
        if o.dtype == "float64":
            self.model.double()
        self.call = torch.compile(self.model, fullgraph=True) if o.compile else self.model
        matrices = [p for p in self.model.parameters() if p.ndim == 2]
        others = [p for p in self.model.parameters() if p.ndim != 2]
        groups = [{"params": matrices, "weight_decay": o.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, o.lr, (o.beta1, o.beta2), fused=o.device == "cuda" or None)

    def mean_loss(self, tokens: Any, targets: Any) -> Tensor:
        """Of a batch of NumPy arrays (B, L)."""
        tokens, targets = (torch.from_numpy(x).to(self.device, torch.int64) for x in (tokens, targets))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.dtype == "bfloat16"):
            logits = self.call(tokens)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).to(self.sum_dtype), targets.flatten())

    @property
    def sum_dtype(self) -> Any:
        """What losses are computed in."""
        return torch.float64 if self.options.dtype == "float64" else torch.float32

    def accumulate(self, batches: Iterator[tuple[Any, Any]]) -> float:
        total = torch.zeros((), dtype=self.sum_dtype, device=self.device)
        self.model.train()
        self.optimizer.zero_grad()
        for tokens, targets in batches:
            part = self.mean_loss(tokens, targets) / self.options.accumulate
            part.backward()
            total += part.detach()
        return float(total)  # once a step: a GPU is waited for

    def step(self, step: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.options, step)
        if self.options.clip:
            gradients = [p.grad for p in self.model.parameters()]
            norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
            torch._foreach_mul_(gradients, (self.options.clip / norm).clamp(max=1.0))
        self.optimizer.step()

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def loss(self, tokens: Any, targets: Any) -> float:
        self.model.eval()
        return float(self.mean_loss(tokens, targets))

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def scores(self, tokens: list[int]) -> list[float]:
        self.model.eval()
        # Not the compiled model: it would be compiled for each length.
        last: list[float] = self.model(torch.tensor([tokens], device=self.device))[0, -1].tolist()
        return last

    def arrays(self) -> dict[str, Any]:
        tensors = {f"model.{name}": p for name, p in self.model.state_dict().items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{name}": torch.as_tensor(x) for name, x in state.items()}
        tensors["generator.cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["generator.cuda"] = torch.cuda.get_rng_state()
        return {name: x.cpu().numpy() for name, x in tensors.items()}

    def set_arrays(self, arrays: Mapping[str, Any]) -> None:
        model: dict[str, Tensor] = {}
        state: dict[int, dict[str, Tensor]] = {}
        for name in arrays:
            if name == "about":
                continue
            kind, _, rest = name.partition(".")
            x = torch.from_numpy(arrays[name])
            if kind == "model":
                model[rest] = x
            elif kind == "optimizer":
                i, _, field = rest.partition(".")
                state.setdefault(int(i), {})[field] = x
        self.model.load_state_dict(model)
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        torch.set_rng_state(torch.from_numpy(arrays["generator.cpu"]))
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(torch.from_numpy(arrays["generator.cuda"]))

    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    def peak_memory(self) -> int:
        on_gpu = self.device.type == "cuda"
        return int(torch.cuda.max_memory_allocated(self.device)) if on_gpu else super().peak_memory()


def main(argv: Sequence[str] | None = None) -> training.Result:
    """Run the command line."""
    return training.run(argv, str(__doc__), Options, text_type, Training)


if __name__ == "__main__":
    main()
