# SPDX-License-Identifier: Apache-2.0
"""The packed weight stream: what CSR becomes in memory. Format version 1.

A matrix is dealt out to the engines row by row; each engine has one bit stream. The streams are cut
into beats of the bus, padded with zero bits to the same number of beats, and interleaved: beat
``i`` of the block belongs to engine ``i % engines``. So all weights of an EXEC are one linear read.

Bits are numbered from the least significant bit of the first byte. A stream is a sequence of rows;
nothing in it is aligned.

Row header::

    count       15 bits   entries of the row that are not fillers (0: the row is empty)
    end          1 bit    this is the last row of the stream
    out_offset  16 bits   output word of the row, relative to the EXEC's output address, 0 to 65534
    bias        32 bits   int32; only if the EXEC says that the stream has biases
    multiplier  36 bits   unsigned, below 2**35; only if the output mode is not raw
    shift        6 bits   0 to 31, right shift; only if the output mode is not raw
    zero         6 bits   reserved; only if the output mode is not raw

A stream without rows is the single word 0xFFFF_8000 (count 0, end, out_offset 65535).

Entries follow until ``count`` of them had a weight other than zero::

    weight       4 or 8 bits, two's complement
    field        delta_bits bits (or 16, absolute)

With o = 0 at the start of the row:

- an entry whose weight is not zero multiplies activation offset ``o + field``; then o is that plus 1;
- an entry whose weight is zero is a *filler*: it multiplies nothing, and ``o`` grows by
  ``(field + 1) << delta_bits``. Two entries thus span ``2**(2 * delta_bits)`` columns;
- with absolute offsets, ``field`` is the offset itself: any order, duplicates allowed, no fillers.

With ``delta_bits`` 0 an entry is a bare weight and a zero weight steps over one column: a dense row.
Weights that are explicitly zero are dropped by the packer; an empty row yields its bias.
"""
