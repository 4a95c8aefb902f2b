# SPDX-License-Identifier: Apache-2.0
"""The fields of a stream, and what a matrix costs in one: gaps, fillers, the choice of a format."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .commands import COUNT_BITS, DELTA_BITS_MAX, OFFSET_BITS, StreamFormat
from .csr import Csr, weight_range

#: Limits of a row in a stream, and of the offsets of its entries.
MAX_COUNT = (1 << COUNT_BITS[-1]) - 2
MAX_OUT_OFFSET = (1 << OFFSET_BITS[-1]) - 1
MAX_OFFSETS = 1 << 16

#: Bits in front of a row's entries: end, count and out_offset at their largest; bias; multiplier
#: and shift.
HEADER_BITS, BIAS_BITS, SCALE_BITS = 1 + COUNT_BITS[-1] + OFFSET_BITS[-1], 32, 48

#: Bits of a mask, which holds quotients of Rice-coded gaps.
MASK_BITS = 16

#: Cycles from the last one of a mask to the next mask at work; zeros of it passed over in a cycle.
MASK_CYCLES, MASK_ZEROS = 4, 2

__all__ = [
    "BIAS_BITS",
    "HEADER_BITS",
    "MASK_BITS",
    "MASK_CYCLES",
    "MASK_ZEROS",
    "MAX_COUNT",
    "MAX_OFFSETS",
    "MAX_OUT_OFFSET",
    "SCALE_BITS",
    "FormatCost",
    "choose_format",
    "code_entries",
    "code_rice_entries",
    "count_gaps",
    "entropy_bound_bits",
    "entry_counts",
    "fillers_before",
    "format_costs",
    "gaps_between",
    "lost_cycles",
    "merge_duplicates",
]


def gaps_between(csr: Csr) -> NDArray[np.int64]:
    """Returns (nnz,) columns between an entry and the one before it in its row, both excluded."""
    gaps = csr.indices.copy()
    gaps[1:] -= csr.indices[:-1] + 1
    starts = csr.indptr[:-1][csr.row_lengths > 0]
    gaps[starts] = csr.indices[starts]
    return gaps


def fillers_before(gaps: NDArray[np.int64], delta_bits: int) -> NDArray[np.int64]:
    """Returns (nnz,) fillers in front of each entry."""
    return (gaps >> delta_bits) + ((1 << delta_bits) - 1) >> delta_bits


def count_gaps(gaps: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the gaps that occur, ascending, and how often each does."""
    if gaps.max(initial=0) > 1 << 20:  # a table would be larger than what it counts
        return np.unique(gaps, return_counts=True)
    repeats = np.bincount(gaps)
    found = np.flatnonzero(repeats)
    return found, repeats[found]


def merge_duplicates(csr: Csr, weight_bits: int) -> tuple[Csr, bool]:
    """Drops explicit zeros, and sums duplicates up wherever their sum is a weight.

    Returns
    -------
    The matrix; whether duplicates remain, which only absolute offsets can code.
    """
    csr = csr.without_zeros()
    same = csr.indices[1:] == csr.indices[:-1]
    starts = csr.indptr[1:-1]
    same[starts[(starts > 0) & (starts < csr.nnz)] - 1] = False
    if not same.any():
        return csr, False
    first = np.concatenate([[True], ~same])
    starts = np.flatnonzero(first)
    sums = np.add.reduceat(csr.data.astype(np.int64), starts)
    low, high = weight_range(weight_bits)
    fits = (sums >= low) & (sums <= high)
    group = np.cumsum(first) - 1
    keep = first | ~fits[group]
    data = np.where(fits[group], sums[group], csr.data)[keep].astype(np.int8)
    kept = np.concatenate([[0], np.cumsum(keep)])
    merged = Csr(csr.shape, kept[csr.indptr], csr.indices[keep], data)
    return merged.without_zeros(), not fits.all()


def code_entries(csr: Csr, fmt: StreamFormat) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Returns coded entries of all rows in order, fillers among them; and how many each row has.

    Columns must be below 2**16, as a stream's are.
    """
    # Half as wide as what a matrix holds, and twice as fast.
    gaps = (csr.indices if fmt.absolute else gaps_between(csr)).astype(np.uint32)
    coded = csr.data.view(np.uint8) & np.uint8((1 << fmt.weight_bits) - 1) | (
        gaps << np.uint32(fmt.weight_bits))
    if fmt.absolute:
        return coded, csr.row_lengths
    d, least = fmt.delta_bits, (1 << fmt.delta_bits) - 1
    far = np.flatnonzero(gaps > least)
    if not len(far):
        return coded, csr.row_lengths
    jumps = gaps[far].astype(np.int64) >> d
    fillers = fillers_before(gaps[far].astype(np.int64), d)
    coded[far] &= (1 << fmt.entry_bits) - 1
    # All fillers but the last of a gap jump as far as they can; the last takes the rest.
    behind = np.cumsum(fillers)
    filling = np.full(int(behind[-1]), least << fmt.weight_bits, np.uint32)
    filling[behind - 1] = jumps - (fillers - 1) * (1 << d) - 1 << fmt.weight_bits
    is_filler = np.zeros(len(coded) + len(filling), np.bool_)
    first = far + behind - fillers
    is_filler[np.arange(len(filling)) + np.repeat(first - (behind - fillers), fillers)] = True
    mixed = np.empty(len(is_filler), np.uint32)
    mixed[is_filler] = filling
    mixed[~is_filler] = coded
    totals = csr.indptr + np.concatenate([[0], behind])[np.searchsorted(far, csr.indptr)]
    return mixed, np.diff(totals)


def code_rice_entries(csr: Csr, fmt: StreamFormat) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Returns coded entries of all rows in order, and the quotient of each gap.

    Columns must be below 2**16, as a stream's are.
    """
    gaps = gaps_between(csr).astype(np.uint32)
    fields = gaps & np.uint32((1 << fmt.delta_bits) - 1)
    coded = csr.data.view(np.uint8) & np.uint8((1 << fmt.weight_bits) - 1) | (
        fields << np.uint32(fmt.weight_bits))
    return coded, (gaps >> np.uint32(fmt.delta_bits)).astype(np.int64)


