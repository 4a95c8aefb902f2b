// SPDX-License-Identifier: Apache-2.0
// The two functions of LZ4 that Verilator's wave writer calls, so that waves need no library.
//
// A greedy compressor with one hash table, after the "LZ4 Block Format Description": a sequence is a
// token, literals, a 16-bit distance and a match of 4 bytes or more; the last 5 bytes are literals,
// and the last match starts 12 bytes before the end at the latest.

#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

inline int LZ4_compressBound(int bytes) { return bytes + bytes / 255 + 16; }

namespace sparsemac_lz4 {

inline uint8_t* put_length(uint8_t* out, int length) {
    for (; length >= 255; length -= 255) *out++ = 255;
    *out++ = static_cast<uint8_t>(length);
    return out;
}

// Writes the literals between `from` and `to` and, unless `match` is 0, a match behind them.
inline uint8_t* put_sequence(uint8_t* out, const uint8_t* from, const uint8_t* to, int distance,
                             int match) {
    const int literals = static_cast<int>(to - from), rest = match ? match - 4 : 0;
    *out++ = static_cast<uint8_t>((literals < 15 ? literals : 15) << 4 | (rest < 15 ? rest : 15));
    if (literals >= 15) out = put_length(out, literals - 15);
    if (literals) std::memcpy(out, from, literals);
    out += literals;
    if (!match) return out;
    *out++ = static_cast<uint8_t>(distance);
    *out++ = static_cast<uint8_t>(distance >> 8);
    return rest >= 15 ? put_length(out, rest - 15) : out;
}

inline uint32_t load(const uint8_t* at) {
    uint32_t word;
    std::memcpy(&word, at, 4);
    return word;
}

}  // namespace sparsemac_lz4

inline int LZ4_compress_default(const char* source, char* destination, int bytes, int capacity) {
    using namespace sparsemac_lz4;
    if (capacity < LZ4_compressBound(bytes)) return 0;
    const uint8_t* const in = reinterpret_cast<const uint8_t*>(source);
    uint8_t* out = reinterpret_cast<uint8_t*>(destination);
    std::vector<int> seen(1 << 12, -1);
    int at = 0, literals = 0;
    while (at < bytes - 12) {
        const uint32_t word = load(in + at);
        int& slot = seen[word * 2654435761u >> 20];
        const int candidate = slot;
        slot = at;
        if (candidate < 0 || at - candidate > 65535 || load(in + candidate) != word) {
            ++at;
            continue;
        }
        int match = 4;
        while (at + match < bytes - 5 && in[candidate + match] == in[at + match]) ++match;
        out = put_sequence(out, in + literals, in + at, at - candidate, match);
        at += match;
        literals = at;
    }
    out = put_sequence(out, in + literals, in + bytes, 0, 0);
    return static_cast<int>(out - reinterpret_cast<uint8_t*>(destination));
}
