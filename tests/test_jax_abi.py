"""src/xla.h against the headers of the installed jaxlib: what the handlers touch lies where XLA puts it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

jax = pytest.importorskip("jax")
SOURCES = Path(__file__).resolve().parents[1] / "src"

# Ours: theirs, and the fields of ours with the names of theirs.
STRUCTS = {
    "Frame XLA_FFI_CallFrame": "api api, context ctx, stage stage, operands args, results rets, attributes attrs",
    "Buffers XLA_FFI_Args": "size size, types types, buffers args",
    "Buffers XLA_FFI_Rets": "size size, types types, buffers rets",
    "Attributes XLA_FFI_Attrs": "size size, types types, names names, values attrs",
    "Buffer XLA_FFI_Buffer": "dtype dtype, data data, rank rank, dims dims",
    "Name XLA_FFI_ByteSpan": "text ptr, length len",
    "Scalar XLA_FFI_Scalar": "dtype dtype, value value",
    "ErrorCreate XLA_FFI_Error_Create_Args": "message message, code errc",
    "StreamGet XLA_FFI_Stream_Get_Args": "context ctx, stream stream",
    "MemoryAllocate XLA_FFI_DeviceMemory_Allocate_Args": "context ctx, size size, alignment alignment, data data",
    "MemoryFree XLA_FFI_DeviceMemory_Free_Args": "context ctx, size size, data data",
    "Version XLA_FFI_Api_Version": "major major_version, minor minor_version",
    "Metadata XLA_FFI_Metadata": "version api_version, traits traits",
    "MetadataExtension XLA_FFI_Metadata_Extension": "base extension_base, metadata metadata",
    "Api XLA_FFI_Api": (
        "version api_version, error_create XLA_FFI_Error_Create, stream_get XLA_FFI_Stream_Get, "
        "memory_allocate XLA_FFI_DeviceMemory_Allocate, memory_free XLA_FFI_DeviceMemory_Free"
    ),
}
# Built in one piece here and filled in by us: their size is what XLA checks.
WHOLE = [pair for pair in STRUCTS if pair.split()[0] in ("ErrorCreate", "StreamGet", "MemoryAllocate", "MemoryFree")]
NUMBERS = {
    "kMetadataExtension": "XLA_FFI_Extension_Metadata",
    "kScalarAttribute": "XLA_FFI_AttrType_SCALAR",
    "kInvalidArgument": "XLA_FFI_Error_Code_INVALID_ARGUMENT",
    "kResourceExhausted": "XLA_FFI_Error_Code_RESOURCE_EXHAUSTED",
    "kUnimplemented": "XLA_FFI_Error_Code_UNIMPLEMENTED",
    "kInternal": "XLA_FFI_Error_Code_INTERNAL",
}
NUMBERS |= {f"k{name}": f"XLA_FFI_DataType_{name.upper()}" for name in ("Pred", "S32", "S64", "U8", "U32", "U64")}
NUMBERS |= {f"k{name}": f"XLA_FFI_DataType_{name}" for name in ("F16", "F32", "F64", "BF16", "F8E4M3FN")}


def checks() -> list[str]:
    lines = []
    for pair, fields in STRUCTS.items():
        ours, theirs = pair.split()
        for field in fields.split(", "):
            mine, its = field.split()
            lines.append(f"offsetof(flash::xla::{ours}, {mine}) == offsetof({theirs}, {its})")
            if ours not in ("Frame", "Metadata", "MetadataExtension"):  # those hold structs that grow
                lines.append(f"sizeof(flash::xla::{ours}{{}}.{mine}) == sizeof({theirs}{{}}.{its})")
    for pair in WHOLE:
        ours, theirs = pair.split()
        lines.append(f"sizeof(flash::xla::{ours}) == sizeof({theirs})")
    lines += [f"int(flash::xla::{ours}) == int({theirs})" for ours, theirs in NUMBERS.items()]
    lines.append("XLA_FFI_API_MAJOR == 0")
    return lines


def test_declarations_agree_with_the_headers(tmp_path):
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("c++ is not installed")
    source = tmp_path / "layout.cpp"
    asserts = [f'static_assert({check}, "");' for check in checks()]
    includes = ["#include <cstddef>", '#include "xla/ffi/api/c_api.h"', '#include "xla.h"']
    source.write_text("\n".join([*includes, *asserts]) + "\n")
    folders = ["-isystem", jax.ffi.include_dir(), "-I", str(SOURCES)]
    command = [compiler, "-std=c++17", "-fsyntax-only", *folders, str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_wrong_declaration_would_be_seen():
    assert len(checks()) > 70 and len(set(checks())) == len(checks())
