// Where numbers lie in swizzled shared memory and in the fragments of mma.m16n8k16 and wgmma: plain functions, for
// kernels and for tests on the host.
//
// Lane 4 r + q of a warp holds, of 16 x 8 results C and of the operands A (16 x 16) and B (16 x 8) of C += A B:
//
//   C, float32   c0 c1 = row r,      columns 2q, 2q + 1        c2 c3 = row r + 8, the same columns
//   A, 16 bits   a0    = row r,      columns 2q, 2q + 1        a1    = row r + 8, the same columns
//                a2    = row r,      columns 2q + 8, 2q + 9    a3    = row r + 8, the same columns
//   B, 16 bits   b0    = rows 2q, 2q + 1, column r             b1    = rows 2q + 8, 2q + 9, column r
//
// So C of one product is A of the next, once it is rounded and packed. The warps of a warpgroup hold 16 rows each of
// wgmma's 64 x N results C, and of A (64 x 16), in the same way: C register 4n + e is register e of columns 8n to 8n + 7.
#pragma once
#include <cstdint>

#include "portable.h"

namespace flash {

constexpr int kWarp = 32;
// Side of the results of one mma, and depth of its products.
constexpr int kMmaRows = 16, kMmaColumns = 8, kMmaDepth = 16;
// 16-bit numbers that cp.async and ldmatrix move as one: 16 bytes.
constexpr int kUnit = 8;

// Shared memory holds rows of `units` units, a multiple of 8. Unit u of row r lies in place u ^ (r & 7): 8 units of
// one column from 8 consecutive rows, as ldmatrix reads them, then meet all 32 banks once.
FLASH_INLINE constexpr int swizzled_offset_bytes(int row, int unit, int units) {
  return (row * units + (unit ^ (row & 7))) * 16;
}

// From the place of a unit of a row, as an address, to that of a unit `step` further: where the last three bits of both
// add up without a carry (unit 0 or 1 and an even step, for instance). The row starts at a multiple of 128 bytes.
FLASH_INLINE constexpr uint32_t swizzled_step(uint32_t address, int step) {
  return (address ^ static_cast<uint32_t>(step % 8 * 16)) + static_cast<uint32_t>(step / 8 * 128);
}

// ldmatrix.x4 takes the address of one row of 8 numbers from each lane: 8 lanes for each of four 8 x 8 matrices. These
// are the row and unit for lane l, in a tile that starts at the fragment's first row and unit.
struct MatrixRow {
  int row, unit;
};
// The matrices of an A fragment: rows 0-7 and 8-15 of unit 0, then of unit 1. With .trans, of rows of B: a pair of B
// fragments, of columns 0-7 (unit 0) and 8-15 (unit 1).
FLASH_INLINE constexpr MatrixRow row_major_matrix(int lane) { return {lane % 16, lane / 16}; }
// A pair of B fragments from rows of B transposed: columns 0-7 of B, units 0 and 1, then columns 8-15.
FLASH_INLINE constexpr MatrixRow column_major_matrix(int lane) { return {lane % 8 + lane / 16 * 8, lane / 8 % 2}; }

// Row of C (and A) of registers 0 and 1, and the first of their columns; registers 2 and 3 are 8 rows further.
FLASH_INLINE constexpr int fragment_row(int lane) { return lane / 4; }
FLASH_INLINE constexpr int fragment_column(int lane) { return lane % 4 * 2; }

// The position within its 16 that row n of a fragment stands for: rows r and r + 8, which one lane holds, are
// neighbours, as its columns are. One draw of the dropout generator serves such a square of 2 x 2.
FLASH_INLINE constexpr int paired_row(int n) { return n / 16 * 16 + n % 8 * 2 + n / 8 % 2; }

// ---- Tiles of wgmma and TMA -----------------------------------------------------------------------------------------

// Rows lie in panels of 64 16-bit numbers: all rows' first 128 bytes, then all rows' next. Within 128 bytes unit u lies in
// place u ^ (row & 7), as TMA writes boxes with its 128-byte swizzle. Panels start at multiples of 1024 bytes.
constexpr int kPanel = 64, kPanelRowBytes = 128, kPanelAlignment = 1024;
// Numbers of a row that one product adds up, in bytes.
constexpr int kDepthBytes = 32;
// Rows of a product's sums in a warpgroup.
constexpr int kWarpgroupRows = 64, kWarpgroup = 128;
FLASH_INLINE constexpr int panels_of(int columns) { return (columns + kPanel - 1) / kPanel; }
FLASH_INLINE constexpr int panel_offset_bytes(int row, int unit, int rows) {
  return unit / 8 * rows * kPanelRowBytes + swizzled_offset_bytes(row, unit % 8, 8);
}

// What wgmma is told of an operand in shared memory with the 128-byte swizzle: where it starts and, in bytes, how far
// apart its parts are. Along rows: `stride` from one 8 rows to the next, `leading` is not used. Along columns: `leading`
// from one 64 columns to the next, `stride` from one 8 rows to the next. It starts `offset` behind the address:
// apart, so that steps along the depth take an addition each, not the making of a descriptor.
FLASH_INLINE constexpr uint64_t matrix_descriptor(uint32_t address, uint32_t offset, uint32_t leading,
                                                  uint32_t stride) {
  constexpr uint32_t kMost = (1u << 18) - 1;
  return uint64_t{((address & kMost) >> 4) + (offset >> 4)} | uint64_t{leading >> 4} << 16 |
         uint64_t{stride >> 4} << 32 | uint64_t{1} << 62;
}

// ---- Products of 8-bit numbers ---------------------------------------------------------------------------------------

// Lane 4 r + q of a warp holds, of wgmma's A (64 x 32 numbers of 8 bits, 16 rows to a warp),
//
//   a0 = row r, columns 4q to 4q + 3     a1 = row r + 8, the same columns     a2, a3 = the same rows, columns 16 further
//
// and of C in each row columns 2q and 2q + 1 of every 8. So C becomes A in registers, but with the columns of each 16 in
// another order: position n of a row of A has this column of C, and the rows of B have to come in the same order.
FLASH_INLINE constexpr int packed_column(int n) { return n / 16 * 16 + n % 4 / 2 * 8 + n % 16 / 4 * 2 + n % 2; }

// Operands of 8-bit products lie along rows only: v, whose rows are added up, has to be transposed. A warp does so with 32
// rows of 16 numbers:
//
// - It loads four matrices of 8 rows with ldmatrix.trans, which takes two neighbouring numbers for one: a lane then has,
//   of matrix m, rows 8m + 2q and 8m + 2q + 1 of columns 2r and 2r + 1.
// - Of two matrices, one permutation of bytes leaves the four numbers of column 2r, another those of column 2r + 1: just
//   the rows that packed_column names for positions 4q to 4q + 3.
// - stmatrix stores these words as rows of the transposed tile: as one matrix column 2r of lanes with r < 4 and 2r + 1 of
//   the others, as another the rest. The 8 rows of a matrix then lie in 8 places of the swizzle, and meet all 32 banks
//   once; eight even ones would meet half of them.
//
// The permutation for the first of the two, where the other's is kOtherBytes ^ it.
constexpr uint32_t kEvenBytes = 0x6420, kOddBytes = 0x7531, kOtherBytes = kEvenBytes ^ kOddBytes;
FLASH_INLINE constexpr uint32_t transposing_bytes(int lane) { return lane < 16 ? kEvenBytes : kOddBytes; }
// Where lane l's address for stmatrix.x4 points: row of the 16 columns, unit of the two that 32 rows become. Matrices are
// both of unit 0, then both of unit 1.
FLASH_INLINE constexpr MatrixRow transposed_matrix(int lane) {
  const int row = lane % 8, is_odd = static_cast<int>(row >= 4) ^ (lane / 8 % 2);
  return {2 * row + is_odd, lane / 16};
}

}  // namespace flash
