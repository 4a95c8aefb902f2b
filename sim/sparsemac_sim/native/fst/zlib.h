// SPDX-License-Identifier: Apache-2.0
// The two functions of zlib that Verilator's wave writer calls, so that waves need no library.
//
// Blocks are stored, not compressed (RFC 1950, RFC 1951 3.2.4). The writer then prefers its
// uncompressed form, which readers accept as well.

#pragma once

#include <cstdint>
#include <cstring>

using Bytef = unsigned char;
using uLong = unsigned long;
using uLongf = unsigned long;

constexpr int Z_OK = 0;
constexpr int Z_BUF_ERROR = -5;

inline uLong compressBound(uLong bytes) { return bytes + 5 * (bytes / 65535 + 1) + 6; }

inline int compress2(Bytef* out, uLongf* capacity, const Bytef* in, uLong bytes, int level) {
    (void)level;
    if (*capacity < compressBound(bytes)) return Z_BUF_ERROR;
    Bytef* at = out;
    *at++ = 0x78;
    *at++ = 0x01;
    uint32_t a = 1, b = 0;
    uLong done = 0;
    do {
        const uLong part = bytes - done < 65535 ? bytes - done : 65535;
        *at++ = done + part == bytes;
        *at++ = static_cast<Bytef>(part);
        *at++ = static_cast<Bytef>(part >> 8);
        *at++ = static_cast<Bytef>(~part);
        *at++ = static_cast<Bytef>(~part >> 8);
        for (uLong i = 0; i < part; ++i) {
            a = (a + in[done + i]) % 65521;
            b = (b + a) % 65521;
            *at++ = in[done + i];
        }
        done += part;
    } while (done < bytes);
    for (int shift = 8; shift >= 0; shift -= 8) *at++ = static_cast<Bytef>(b >> shift);
    for (int shift = 8; shift >= 0; shift -= 8) *at++ = static_cast<Bytef>(a >> shift);
    *capacity = at - out;
    return Z_OK;
}
