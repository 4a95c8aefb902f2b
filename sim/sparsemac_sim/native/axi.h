// SPDX-License-Identifier: Apache-2.0
// What crosses the interface of the harness, and what waits inside its memory.
//
// `Options`, `Injection` and `Statistics` have twins in sparsemac_sim.native: same fields, same order.

#pragma once

#include <cstdint>
#include <cstring>

namespace sparsemac {

enum Channel : int32_t { AR = 0, R = 1, AW = 2, W = 3, B = 4, ALL = 5 };

enum Kind : int32_t {
    RESPONSE = 1,        // `beat` of read burst `burst`, or write burst `burst`, answers `value`
    LAST_EARLY = 2,      // the read burst ends with RLAST at `beat`
    LAST_LATE = 3,       // `value` beats too many, RLAST on the last of them
    LAST_MISSING = 4,    // no RLAST
    WRONG_ID = 5,        // the identifier of `beat` is exclusive-ored with `value`
    STRAY = 6,           // a beat with identifier `value` that nobody asked for
    EARLY_RESPONSE = 7,  // a write is acknowledged when its address is taken
    DEAD = 8,            // the channel stops for ever at `beat` of `burst`
    BUS_RESET = 9,       // what is outstanding is forgotten when address `burst` is taken
};

struct Injection {
    int32_t kind;
    int32_t channel;
    uint64_t burst;
    uint32_t beat;
    uint32_t value;
};

struct Options {
    uint64_t memory_bytes;  // a multiple of 4096
    uint64_t memory_base;
    uint64_t latency;       // cycles
    double bandwidth;       // bytes per cycle; 0: one beat each way per cycle
    double stall;           // probability that a channel is not ready, per cycle
    uint64_t seed;
};

struct Statistics {
    uint64_t cycles, read_bursts, read_beats, write_bursts, write_beats, write_bytes;
    uint64_t injections_fired, violations;
};

struct Address {
    uint32_t address;
    uint32_t id, len, size, burst;
    uint64_t ready;   // cycle of the first read beat
    uint64_t number;  // burst index since creation
    bool operator==(const Address& o) const {
        return address == o.address && id == o.id && len == o.len && size == o.size
               && burst == o.burst;
    }
    uint32_t beat_address(uint32_t beat) const {
        return beat == 0 ? address : (address >> size << size) + (beat << size);
    }
};

template <uint32_t BUS_BYTES>
struct WriteBeat {
    uint8_t data[BUS_BYTES];
    uint64_t strobe;
    bool last;
    bool operator==(const WriteBeat& o) const {
        return strobe == o.strobe && last == o.last && !std::memcmp(data, o.data, BUS_BYTES);
    }
};

struct Answer {
    uint32_t id, response;
    uint64_t ready;   // first cycle in which it may be offered
    uint64_t number;  // burst index since creation
};

}  // namespace sparsemac
