// SPDX-License-Identifier: Apache-2.0
// A board top driven at its pins: bytes in, bytes out, bit by bit on the serial line.
#include <cstdint>
#include <deque>
#include <memory>

#include "Vboard.h"
#include "verilated.h"

double sc_time_stamp() { return 0; }

namespace {

struct Board {
    std::unique_ptr<VerilatedContext> context = std::make_unique<VerilatedContext>();
    std::unique_ptr<Vboard> top;
    uint32_t divisor;
    // Towards the board: a byte's 10 bits, least significant first, and how long this bit still is.
    std::deque<uint8_t> input;
    uint32_t bits = 0, bits_left = 0, bit_cycles = 0;
    // From the board: sampled in the middle of each bit.
    std::deque<uint8_t> output;
    uint32_t sample_in = 0, sampled = 0, shift = 0;

    explicit Board(uint32_t cycles_per_bit) : divisor(cycles_per_bit) {
        top = std::make_unique<Vboard>(context.get());
        reset(8);
    }

    void reset(uint32_t cycles) {
        top->rx = 1;
        top->rst = 1;
        for (uint32_t i = 0; i < cycles; ++i) clock();
        top->rst = 0;
        input.clear();
        output.clear();
        bits_left = bit_cycles = sampled = sample_in = 0;
    }

    void clock() {
        top->clk = 0;
        top->eval();
        top->clk = 1;
        top->eval();
    }

    void send() {
        if (bit_cycles > 0) {
            --bit_cycles;
            return;
        }
        if (bits_left == 0 && !input.empty()) {
            bits = (uint32_t(input.front()) << 1) | 0x200;
            bits_left = 10;
            input.pop_front();
        }
        if (bits_left > 0) {
            top->rx = bits & 1;
            bits >>= 1;
            --bits_left;
            bit_cycles = divisor - 1;
        } else {
            top->rx = 1;
        }
    }

    void receive() {
        if (sampled == 0) {
            if (!top->tx) {
                sampled = 1;
                sample_in = divisor + divisor / 2;
                shift = 0;
            }
            return;
        }
        if (--sample_in > 0) return;
        sample_in = divisor;
        if (sampled <= 8) {
            shift |= uint32_t(top->tx) << (sampled - 1);
            ++sampled;
        } else {
            output.push_back(uint8_t(shift));
            sampled = 0;
        }
    }
};

}  // namespace

extern "C" {

#define EXPORT __attribute__((visibility("default")))

EXPORT Board* board_create(uint32_t divisor) { return new Board(divisor); }
EXPORT void board_destroy(Board* board) { delete board; }
EXPORT void board_reset(Board* board) { board->reset(8); }
EXPORT void board_send(Board* board, const uint8_t* data, uint32_t count) {
    board->input.insert(board->input.end(), data, data + count);
}
EXPORT uint32_t board_receive(Board* board, uint8_t* data, uint32_t room) {
    uint32_t count = 0;
    while (count < room && !board->output.empty()) {
        data[count++] = board->output.front();
        board->output.pop_front();
    }
    return count;
}
EXPORT void board_run(Board* board, uint32_t cycles) {
    for (uint32_t i = 0; i < cycles; ++i) {
        board->send();
        board->clock();
        board->receive();
    }
}
}
