# SPDX-License-Identifier: Apache-2.0
"""Checks on a file of waves: that it can be written, and that it was."""

from pathlib import Path

__all__ = ["can_write", "is_complete"]

_HEADER_BLOCK = 0


def can_write(path: Path) -> str | None:
    """Returns why a file of waves cannot be written, or None."""
    try:
        with path.open("wb"):
            return None
    except OSError as error:
        return str(error)


def is_complete(path: Path) -> bool:
    """Whether an FST file is whole: its blocks, header first, end where the file ends.

    The writer does not say when the disc was full; what is missing shows in the lengths. A block is
    a byte of type and a 64-bit big-endian length that counts itself.
    """
    try:
        end = path.stat().st_size
        with path.open("rb") as file:
            at, blocks = 0, 0
            while at < end:
                file.seek(at)
                head = file.read(9)
                if len(head) < 9 or (blocks == 0 and head[0] != _HEADER_BLOCK):
                    return False
                at += 1 + int.from_bytes(head[1:], "big")
                blocks += 1
    except OSError:
        return False
    return at == end and blocks > 1
