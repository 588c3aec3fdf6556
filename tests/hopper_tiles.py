"""Tiles of the kernels for Hopper, as in cuda/configs.h, for tests that know apart from it what to expect."""

from __future__ import annotations

from typing import NamedTuple

WARPGROUP_ROWS = 64


class Tile(NamedTuple):
    """Rows of the kernel's own side, at most 64 to a warpgroup, and columns of the other one."""

    rows: int
    columns: int

    @property
    def warpgroups(self) -> int:
        return -(-self.rows // WARPGROUP_ROWS)

    @property
    def threads(self) -> int:
        """Of a block: one more warpgroup loads."""
        return 128 * (self.warpgroups + 1)


# By head dim and whether there are options that change how scores are made.
FORWARD = {
    (64, False): Tile(192, 128),
    (96, False): Tile(128, 128),
    (128, False): Tile(128, 128),
    (192, False): Tile(128, 96),
    (256, False): Tile(128, 64),
    (64, True): Tile(128, 128),
    (96, True): Tile(128, 128),
    (128, True): Tile(128, 96),
    (192, True): Tile(128, 64),
    (256, True): Tile(128, 64),
}
FORWARD_NARROW = {(192, False): Tile(128, 128)}  # values of at most 128
FORWARD_FP8 = {
    (64, False): Tile(192, 160),
    (128, False): Tile(128, 224),
    (256, False): Tile(128, 96),
    (64, True): Tile(128, 128),
    (128, True): Tile(128, 64),
    (256, True): Tile(128, 64),
}
BACKWARD = {
    (64, False): Tile(128, 128),
    (64, True): Tile(128, 64),
    (128, False): Tile(128, 64),
    (128, True): Tile(128, 64),
}
BACKWARD_WIDE = {
    (192, False): Tile(96, 64),
    (192, True): Tile(96, 64),
    (256, False): Tile(80, 64),
    (256, True): Tile(80, 64),
}
DEPTH = 16  # 16-bit numbers that one matrix instruction adds up
DEPTH_FP8 = 32
PANEL = 64  # numbers of a row of shared memory
