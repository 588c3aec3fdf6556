"""Wrong input of every argument: a message that names it, says what was given and what was wanted, before any work.

A case is wrong options for a call that is right without them. They all run in one process: none of them may end it.
"""

from __future__ import annotations

import re

import numpy as np
import pytest

import flash

pytestmark = pytest.mark.sanitize

SHAPE, HEADS, KEY_HEADS, Lq, Lk, D, Dv = (2,), 4, 2, 5, 7, 8, 6
VALUE, TYPE, UNSUPPORTED = flash.FlashValueError, flash.FlashTypeError, flash.UnsupportedError
BLOCKS = flash.BlockMask.from_dense(np.ones((1, 1), bool), 16)


def zeros(*shape: int, dtype: object = np.float32) -> np.ndarray:
    return np.zeros(shape, dtype)


def ints(*values: int, dtype: object = np.int32) -> np.ndarray:
    return np.array(values, dtype)


def arguments() -> dict:
    return {
        "q": zeros(*SHAPE, Lq, HEADS, D),
        "k": zeros(*SHAPE, Lk, KEY_HEADS, D),
        "v": zeros(*SHAPE, Lk, KEY_HEADS, Dv),
    }


# What is wrong, the exception, and what the message has to contain: the argument's name comes first.
CASES = [
    ({"q": 3.0}, TYPE, "q: must be an array .*got float"),
    ({"q": zeros(3)}, VALUE, r"q: .*at least 3 axes, got \(3,\)"),
    ({"q": zeros(2, Lq, HEADS, D, dtype=np.int32)}, TYPE, "q: dtype must be float16 .*got int32"),
    ({"q": zeros(2, Lq, HEADS, D, dtype=np.complex64)}, TYPE, "q: dtype must be float16 .*got complex64"),
    ({"q": zeros(2, Lq, HEADS, D, dtype=object)}, TYPE, "q: must be an array that DLPack can describe.*object"),
    ({"q": zeros(2, Lq, HEADS, D, dtype=">f4")}, TYPE, "q: must be an array that DLPack can describe.*byte order"),
    ({"q": zeros(2, Lq, HEADS, 2 * D)[..., ::2]}, VALUE, "q: last axis must be contiguous.*got stride 2"),
    ({"q": zeros(2, Lq, 3, D)}, VALUE, "k: heads axis must divide the 3 heads of q, got 2"),
    ({"q": zeros(2, Lq, 0, D)}, VALUE, "q: .*0"),
    ({"k": [1.0]}, TYPE, "k: must be an array .*got list"),
    ({"k": zeros(2, Lk, KEY_HEADS, D, dtype=np.float16)}, TYPE, "k: dtype must be float32 as in q, got float16"),
    ({"k": zeros(2, Lk, KEY_HEADS, 9)}, VALUE, "k: last axis must be 8 as in q, got 9"),
    ({"k": zeros(3, Lk, KEY_HEADS, D)}, VALUE, r"k: .*\(2,\).*3"),
    ({"k": zeros(Lk, KEY_HEADS, D)}, VALUE, r"k: leading axes must be \(2,\) as in q, got \(\)"),
    ({"k": zeros(2, 0, D)}, VALUE, "k: "),
    ({"v": None}, TYPE, "v: must be an array .*got NoneType"),
    ({"v": zeros(2, Lk + 1, KEY_HEADS, Dv)}, VALUE, r"v: .*\b8\b"),
    ({"v": zeros(2, Lk, KEY_HEADS + 1, Dv)}, VALUE, r"v: .*\b3\b"),
    ({"v": zeros(2, Lk, KEY_HEADS, 0)}, VALUE, r"v: .*\b0\b"),
    ({"v": zeros(2, Lk, KEY_HEADS, 577)}, UNSUPPORTED, "v: .*576.*577"),
    ({"scale": "1"}, TYPE, r"scale: must be a real number, got '1' \(str\)"),
    ({"scale": True}, TYPE, r"scale: must be a real number, got True \(bool\)"),
    ({"scale": 1j}, TYPE, r"scale: must be a real number, got 1j \(complex\)"),
    ({"scale": zeros(1)}, TYPE, r"scale: must be a real number, got numpy\.ndarray"),
    ({"scale": np.nan}, VALUE, "scale: must be finite, got nan"),
    ({"scale": -np.inf}, VALUE, "scale: must be finite, got -inf"),
    ({"scale": 10**400}, VALUE, "scale: must fit a double, got an integer of 401 digits"),
    ({"causal": 1}, TYPE, r"causal: must be a bool, got 1 \(int\)"),
    ({"causal": None}, TYPE, "causal: must be a bool, got None"),
    ({"causal": zeros(2, dtype=bool)}, TYPE, r"causal: must be a bool, got numpy\.ndarray"),
    ({"window": 3}, TYPE, r"window: must be None or a pair \(left, right\), got 3 \(int\)"),
    ({"window": "ab"}, TYPE, r"window: must be None or a pair \(left, right\), got 'ab'"),
    ({"window": (1, 2, 3)}, VALUE, r"window: must be None or a pair \(left, right\), got \(1, 2, 3\)"),
    ({"window": (1.0, None)}, TYPE, r"window_left: must be an int, got 1\.0 \(float\)"),
    ({"window": (None, True)}, TYPE, r"window_right: must be an int, got True \(bool\)"),
    ({"window": (-1, None)}, VALUE, "window_left: must be at least 0 .*got -1"),
    ({"window": (None, 1 << 30)}, VALUE, f"window_right: .*got {1 << 30}"),
    ({"window": (None, 1 << 63)}, VALUE, f"window_right: .*got {1 << 63}"),
    ({"q_offset": 1.5}, TYPE, r"q_offset: must be an int, got 1\.5 \(float\)"),
    ({"q_offset": -(1 << 30)}, VALUE, f"q_offset: .*got -{1 << 30}"),
    ({"q_offset": 1 << 64}, VALUE, f"q_offset: .*got {1 << 64}"),
    ({"q_offset": ints(1)}, VALUE, r"q_offset: shape must be N = \(2,\), got \(1,\)"),
    ({"q_offset": zeros(2)}, TYPE, "q_offset: dtype must be int32 or int64, got float32"),
    ({"q_offset": ints(1, 1 << 30, dtype=np.int64)}, VALUE, f"q_offset: .*got {1 << 30} for sequence 1"),
    ({"q_lens": 3}, TYPE, "q_lens: must be an array .*got int"),
    ({"q_lens": ints(1, 2, 3)}, VALUE, r"q_lens: shape must be N = \(2,\), got \(3,\)"),
    ({"q_lens": ints(1, 2, dtype=np.uint32)}, TYPE, "q_lens: dtype must be int32 or int64, got uint32"),
    ({"q_lens": ints(1, Lq + 1)}, VALUE, "q_lens: must be 0 to 5, got 6 for sequence 1"),
    ({"kv_lens": ints(-1, 2)}, VALUE, "kv_lens: must be 0 to 7, got -1 for sequence 0"),
    ({"kv_lens": ints(1, 2, dtype=np.int16)}, TYPE, "kv_lens: dtype must be int32 or int64, got int16"),
    ({"mask": [[True]]}, TYPE, "mask: must be an array .*got list"),
    ({"mask": zeros(Lq, Lk)}, TYPE, "mask: dtype must be bool, got float32"),
    ({"mask": zeros(Lq, Lk + 1, dtype=bool)}, VALUE, r"mask: shape must broadcast to .*\(2, 4, 5, 7\), got \(5, 8\)"),
    ({"mask": zeros(1, 2, HEADS, Lq, Lk, dtype=bool)}, VALUE, "mask: shape must broadcast"),
    ({"bias": zeros(Lq, Lk, dtype=np.float64)}, TYPE, "bias: dtype must be float32.*got float64"),
    ({"bias": zeros(3, 1)}, VALUE, r"bias: shape must broadcast to .*\(2, 4, 5, 7\), got \(3, 1\)"),
    ({"bias": 1.0}, TYPE, "bias: must be an array .*got float"),
    ({"alibi_slopes": zeros(3)}, VALUE, r"alibi_slopes: shape must be .*\(2, 4\), got \(3,\)"),
    ({"alibi_slopes": zeros(HEADS, dtype=np.float64)}, TYPE, "alibi_slopes: dtype must be float32, got float64"),
    ({"softcap": "no"}, TYPE, "softcap: must be a real number, got 'no'"),
    ({"softcap": -1.0}, VALUE, "softcap: must be finite and at least 0 .*got -1"),
    ({"softcap": np.inf}, VALUE, "softcap: .*got inf"),
    ({"sinks": zeros(HEADS, 1)}, VALUE, r"sinks: shape must be \(Hq,\) = \(4,\), got \(4, 1\)"),
    ({"sinks": ints(1, 2, 3, 4)}, TYPE, "sinks: dtype must be float32.*got int32"),
    ({"block_mask": zeros(1, 1, dtype=bool)}, TYPE, r"block_mask: must be a flash\.BlockMask, got numpy\.ndarray"),
    ({"block_mask": flash.BlockMask.causal(Lq, 17, 16)}, VALUE, "block_mask.*: "),
    (
        {"block_mask": flash.BlockMask.from_dense(np.ones((3, 1, 1), bool), 16)},
        VALUE,
        "block_mask: leading shape .*",
    ),
    ({"dropout": True}, TYPE, r"dropout: must be a real number, got True \(bool\)"),
    ({"dropout": None}, TYPE, "dropout: must be a real number, got None"),
    ({"dropout": -0.1}, VALUE, r"dropout: must be 0 to 1, got -0\.1"),
    ({"dropout": 1.5}, VALUE, r"dropout: must be 0 to 1, got 1\.5"),
    ({"dropout": np.nan}, VALUE, "dropout: must be 0 to 1, got -?nan"),
    ({"seed": -1}, VALUE, f"seed: must be 0 to {(1 << 64) - 1}, got -1"),
    ({"seed": 1 << 64}, VALUE, f"seed: must be 0 to {(1 << 64) - 1}, got {1 << 64}"),
    ({"seed": 0.0}, TYPE, r"seed: must be an int, got 0\.0 \(float\)"),
    ({"seed": None}, TYPE, "seed: must be an int, got None"),
    ({"seed": ints(1, 2)}, VALUE, r"seed: must have one element, got shape \(2,\)"),
    ({"seed": ints(1, dtype=np.uint64)}, TYPE, "seed: dtype must be int32 or int64, got uint64"),
    ({"q_scale": 2.0}, TYPE, "q_scale: is for float8_e4m3fn only, q is float32"),
    ({"k_scale": "2"}, TYPE, "k_scale: must be a real number, got '2'"),
    ({"v_scale": zeros(2, 2)}, TYPE, "v_scale: is for float8_e4m3fn only, q is float32"),
    ({"out": 3}, TYPE, "out: must be an array .*got int"),
    ({"out": zeros(2, Lq, HEADS, D)}, VALUE, r"out: shape must be .*\(2, 5, 4, 6\), got \(2, 5, 4, 8\)"),
    ({"out": zeros(2, Lq, HEADS, Dv, dtype=np.float64)}, TYPE, "out: dtype must be float32 as in q, got float64"),
    ({"out": zeros(2, Lq, HEADS, 2 * Dv)[..., ::2]}, VALUE, "out: last axis must be contiguous"),
    ({"workspace": zeros(3, dtype=np.uint8)}, VALUE, "workspace: must have [0-9]+ bytes.*got 3"),
    ({"workspace": zeros(1 << 20, dtype=np.int8)}, TYPE, "workspace: must be uint8, got int8"),
    ({"workspace": zeros(2, 1 << 20, dtype=np.uint8)}, VALUE, "workspace: must have one contiguous axis, got"),
    ({"workspace": zeros(1 << 20, dtype=np.uint8)[::2]}, VALUE, "workspace: must have one contiguous axis, got"),
    ({"workspace": 1 << 20}, TYPE, "workspace: must be an array .*got int"),
]
CALL_ONLY = {"out", "workspace"}