@dataclass(frozen=True, slots=True)
class FormatCost:
    """What the entries of a matrix cost in a format.

    Attributes
    ----------
    fmt : StreamFormat
    bits : int      Of entries, fillers and masks, without the end of the last mask.
    lost : float    Cycles in which an engine unpacks no entry, for fillers and masks.
    """

    fmt: StreamFormat
    bits: int
    lost: float


def format_costs(csr: Csr, weight_bits: int, duplicates: bool = False) -> list[FormatCost]:
    """Returns what each format costs that can code the matrix, the simplest first.

    Arguments as `merge_duplicates` returns them.
    """
    nnz = csr.nnz
    absolute = StreamFormat(delta_bits=0, absolute=True, weight_bits=weight_bits)
    costs = [FormatCost(absolute, nnz * absolute.entry_bits, 0.0)]
    if duplicates:
        return costs
    gaps, repeats = count_gaps(gaps_between(csr))
    sizes = np.arange(DELTA_BITS_MAX + 1)
    quotients = gaps >> sizes[:, None]
    fillers = quotients + (1 << sizes[:, None]) - 1 >> sizes[:, None]
    zeros, passed = quotients @ repeats, quotients // MASK_ZEROS @ repeats
    for d, count in enumerate((fillers @ repeats).tolist()):
        fmt = StreamFormat(delta_bits=d, weight_bits=weight_bits)
        costs.append(FormatCost(fmt, (nnz + count) * fmt.entry_bits, count))
    for d, (zero_bits, cycles) in enumerate(zip(zeros.tolist(), passed.tolist(), strict=True)):
        fmt = StreamFormat(delta_bits=d, rice=True, weight_bits=weight_bits)
        bits = nnz + zero_bits
        costs.append(FormatCost(fmt, nnz * fmt.entry_bits + bits,
                                cycles + bits / MASK_BITS * MASK_CYCLES))
    return costs


def lost_cycles(gaps: NDArray[np.int64], fmt: StreamFormat) -> NDArray[np.int64 | np.float64]:
    """Cycles in which an engine unpacks no entry, before each that follows such a gap."""
    if fmt.absolute:
        return np.zeros_like(gaps)
    if not fmt.rice:
        return fillers_before(gaps, fmt.delta_bits)
    quotients = gaps >> fmt.delta_bits
    return quotients // MASK_ZEROS + (quotients + 1) * (MASK_CYCLES / MASK_BITS)


def entry_counts(csr: Csr, weight_bits: int) -> NDArray[np.int64]:
    """Returns (rows,) entries that each row has in a stream, without fillers."""
    return merge_duplicates(csr, weight_bits)[0].row_lengths


def choose_format(csr: Csr, weight_bits: int) -> StreamFormat:
    """Returns the format of fewest bits for this matrix; all are tried on its gaps."""
    merged, duplicates = merge_duplicates(csr, weight_bits)
    costs = format_costs(merged, weight_bits, duplicates)
    return min(costs, key=lambda cost: cost.bits).fmt


def entropy_bound_bits(csr: Csr) -> float:
    """Returns the fewest bits per nonzero that any code of positions and values could reach.

    Positions: log2 of the number of ways to choose each row's columns, the row lengths known.
    Values: their zeroth-order empirical entropy (Shannon, 1948). 0 of an empty matrix.
    """
    csr = csr.without_zeros()
    if not csr.nnz:
        return 0.0
    lgamma = np.vectorize(math.lgamma, otypes=[float])
    lengths, repeats = np.unique(np.minimum(csr.row_lengths, csr.shape[1]), return_counts=True)
    ways = lgamma(csr.shape[1] + 1) - lgamma(lengths + 1) - lgamma(csr.shape[1] - lengths + 1)
    _, counts = np.unique(csr.data, return_counts=True)
    share = counts / csr.nnz
    return float((ways * repeats).sum() / math.log(2) / csr.nnz - (share * np.log2(share)).sum())
