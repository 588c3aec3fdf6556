// What tests ask of the emulated device, in C, exported by libflash_emulated.so beside the functions of flash.h.
// tests/emulated.py is the Python side.
#pragma once
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

// Device memory, filled with NaN (from 1 GiB on with zeros, and taken where it is touched); NULL if there is none left.
// Nothing else may be given to a kernel.
void *emulated_allocate(size_t bytes, const char *name);
// 0 if it was not allocated, or is free already.
int emulated_free(void *address);

// Options of the launches to come. order: 0 forward, 1 reverse, 2 random; copies: 0 late, 1 eager, 2 random.
// most_instructions: of all warps of a launch, 0 = no limit. checks: bit 0 races, bit 1 uninitialised reads, bit 2 traffic,
// bit 3 the PTX lines that were run; bit 4: launches are recorded and not run.
void emulated_set_options(int order, int copies, uint64_t seed, uint64_t most_instructions, unsigned checks);

// The launches since the last call, as a JSON list; see emulated.cpp for its fields. Valid until this thread's next call.
const char *emulated_launches(void);
// Names of all kernels, as mangled in the PTX, as a JSON list.
const char *emulated_kernels(void);
// The PTX text that holds a kernel; NULL if there is none of this name.
const char *emulated_ptx(const char *kernel);

// Replaces one line (1 = first) of the kernel's PTX by another text until the next call; kernel NULL = none. Returns
// NULL, or why not.
const char *emulated_plant(const char *kernel, int ptx_line, const char *text);
// The faults of faults.h that the kernel may be given, as a JSON list; see emulated_faults.cpp for its fields. NULL if
// there is no such kernel.
const char *emulated_faults(const char *kernel);
// Plants the fault of this position in that list, until the next call of this or of emulated_plant. Returns NULL, or why
// not.
const char *emulated_seed(const char *kernel, size_t position);
// Launches to come get at most so many blocks along x, 0 = as many as they ask for: for kernels that stride over tasks.
void emulated_set_most_blocks(unsigned blocks);

// How often each function of the CUDA runtime was called since the last call, as a JSON object.
const char *emulated_calls(void);

// The error that cudaPeekAtLastError would give the calling thread, 0 = none.
int emulated_last_error(void);

// How many devices the machine pretends to have.
int emulated_devices(void);
// Makes a device the calling thread's current one, as cudaSetDevice does; 0 if there is none of this number.
int emulated_set_device(int id);
// The calling thread's current device, as cudaGetDevice says.
int emulated_current_device(void);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