def ids(case: object) -> str | None:
    return None if not isinstance(case, dict) else ",".join(case)


@pytest.mark.parametrize(("wrong", "exception", "message"), CASES, ids=ids)
def test_attention(wrong, exception, message):
    call = arguments() | wrong
    with pytest.raises(exception) as caught:
        flash.attention(**call)
    assert re.match(message, str(caught.value)), str(caught.value)
    assert issubclass(exception, flash.FlashError)


@pytest.mark.parametrize(
    ("wrong", "exception", "message"), [case for case in CASES if not case[0].keys() & CALL_ONLY], ids=ids
)
def test_every_function_reads_options_alike(wrong, exception, message):
    call = arguments() | wrong
    o, lse = zeros(*SHAPE, Lq, HEADS, Dv), zeros(*SHAPE, HEADS, Lq)
    inside = re.search(r"got -?\d+ for sequence", message)  # values are not looked at where nothing is computed
    for function in (flash.workspace_bytes, flash.explain, lambda **o: flash.attention_vjp(**o)):
        if inside and function is flash.workspace_bytes:
            continue
        with pytest.raises(exception, match=f"^{message}"):
            function(**call)
    with pytest.raises(exception, match=f"^{message}"):
        flash.attention_backward(o, o=o, lse=lse, **call)
    if "v" not in wrong and not ({"v_scale"} & wrong.keys()):
        del call["v"]
        with pytest.raises(exception, match=f"^{message}"):
            flash.attention_weights(**call)


