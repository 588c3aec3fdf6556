// PTX texts out of a fat binary, as nvcc embeds it in an object and hands it to __cudaRegisterFatBinary.
//
// Layout, little endian (found by looking at what nvcc 13.0 writes; not documented):
//   wrapper   u32 magic 0x466243b1, u32 version, u64 address of the image, u64
//   image     u32 magic 0xba55ed50, u16 version, u16 header bytes, u64 bytes behind the header; then entries
//   entry     u16 kind (1: PTX, 2: ELF), u16, u32 header bytes, u64 payload bytes, u32 compressed bytes, ...,
//             u64 flags at 40; then the payload
//
// ptx_texts() itself is declared in emulator.h.
#pragma once
#include "emulator.h"
