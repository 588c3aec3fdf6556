"""python -m flash: what this installation can do, where its files for C and CMake are, a demonstration, a benchmark."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import flash
from flash._lib import get_cmake_dir


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m flash", description="Exact attention: tools of the package.")
    parser.add_argument("--version", action="version", version=flash.__version__)
    parser.add_argument("--cmakedir", action="store_true", help="print the folder for CMake's flash_DIR")
    parser.add_argument("--includedir", action="store_true", help="print the folder of flash.h")
    commands = parser.add_subparsers(dest="command", metavar="command")
    commands.add_parser("info", help="what is installed and what it can use")
    commands.add_parser("demo", help="attention at work; 'demo --help' lists its options", add_help=False)
    commands.add_parser("bench", help="how fast it is beside others; 'bench --help' lists its options", add_help=False)
    given, rest = parser.parse_known_args(arguments)

    if given.command == "demo":
        from flash import demo

        demo.main(rest)
        return 0
    if given.command == "bench":
        from flash import bench

        return bench.main(rest)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if given.cmakedir:
        print(get_cmake_dir())
    if given.includedir:
        print(flash.get_include())
    if given.command == "info":
        flash.show_config()
    elif not (given.cmakedir or given.includedir):
        parser.print_help()
    return 0


if __name__ == "__main__":
    sys.exit(main())
