"""Block masks: each pattern against its definition on elements, the lists, set operations, errors."""

import math

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_numpy

from flash.block_mask import BlockMask
from flash.exceptions import FlashTypeError, FlashValueError

SIZES = [(0, 0), (0, 40), (40, 0), (1, 1), (64, 64), (100, 33), (33, 100), (129, 200)]
BLOCKS = [(16, 16), (16, 32), (32, 16)]


def expected(Lq, Lk, block_size, element):
    """A block is listed when any of its elements is: element(i, j) on all positions."""
    block_q, block_k = block_size
    rows, cols = -(-Lq // block_q), -(-Lk // block_k)
    elements = numpy.zeros((rows * block_q, cols * block_k), bool)
    i, j = numpy.ogrid[:Lq, :Lk]
    elements[:Lq, :Lk] = element(i, j)
    return elements.reshape(rows, block_q, cols, block_k).any(axis=(1, 3))


def offsets(Lq, Lk):
    return {None: Lk - Lq, 0: 0, 7: 7, -20: -20, 50: 50}.items()


@pytest.mark.parametrize("Lq, Lk", SIZES)
@pytest.mark.parametrize("block_size", BLOCKS)
def test_patterns_list_the_blocks_with_a_visible_element(Lq, Lk, block_size):
    for q_offset, off in offsets(Lq, Lk):

        def check(name, element, *arguments, q_offset=q_offset):
            mask = getattr(BlockMask, name)(Lq, Lk, block_size, *arguments, q_offset=q_offset)
            numpy.testing.assert_array_equal(
                mask.to_dense(), expected(Lq, Lk, block_size, element), f"{name}{arguments}"
            )

        check("causal", lambda i, j, off=off: j <= i + off)
        for left, right in [(None, None), (0, 0), (20, None), (None, 3), (17, 5)]:
            low, high = -math.inf if left is None else -left, math.inf if right is None else right

            def near(i, j, off=off, low=low, high=high):
                return (i + off + low <= j) & (j <= i + off + high)

            check("sliding_window", near, (left, right))

            def near_or_global(i, j, off=off, near=near):
                end = 2 * block_size[1]
                return near(i, j) | (j < end) | ((i + off >= 0) & (i + off < end))

            check("local_global", near_or_global, (left, right), 2)
        for stride in (1, 5, 16, 45, 64):

            def strided(i, j, off=off, stride=stride):
                return (i + off >= j) & ((i + off - j <= stride) | ((i + off - j) % stride == 0))

            check("strided", strided, stride)
            for summary in {1, (stride + 1) // 2, stride}:

                def fixed(i, j, off=off, stride=stride, summary=summary):
                    same = (i + off) // stride == j // stride
                    return (j <= i + off) & (same | (j % stride >= stride - summary))

                check("fixed", fixed, stride, summary)


def test_butterfly_connects_indices_that_differ_in_one_digit():
    dense = BlockMask.butterfly(16 * 13, 16 * 13, 16).to_dense()
    for r, c in numpy.ndindex(13, 13):
        assert dense[r, c] == ((r ^ c).bit_count() <= 1)


def test_butterfly_stretches():
    dense = BlockMask.butterfly(16 * 8, 16 * 24, 16).to_dense()
    numpy.testing.assert_array_equal(dense, BlockMask.butterfly(128, 128, 16).to_dense().repeat(3, axis=1))
    numpy.testing.assert_array_equal(BlockMask.butterfly(16 * 24, 16 * 8, 16).to_dense(), dense.T)
    assert BlockMask.butterfly(0, 64, 16).shape == (0, 4)


@pytest.mark.parametrize("density", [0, 0.1, 0.5, 0.999, 1])
def test_random_has_exactly_its_share(density):
    mask = BlockMask.random(1000, 500, 16, density, seed=3)
    assert mask.nnz == round(density * 63 * 32)
    assert mask == BlockMask.random(1000, 500, 16, density, seed=3)
    assert (mask != BlockMask.random(1000, 500, 16, density, seed=4)) == (0 < density < 1)
    assert BlockMask.random(0, 500, 16, density, seed=0).nnz == 0


def test_from_function_is_called_for_parts_of_a_large_grid():
    heights = []

    def fn(row, column):
        heights.append(len(row))
        return (row + 2 * column) % 5 == 0

    mask = BlockMask.from_function(fn, 16 * 900, 16 * 2000, 16)
    row, column = numpy.ogrid[:900, :2000]
    numpy.testing.assert_array_equal(mask.to_dense(), (row + 2 * column) % 5 == 0)
    assert sum(heights) == 900 and len(heights) > 1
    assert BlockMask.from_function(lambda row, column: numpy.True_, 40, 40, 16).density == 1


# ---- The lists -------------------------------------------------------------------------------------------------------

grids = hypothesis_numpy.array_shapes(min_dims=2, max_dims=4, min_side=0, max_side=5).flatmap(
    lambda shape: hypothesis_numpy.arrays(bool, shape)
)


@given(blocks=grids, block_q=st.sampled_from([16, 256]))
@settings(deadline=None, max_examples=100)
def test_lists_and_back(blocks, block_q):
    mask = BlockMask.from_dense(blocks, (block_q, 32))
    *leading, rows, cols = blocks.shape
    assert mask.shape == blocks.shape and (mask.Lq, mask.Lk) == (rows * block_q, cols * 32)
    assert mask.nnz == blocks.sum() and mask.density == pytest.approx(blocks.mean() if blocks.size else 0)
    numpy.testing.assert_array_equal(mask.to_dense(), blocks)
    numpy.testing.assert_array_equal(mask.T.to_dense(), blocks.swapaxes(-1, -2))
    assert mask.T.T == mask and mask.T.block_size == (32, block_q)
    for starts, listed, grid in (
        (mask.row_start, mask.columns, blocks),
        (mask.column_start, mask.rows, blocks.swapaxes(-1, -2)),
    ):
        assert starts.dtype == listed.dtype == numpy.int32 and listed.shape == (mask.nnz,)
        assert starts.shape == (*leading, grid.shape[-2] + 1)
        for index in numpy.ndindex(grid.shape[:-1]):
            begin, end = starts[index], starts[(*index[:-1], index[-1] + 1)]
            numpy.testing.assert_array_equal(listed[begin:end], numpy.flatnonzero(grid[index]))


def check_lists(leading, N, Hq):
    """The lists of random blocks stand for these blocks. Returns the leading shape of the lists."""
    blocks = numpy.random.default_rng(0).random((*leading, 3, 4)) < 0.5
    lists = BlockMask.from_dense(blocks, 16).lists_for(numpy.zeros(1), N, Hq)
    full = numpy.broadcast_to(blocks, (*N, Hq, 3, 4)).reshape(-1, Hq, 3, 4)
    for start, listed, grid in (
        (lists.row_start, lists.columns, full),
        (lists.column_start, lists.rows, full.swapaxes(-1, -2)),
    ):
        every = numpy.broadcast_to(start, (len(full), Hq, start.shape[-1]))
        for b, h, r in numpy.ndindex(grid.shape[:-1]):
            row = listed[every[b, h, r] : every[b, h, r + 1]]
            numpy.testing.assert_array_equal(row, numpy.flatnonzero(grid[b, h, r]))
    assert lists.row_start.shape[:2] == lists.column_start.shape[:2]
    return lists.row_start.shape[:2]


@pytest.mark.parametrize(
    "leading, N, Hq, wanted",
    [
        ((), (), 2, (1, 1)),
        ((), (2, 3), 2, (1, 1)),
        ((2,), (5,), 2, (1, 2)),
        ((1,), (5,), 2, (1, 1)),
        ((5, 1), (5,), 2, (5, 1)),
        ((5, 2), (5,), 2, (5, 2)),
        ((1, 1, 2), (2, 3), 2, (1, 2)),
        ((2, 3, 2), (2, 3), 2, (6, 2)),
        ((1, 3, 2), (2, 3), 2, (6, 2)),
        ((2, 1, 1), (2, 3), 2, (6, 1)),
        ((0, 2), (0,), 2, (0, 2)),
    ],
)
def test_lists_for_a_problem(leading, N, Hq, wanted):
    assert check_lists(leading, N, Hq) == wanted


@pytest.mark.parametrize("leading", [(3,), (4, 8), (1, 2, 8), (2, 8, 1)])
def test_leading_shape_must_broadcast(leading):
    mask = BlockMask.from_dense(numpy.ones((*leading, 1, 1), bool), 16)
    with pytest.raises(FlashValueError, match=r"^block_mask: leading shape must broadcast to \(2, 8\), got \("):
        mask.lists_for(numpy.zeros(1), (2,), 8)


def test_lists_are_placed_once_beside_an_array():
    mask = BlockMask.from_dense(numpy.ones((3, 2, 2), bool), 16)
    array = numpy.zeros(2)
    assert mask.to(array) is mask and mask.lists_for(array, (5,), 3).columns is mask.columns
    assert mask.lists_for(array, (), 3).row_start.base is mask.row_start


def test_lists_on_a_device(backend):
    """They are copied to it once, and say there what they say in NumPy."""
    mask = BlockMask.causal(64, 96, (16, 32))
    array = backend.array(numpy.zeros(2, "f4"))
    lists, again = (mask.to(array).lists_for(array, (2,), 3) for _ in range(2))
    assert lists.columns is again.columns and lists.rows is again.rows
    for actual, wanted in zip(lists, mask.lists_for(numpy.zeros(2), (2,), 3), strict=True):
        assert type(actual) is type(array)
        numpy.testing.assert_array_equal(backend.numpy(actual), wanted)


def test_lists_in_pytorch():
    torch = pytest.importorskip("torch")
    mask = BlockMask.causal(64, 96, (16, 32))
    tensor = torch.zeros(2)
    lists, again = (mask.to(tensor).lists_for(tensor, (2,), 3) for _ in range(2))
    assert all(isinstance(x, torch.Tensor) and x.dtype == torch.int32 for x in lists)
    assert lists.columns is again.columns and lists.rows is again.rows
    for actual, wanted in zip(lists, mask.lists_for(numpy.zeros(2), (2,), 3), strict=True):
        numpy.testing.assert_array_equal(actual.numpy(), wanted)


def test_lists_in_jax():
    jax = pytest.importorskip("jax")
    mask = BlockMask.causal(64, 96, (16, 32))
    array = jax.numpy.zeros(2)
    lists = mask.lists_for(array, (2,), 3)
    assert all(isinstance(x, jax.Array) and x.devices() == array.devices() for x in lists)
    numpy.testing.assert_array_equal(lists.columns, mask.columns)

    @jax.jit
    def traced(x):
        assert mask.lists_for(x, (2,), 3).columns is mask.columns
        return x

    traced(array)


# ---- As values -------------------------------------------------------------------------------------------------------


@given(data=st.data(), rows=st.integers(0, 4), cols=st.integers(0, 4))
@settings(deadline=None, max_examples=50)
def test_set_operations(data, rows, cols):
    a, b = (
        data.draw(hypothesis_numpy.arrays(bool, (*leading, rows, cols)))
        for leading in (data.draw(st.sampled_from([(), (3,), (1,), (2, 3)])) for _ in range(2))
    )
    left, right = BlockMask.from_dense(a, 32), BlockMask.from_dense(b, 32)
    numpy.testing.assert_array_equal((left & right).to_dense(), a & b)
    numpy.testing.assert_array_equal((left | right).to_dense(), a | b)


def test_set_operations_keep_the_given_lengths():
    mask = BlockMask.from_dense(numpy.ones((2, 4), bool), (64, 32)) & BlockMask.causal(100, 101, (64, 32))
    assert (mask.Lq, mask.Lk) == (100, 101)


def test_equality_and_hash():
    mask = BlockMask.causal(64, 64, 16)
    same = BlockMask.from_dense(numpy.tri(4, dtype=bool), (16, 16))
    assert mask == same and hash(mask) == hash(same) and len({mask, same}) == 1
    assert mask != BlockMask.from_dense(numpy.tri(4, dtype=bool), 32)
    assert mask != mask.T and mask != BlockMask.from_dense(numpy.tri(4, dtype=bool)[None], 16)
    assert mask != "mask"


def test_immutable():
    mask = BlockMask.causal(64, 64, 16)
    for array in (mask.row_start, mask.columns, mask.column_start, mask.rows):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    with pytest.raises(AttributeError):
        mask.Lq = 3


def test_repr_and_plot():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    mask = BlockMask.causal(64, 100, (16, 32))
    assert repr(mask) == (
        f"BlockMask(Lq=64, Lk=100, block_size=(16, 32), shape=(4, 4), nnz={mask.nnz}, density={mask.density:.3f})"
    )
    _, axes = pyplot.subplots()
    assert mask.plot(axes) is axes
    numpy.testing.assert_array_equal(axes.images[0].get_array(), mask.to_dense())
    assert BlockMask.from_dense(numpy.zeros((3, 0, 2), bool), 16).plot() is pyplot.gca()
    pyplot.close("all")


# ---- Errors ----------------------------------------------------------------------------------------------------------

EYE = numpy.eye(2, dtype=bool)


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: BlockMask.causal(64, 64, 24), ValueError, "block_size: must be a power of two from 16 to 256, got 24"),
        (lambda: BlockMask.causal(64, 64, 512), ValueError, "block_size: must be a power of two .*, got 512"),
        (lambda: BlockMask.causal(64, 64, (16, 8)), ValueError, "block_size: must be a power of two .*, got 8"),
        (lambda: BlockMask.causal(64, 64, (16,)), ValueError, r"block_size: must be .* pair of integers, got \(16,\)"),
        (lambda: BlockMask.causal(64, 64, 16.0), TypeError, "block_size: must be an integer, got 16.0"),
        (lambda: BlockMask.causal(-1, 64, 16), ValueError, "Lq: must be at least 0, got -1"),
        (lambda: BlockMask.causal(64, "a", 16), TypeError, "Lk: must be an integer, got 'a'"),
        (lambda: BlockMask.causal(64, 64, 16, q_offset=0.5), TypeError, "q_offset: must be an integer, got 0.5"),
        (lambda: BlockMask.sliding_window(64, 64, 16, 3), ValueError, r"window: must be a pair \(left, right\), got 3"),
        (lambda: BlockMask.sliding_window(64, 64, 16, (1, -2)), ValueError, "window: must be at least 0, got -2"),
        (lambda: BlockMask.sliding_window(64, 64, 16, (1.5, 2)), TypeError, "window: must be an integer, got 1.5"),
        (
            lambda: BlockMask.local_global(64, 64, 16, (1, 1), -1),
            ValueError,
            "global_blocks: must be at least 0, got -1",
        ),
        (lambda: BlockMask.strided(64, 64, 16, 0), ValueError, "stride: must be at least 1, got 0"),
        (lambda: BlockMask.fixed(64, 64, 16, 8, 0), ValueError, "summary: must be at least 1, got 0"),
        (lambda: BlockMask.fixed(64, 64, 16, 8, 9), ValueError, "summary: must be at most stride, 8, got 9"),
        (lambda: BlockMask.butterfly(64, None, 16), TypeError, "Lk: must be an integer, got None"),
        (lambda: BlockMask.random(64, 64, 16, 1.5, 0), ValueError, "density: must be from 0 to 1, got 1.5"),
        (lambda: BlockMask.random(64, 64, 16, math.nan, 0), ValueError, "density: must be from 0 to 1, got nan"),
        (lambda: BlockMask.random(64, 64, 16, "1", 0), TypeError, "density: must be a number, got '1'"),
        (lambda: BlockMask.random(64, 64, 16, 0.5, -1), ValueError, "seed: must be at least 0, got -1"),
        (lambda: BlockMask.from_dense(EYE.astype(int), 16), TypeError, "blocks: dtype must be bool, got int64"),
        (lambda: BlockMask.from_dense(EYE[0], 16), ValueError, r"blocks: must have .* axes .*, got shape \(2,\)"),
        (lambda: BlockMask.from_dense(EYE, 16, Lq=33), ValueError, "Lq: must make 2 blocks of 16, .*, got 33"),
        (lambda: BlockMask.from_dense(EYE, 16, Lk=16), ValueError, "Lk: must make 2 blocks of 16, .*, got 16"),
        (lambda: BlockMask.from_function(3, 64, 64, 16), TypeError, "fn: must be callable, got 3"),
        (lambda: BlockMask.from_function(lambda r, c: r + c, 64, 64, 16), TypeError, "fn: must return bool, got int64"),
        (
            lambda: BlockMask.from_function(lambda r, c: EYE, 64, 64, 16),
            ValueError,
            r"fn: must return what broadcasts to \(4, 4\), got shape \(2, 2\)",
        ),
        (
            lambda: BlockMask.causal(64, 64, 16) & BlockMask.causal(64, 64, 32),
            ValueError,
            r"block_mask: block size must be \(16, 16\) too, got \(32, 32\)",
        ),
        (
            lambda: BlockMask.causal(64, 64, 16) | BlockMask.causal(64, 80, 16),
            ValueError,
            r"block_mask: shapes must broadcast, got \(4, 4\) and \(4, 5\)",
        ),
    ],
)
def test_errors(make, error, message):
    flash_error = {ValueError: FlashValueError, TypeError: FlashTypeError}[error]
    with pytest.raises(flash_error, match=f"^{message}$") as caught:
        make()
    assert isinstance(caught.value, error)


def test_other_operands_are_left_to_python():
    with pytest.raises(TypeError, match="unsupported operand"):
        BlockMask.causal(64, 64, 16) & 3


@pytest.mark.parametrize("name", ["block_q", "Lk", "row_start", "columns", "lists_by_place"])
def test_a_mask_does_not_change(name):
    mask = BlockMask.causal(64, 64, 32)
    with pytest.raises(AttributeError, match=f"{name}: a BlockMask can't be changed"):
        setattr(mask, name, None)
    with pytest.raises(ValueError, match="read-only"):
        mask.row_start[:] = 0