BACKWARD_CASES = [
    ({"do": None}, TYPE, "do: must be an array .*got NoneType"),
    ({"do": zeros(2, Lq, HEADS, D)}, VALUE, r"do: shape must be .*\(2, 5, 4, 6\), got \(2, 5, 4, 8\)"),
    ({"do": zeros(2, Lq, HEADS, Dv, dtype=np.float64)}, TYPE, "do: dtype must be float32 as in q, got float64"),
    ({"o": zeros(2, Lq, HEADS, D)}, VALUE, r"o: shape must be .*\(2, 5, 4, 6\), got \(2, 5, 4, 8\)"),
    ({"lse": zeros(2, HEADS, Lq + 1)}, VALUE, r"lse: shape must be .*\(2, 4, 5\), got \(2, 4, 6\)"),
    ({"lse": zeros(2, HEADS, Lq, dtype=np.float16)}, TYPE, "lse: dtype must be float32, got float16"),
    ({"dlse": zeros(HEADS, Lq)}, VALUE, r"dlse: shape must be .*\(2, 4, 5\), got \(4, 5\)"),
    ({"dlse": 0.0}, TYPE, "dlse: must be an array .*got float"),
    ({"wrt": "q"}, TYPE, "wrt: must be a collection of names .*got the string 'q'"),
    ({"wrt": ("q", "x")}, VALUE, "wrt: must name some of q, k, v, bias, sinks, got 'x'"),
    ({"wrt": ("dq",)}, VALUE, "wrt: must name some of q, k, v, bias, sinks, got 'dq'"),
    ({"wrt": None}, TYPE, "wrt: must be a collection of names, got None"),
    ({"wrt": ([],)}, TYPE, "wrt: must be a collection of names"),
    ({"deterministic": 1}, TYPE, r"deterministic: must be a bool, got 1 \(int\)"),
    ({"workspace": zeros(0, dtype=np.uint8)}, VALUE, "workspace: must have [0-9]+ bytes.*got"),
]


