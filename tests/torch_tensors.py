"""What the tests of flash.torch share: tensors that are the same in every run, and comparisons."""

from __future__ import annotations

import torch

import flash.torch


def calls_of_flash(monkeypatch):
    """A list: the options of each call of flash.torch.attention by a function that stands for another."""
    found = []

    def attention(*arguments, **options):
        found.append(options)
        return flash.torch.attention(*arguments, **options)

    for module in ("sdpa", "hugging_face"):
        monkeypatch.setattr(f"flash.torch.{module}.attention", attention)
    return found


def draw(*shape, dtype=torch.float32, grad=False, seed=0):
    generator = torch.Generator().manual_seed(hash((shape, seed)) % 2**32)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(grad)


def qkv(L=33, H=4, Hk=2, D=8, N=(2,), **more):
    return draw(*N, L, H, D, **more), draw(*N, L, Hk, D, seed=1, **more), draw(*N, L, Hk, D, seed=2, **more)


def gradients_of(function, inputs, seed=0):
    """Those of a sum of random multiples of the results."""
    results = function(*inputs)
    results = results if isinstance(results, tuple) else (results,)
    return *results, *torch.autograd.grad(results, inputs, [draw(*x.shape, dtype=x.dtype, seed=seed) for x in results])


def assert_equal(actual, wanted):
    for a, w in zip(actual, wanted, strict=True):
        assert a.dtype == w.dtype and torch.equal(a, w)
