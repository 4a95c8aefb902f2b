# SPDX-License-Identifier: Apache-2.0
"""A bit stream written one field at a time: the weight stream's twin, slow and obvious."""

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np


@dataclass
class Row:
    """One row as a stream codes it."""

    out_offset: int
    entries: list[tuple[int, int]]  # (offset, weight), offsets ascending, weights not zero
    bias: int = 0
    multiplier: int = 0
    shift: int = 0


@dataclass
class BitWriter:
    """Appends fields, least significant bit first."""

    bits: list[int] = field(default_factory=list)

    def put(self, value: int, width: int) -> None:
        self.bits += [value >> i & 1 for i in range(width)]

    def beats(self, bus_width: int) -> list[int]:
        padded = self.bits + [0] * (-len(self.bits) % bus_width)
        return [
            sum(bit << i for i, bit in enumerate(padded[k : k + bus_width]))
            for k in range(0, len(padded), bus_width)
        ]


class MaskWriter:
    """Quotients in unary, in masks that are put in front of the entries that need them."""

    def __init__(self, quotients):
        ones = [bit for q in quotients for bit in [0] * q + [1]]
        ones += [0] * (-len(ones) % 16)
        self.masks = [ones[k : k + 16] for k in range(0, len(ones), 16)]
        self.left = 0

    def before_entry(self, out):
        while not self.left:
            mask = self.masks.pop(0)
            out.bits += mask
            self.left = sum(mask)
        self.left -= 1


def write_rows(rows, *, delta_bits=4, absolute=False, rice=False, weight_bits=8, count_bits=15,
               offset_bits=16, has_bias=True, quantized=True):
    """Codes rows as `sparsemac.stream` defines; returns (writer, number of fillers)."""
    out = BitWriter()
    fillers = 0
    gaps = [[b - a - 1 for a, b in pairwise([-1, *(o for o, _ in row.entries)])] for row in rows]
    masks = MaskWriter([gap >> delta_bits for of_row in gaps for gap in of_row]) if rice else None
    if not rows:
        out.put(-1, 1 + count_bits)
    for i, row in enumerate(rows):
        out.put(i == len(rows) - 1, 1)
        out.put(len(row.entries), count_bits)
        out.put(row.out_offset, offset_bits)
        if has_bias:
            out.put(row.bias & 0xFFFFFFFF, 32)
        if quantized:
            out.put(row.multiplier, 36)
            out.put(row.shift, 6)
            out.put(0, 6)
        o = 0
        for (offset, weight), row_gap in zip(row.entries, gaps[i], strict=True):
            if masks:
                masks.before_entry(out)
                out.put(weight, weight_bits)
                out.put(row_gap, delta_bits)
                continue
            if absolute:
                out.put(weight, weight_bits)
                out.put(offset, 16)
                continue
            gap = offset - o
            while gap >= 1 << delta_bits:
                step = min(gap >> delta_bits, 1 << delta_bits)
                out.put(0, weight_bits)
                out.put(step - 1, delta_bits)
                gap -= step << delta_bits
                fillers += 1
            out.put(weight, weight_bits)
            out.put(gap, delta_bits)
            o = offset + 1
    return out, fillers


def random_rows(rng: np.random.Generator, count: int, columns: int, *, density=0.3, weight_bits=8,
                quantized=True):
    """Rows with random entries, some of them empty."""
    high = 1 << (weight_bits - 1)
    rows = []
    for r in range(count):
        p = 0 if rng.random() < 0.1 else density
        offsets = np.flatnonzero(rng.random(columns) < p)
        weights = rng.integers(1, high, len(offsets)) * rng.choice([-1, 1], len(offsets))
        rows.append(Row(
            out_offset=r,
            entries=[(int(o), int(w)) for o, w in zip(offsets, weights, strict=True)],
            bias=int(rng.integers(-(2**20), 2**20)),
            multiplier=int(rng.integers(1 << 30, 1 << 31)) if quantized else 0,
            shift=int(rng.integers(0, 12)) if quantized else 0,
        ))
    return rows