@pytest.mark.parametrize(("wrong", "exception", "message"), BACKWARD_CASES, ids=ids)
def test_attention_backward(wrong, exception, message):
    o, lse = zeros(*SHAPE, Lq, HEADS, Dv), zeros(*SHAPE, HEADS, Lq)
    with pytest.raises(exception) as caught:
        flash.attention_backward(**{**arguments(), "do": o, "o": o, "lse": lse, **wrong})
    assert re.match(message, str(caught.value)), str(caught.value)


def test_unknown_options_are_named():
    q, k, v = arguments().values()
    o, lse = flash.attention(q, k, v, return_lse=True)
    calls = {
        "attention": lambda: flash.attention(q, k, v, is_causal=True),
        "attention_backward": lambda: flash.attention_backward(o, q, k, v, o, lse, is_causal=True),
        "attention_vjp": lambda: flash.attention_vjp(q, k, v, is_causal=True),
        "attention_weights": lambda: flash.attention_weights(q, k, is_causal=True),
        "workspace_bytes": lambda: flash.workspace_bytes(q, k, v, is_causal=True),
        "explain": lambda: flash.explain(q, k, v, is_causal=True),
    }
    for name, call in calls.items():
        with pytest.raises(TypeError, match=rf"{name}\(\) got an unexpected keyword argument 'is_causal'"):
            call()
    with pytest.raises(TypeError, match="positional"):
        flash.attention(q, k, v, 0.5)


