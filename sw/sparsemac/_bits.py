# SPDX-License-Identifier: Apache-2.0
"""Writes fields of a bit stream at any bit, all of a kind at once."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["put", "put_entries"]


def put(words: NDArray[np.uint64], starts: NDArray[np.int64], values: NDArray[np.int64],
         width: int) -> None:
    """Writes values of at most 64 bits at their first bits, where zeros stand."""
    bits = values.astype(np.uint64) & np.uint64((1 << width) - 1)
    at, shift = starts >> 6, (starts & 63).astype(np.uint64)
    np.bitwise_or.at(words, at, bits << shift)
    np.bitwise_or.at(words, at + 1, _shifted_out(bits, shift))


def _shifted_out(bits: NDArray[np.uint64], shift: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """What leaves words at the top if they are shifted left by 0 to 63 bits."""
    return bits >> (np.uint64(63) - shift) >> np.uint64(1)


def _joined(coded: NDArray[np.uint32], width: int) -> NDArray[np.uint64]:
    """Entries of ``width`` bits, at most 32, behind one another in words of 64 bits."""
    words = -(-len(coded) * width // 64)
    joined = np.zeros(len(coded) + -len(coded) % 16, np.uint64)
    joined[: len(coded)] = coded
    while 2 * width <= 64:
        joined = joined[::2] | joined[1::2] << np.uint64(width)
        joined = np.concatenate([joined, joined[:0], np.zeros(len(joined) % 2, np.uint64)])
        width *= 2
    if width == 64:
        return joined[:words]
    # Parts of 33 to 63 bits: a word begins in one and ends in the next, or in the one behind that.
    joined = np.concatenate([joined, np.zeros(3, np.uint64)])
    first, skipped = np.divmod(np.arange(words) * 64, width)
    inside = (width - skipped).astype(np.uint64)  # 1 to 63 bits of the first part
    found = joined[first] >> skipped.astype(np.uint64) | joined[first + 1] << inside
    third = np.flatnonzero(inside + np.uint64(width) < 64)
    found[third] |= joined[first[third] + 2] << inside[third] + np.uint64(width)
    return found


def put_entries(words: NDArray[np.uint64], coded: NDArray[np.uint32], width: int,
                 sizes: NDArray[np.int64], starts: NDArray[np.int64]) -> None:
    """Writes runs of ``sizes`` entries behind one another, each from its first bit, on zeros."""
    busy = np.flatnonzero(sizes)
    if not len(busy):
        return
    source = np.concatenate([np.zeros(1, np.uint64), _joined(coded, width),
                             np.zeros(2, np.uint64)])
    origins, starts = ((np.cumsum(sizes) - sizes) * width)[busy], starts[busy]
    last_bits = starts + sizes[busy] * width - 1
    counts = (last_bits >> 6) - (starts >> 6) + 1
    ends = np.cumsum(counts)
    firsts, lasts = ends - counts, ends - 1
    # A word of a row is one of the joined entries, or what two of them share.
    index = np.arange(ends[-1])
    target = index + np.repeat((starts >> 6) - firsts, counts)
    offset = origins - (starts & 63) + 64  # of the first word, behind the zero in front
    shift = np.repeat((offset & 63).astype(np.uint64), counts)
    at = index + np.repeat((offset >> 6) - firsts, counts)
    found = source[at] >> shift | source[at + 1] << (np.uint64(63) - shift) << np.uint64(1)
    ones = np.uint64((1 << 64) - 1)
    found[firsts] &= ones << (starts & 63).astype(np.uint64)
    found[lasts] &= ones >> (63 - (last_bits & 63)).astype(np.uint64)
    # The first word of a row may be the last one of another; all others are its own.
    own = np.ones(len(index), np.bool_)
    own[firsts] = False
    words[target[own]] = found[own]
    np.bitwise_or.at(words, target[firsts], found[firsts])