def test_small_tools():
    q, k, v = arguments().values()
    o, lse = flash.attention(q, k, v, return_lse=True)
    cases = [
        (
            lambda: flash.attention_weights(q, k, rows=3),
            TYPE,
            "rows: must be an int64 array .*got 3",
        ),
        (lambda: flash.attention_weights(q, k, rows=[0.5]), TYPE, r"rows: must be an int, got 0\.5"),
        (lambda: flash.attention_weights(q, k, rows=[-1]), VALUE, "rows: must be 0 to .*got -1"),
        (lambda: flash.attention_weights(q, k, rows=[Lq]), VALUE, "rows: must be 0 to 4, got 5"),
        (lambda: flash.attention_weights(q, k, rows=zeros(1)), TYPE, "rows: dtype must be int64, got float32"),
        (lambda: flash.attention_weights(q, k, rows=zeros(1, 1, dtype=int)), VALUE, "rows: must have one axis, got"),
        (lambda: flash.dropout_mask(-1, 0.5, (1, 2, 3)), VALUE, "seed: must be 0 to .*got -1"),
        (lambda: flash.dropout_mask(ints(1), 0.5, (1, 2, 3)), TYPE, r"seed: must be an int, got numpy\.ndarray"),
        (lambda: flash.dropout_mask(1, 2, (1, 2, 3)), VALUE, "dropout: must be 0 to 1, got 2"),
        (lambda: flash.dropout_mask(1, 0.5, (2, 3)), VALUE, "shape: must be .*at least 3 axes, got"),
        (lambda: flash.dropout_mask(1, 0.5, 3), TYPE, "shape: must be a sequence of int, got 3"),
        (lambda: flash.dropout_mask(1, 0.5, (1, -2, 3)), VALUE, "shape: must be 0 to .*got -2"),
        (lambda: flash.merge(o, lse, o[..., 1:], lse), VALUE, "o2: "),
        (lambda: flash.merge(o, lse, o.astype("f8"), lse), TYPE, "o2: dtype must be float32 as in o1, got float64"),
        (lambda: flash.merge(o, lse[:, 1:], o, lse), VALUE, "lse1: "),
        (lambda: flash.merge(o, lse, o, None), TYPE, "lse2: must be an array .*got NoneType"),
        (lambda: flash.merge(1, lse, o, lse), TYPE, "o1: must be an array .*got int"),
        (lambda: flash.explain(q, k, v, backward=True, wrt=()), VALUE, "wrt: "),
        (lambda: flash.show_config("json"), VALUE, "mode: must be 'stdout' or 'dicts', got 'json'"),
    ]
    for call, exception, message in cases:
        with pytest.raises(exception) as caught:
            call()
        assert re.match(message, str(caught.value)), str(caught.value)


def test_a_failed_call_leaves_the_output_alone_and_the_next_one_works():
    q, k, v = arguments().values()
    out = np.full((2, Lq, HEADS, Dv), 7, np.float32)
    for wrong in ({"kv_lens": ints(1, 99)}, {"scale": np.nan}, {"seed": -1}, {"sinks": zeros(1)}):
        with pytest.raises(flash.FlashError):
            flash.attention(q, k, v, out=out, **wrong)
        assert (out == 7).all()
    assert (flash.attention(q, k, v, out=out) == 0).all()


def test_exceptions_are_also_the_built_in_ones():
    for exception, built_in in (
        (flash.FlashValueError, ValueError),
        (flash.FlashTypeError, TypeError),
        (flash.UnsupportedError, NotImplementedError),
        (flash.CudaError, RuntimeError),
    ):
        assert issubclass(exception, (flash.FlashError)) and issubclass(exception, built_in)
