// SPDX-License-Identifier: Apache-2.0
// An AXI4 memory as a cycle-by-cycle model, with faults on demand.
//
// Answers INCR bursts in the order of their addresses, one beat per direction and cycle at most, up
// to `OUTSTANDING` bursts each way. The first beat of a read is offered `latency` cycles after its
// address was taken, a write is acknowledged `latency` cycles after its last beat. `bandwidth` is
// one budget for both directions, like the pins of a DRAM: every beat costs the bytes of the bus,
// whatever its strobes. The memory checks the master as well: a VALID withdrawn, a payload changed
// while stalled, a burst across 4 KiB or a misplaced WLAST is counted, and the first one is kept.

#pragma once

#include <cstdio>
#include <deque>
#include <string>
#include <vector>

#include "axi.h"

namespace sparsemac {

template <class Top, uint32_t BUS_BYTES>
class Memory {
public:
    static constexpr size_t OUTSTANDING = 32;  // bursts each way
    static constexpr size_t WRITE_AHEAD = 16;  // write beats taken before their address
    static constexpr uint64_t ANSWERED = ~0ull;  // mark of a write acknowledged too early

    Statistics stats{};
    std::string first_violation;

    Memory(const Options& options, uint8_t* bytes)
        : m_options(options), m_bytes(bytes), m_random(options.seed * 2 + 1),
          m_stall(static_cast<uint64_t>(options.stall * 4294967296.0)) {
        if (m_options.latency < 1) m_options.latency = 1;
        m_budget_cap = options.bandwidth > 2.0 * BUS_BYTES ? options.bandwidth : 2.0 * BUS_BYTES;
    }

    // Sets the inputs of the core for the cycle that begins.
    void drive(Top& t) {
        const uint64_t now = stats.cycles;
        if (m_options.bandwidth > 0) {
            m_budget += m_options.bandwidth;
            if (m_budget > m_budget_cap) m_budget = m_budget_cap;
        }
        t.m_arready = m_reads.size() < OUTSTANDING && !dead(AR, stats.read_bursts, 0)
                           && !stalled();
        t.m_awready = m_writes.size() + m_answers.size() < OUTSTANDING
                           && !dead(AW, stats.write_bursts, 0) && !stalled();
        // Whoever is served first alternates, so that neither direction starves the other.
        if (now & 1) drive_read(t, now);
        t.m_wready = write_ready();
        if (!(now & 1)) drive_read(t, now);
        drive_answer(t, now);
    }

    // Looks at what both sides agreed on, once the outputs have settled.
    void sample(Top& t) {
        check_held(t);
        if (t.m_arvalid && t.m_arready) take_read_address(t);
        if (t.m_rvalid && t.m_rready) finish_read_beat();
        if (t.m_awvalid && t.m_awready) take_write_address(t);
        if (t.m_wvalid && t.m_wready) {
            m_beats.push_back(write_beat(t));
            ++stats.write_beats;
            stats.write_bytes += __builtin_popcountll(m_beats.back().strobe);
            m_budget -= BUS_BYTES;
        }
        while (!m_writes.empty() && !m_beats.empty()) store_beat();
        if (t.m_bvalid && t.m_bready) m_answer_valid = false;
        ++stats.cycles;
    }

    // Forgets everything outstanding, as a reset of the interconnect does.
    void reset() {
        m_reads.clear();
        m_writes.clear();
        m_beats.clear();
        m_answers.clear();
        m_read_valid = m_answer_valid = false;
        m_read_beat = m_write_beat = 0;
    }

    void forget_held() { m_ar_held = m_aw_held = m_w_held = false; }

    void inject(Injection injection) {
        // Bursts are counted from the moment of arming.
        injection.burst += is_read(injection.channel) ? stats.read_bursts : stats.write_bursts;
        m_injections.push_back(injection);
    }

    void clear_injections() { m_injections.clear(); }

private:
    Options m_options;
    uint8_t* m_bytes;
    uint64_t m_random;
    uint64_t m_stall;
    double m_budget = 0, m_budget_cap;
    std::vector<Injection> m_injections;

    std::deque<Address> m_reads, m_writes;
    std::deque<WriteBeat<BUS_BYTES>> m_beats;
    std::deque<Answer> m_answers;
    uint32_t m_read_beat = 0, m_write_beat = 0;
    uint32_t m_write_response = 0;
    bool m_read_valid = false, m_read_stray = false, m_answer_valid = false;

    Address m_ar{}, m_aw{};
    WriteBeat<BUS_BYTES> m_w{};
    bool m_ar_held = false, m_aw_held = false, m_w_held = false;

    static bool is_read(int32_t channel) { return channel == AR || channel == R; }

    bool stalled() {  // xorshift64*
        if (!m_stall) return false;
        m_random ^= m_random >> 12;
        m_random ^= m_random << 25;
        m_random ^= m_random >> 27;
        return (m_random * 0x2545F4914F6CDD1Dull) >> 32 < m_stall;
    }

    bool dead(Channel channel, uint64_t burst, uint32_t beat) const {
        for (const Injection& i : m_injections) {
            if (i.kind != DEAD || (i.channel != channel && i.channel != ALL)) continue;
            if (burst > i.burst || (burst == i.burst && beat >= i.beat)) return true;
        }
        return false;
    }

    // Removes and returns an injection of this kind for this burst and beat. A beat of -1 fits all.
    bool fire(int32_t kind, Channel channel, uint64_t burst, int64_t beat, Injection* found) {
        for (size_t i = 0; i < m_injections.size(); ++i) {
            const Injection& j = m_injections[i];
            if (j.kind != kind || j.channel != channel || j.burst != burst) continue;
            if (beat >= 0 && j.beat != beat) continue;
            *found = j;
            m_injections.erase(m_injections.begin() + i);
            ++stats.injections_fired;
            return true;
        }
        return false;
    }

    bool armed() const { return !m_injections.empty(); }

    void violation(const char* what, uint32_t address) {
        if (stats.violations++) return;
        char text[160];
        std::snprintf(text, sizeof text, "%s at address 0x%08x in cycle %llu", what, address,
                      static_cast<unsigned long long>(stats.cycles));
        first_violation = text;
    }

    bool inside(uint32_t address) const {
        const uint64_t offset = (address & ~(BUS_BYTES - 1)) - m_options.memory_base;
        return offset < m_options.memory_bytes;
    }

    uint8_t* at(uint32_t address) {
        return m_bytes + ((address & ~(BUS_BYTES - 1)) - m_options.memory_base);
    }

    // -- reads ---------------------------------------------------------------------------------

    Address read_address(const Top& t) const {
        return {t.m_araddr, t.m_arid, t.m_arlen, t.m_arsize,
                t.m_arburst, stats.cycles + m_options.latency, stats.read_bursts};
    }

    void take_read_address(Top& t) {
        Address a = read_address(t);
        check_address(a);
        m_reads.push_back(a);
        ++stats.read_bursts;
        Injection i;
        if (armed() && fire(BUS_RESET, AR, a.number, -1, &i)) reset();
    }

    void drive_read(Top& t, uint64_t now) {
        if (!m_read_valid) m_read_valid = next_read_beat(t, now);
        t.m_rvalid = m_read_valid;
    }

    bool next_read_beat(Top& t, uint64_t now) {
        if (m_reads.empty()) return armed() && stray_read(t);
        const Address& a = m_reads.front();
        if (a.ready > now) return false;
        if (m_options.bandwidth > 0 && m_budget < BUS_BYTES) return false;
        if (armed() && dead(R, a.number, m_read_beat)) return false;
        if (stalled()) return false;
        m_budget -= BUS_BYTES;
        const uint32_t address = a.beat_address(m_read_beat);
        const bool good = inside(address);
        if (good) std::memcpy(&t.m_rdata, at(address), BUS_BYTES);
        else std::memset(&t.m_rdata, 0, BUS_BYTES);
        t.m_rid = a.id;
        t.m_rresp = good ? 0 : 3;
        t.m_rlast = m_read_beat == a.len;
        if (armed()) spoil_read(t, m_reads.front());
        return true;
    }

    void spoil_read(Top& t, Address& a) {
        Injection i;
        if (fire(RESPONSE, R, a.number, m_read_beat, &i)) t.m_rresp = i.value;
        if (fire(WRONG_ID, R, a.number, m_read_beat, &i)) t.m_rid = a.id ^ i.value;
        if (fire(LAST_EARLY, R, a.number, m_read_beat, &i)) {
            t.m_rlast = 1;
            a.len = m_read_beat;
        }
        if (m_read_beat != a.len) return;
        if (fire(LAST_MISSING, R, a.number, -1, &i)) t.m_rlast = 0;
        if (fire(LAST_LATE, R, a.number, -1, &i)) {
            t.m_rlast = 0;
            a.len += i.value;
        }
    }

    bool stray_read(Top& t) {
        Injection i;
        if (!fire(STRAY, R, stats.read_bursts, -1, &i)) return false;
        t.m_rid = i.value;
        t.m_rresp = 0;
        t.m_rlast = 1;
        return m_read_stray = true;
    }

    void finish_read_beat() {
        m_read_valid = false;
        if (m_read_stray) {
            m_read_stray = false;
            return;
        }
        ++stats.read_beats;
        if (m_reads.empty()) return;  // the bus was reset while the beat was offered
        if (m_read_beat++ == m_reads.front().len) {
            m_reads.pop_front();
            m_read_beat = 0;
        }
    }

    // -- writes --------------------------------------------------------------------------------

    Address write_address(const Top& t) const {
        return {t.m_awaddr, t.m_awid, t.m_awlen, t.m_awsize,
                t.m_awburst, 0, stats.write_bursts};
    }

    void take_write_address(Top& t) {
        Address a = write_address(t);
        check_address(a);
        m_writes.push_back(a);
        ++stats.write_bursts;
        Injection i;
        if (!armed()) return;
        if (fire(EARLY_RESPONSE, B, a.number, -1, &i)) {
            m_answers.push_back({a.id, 0, stats.cycles + 1, a.number});
            m_writes.back().ready = ANSWERED;
        }
        if (fire(BUS_RESET, AW, a.number, -1, &i)) reset();
    }

    bool write_ready() {
        if (m_options.bandwidth > 0 && m_budget < BUS_BYTES) return false;
        if (m_writes.empty() && m_beats.size() >= WRITE_AHEAD) return false;
        if (armed()) {
            const bool known = !m_writes.empty();
            const uint64_t burst = known ? m_writes.front().number : stats.write_bursts;
            if (dead(W, burst, known ? m_write_beat : m_beats.size())) return false;
        }
        return !stalled();
    }

    WriteBeat<BUS_BYTES> write_beat(const Top& t) const {
        WriteBeat<BUS_BYTES> beat;
        std::memcpy(beat.data, &t.m_wdata, BUS_BYTES);
        beat.strobe = t.m_wstrb;
        beat.last = t.m_wlast;
        return beat;
    }

    void store_beat() {
        const Address& a = m_writes.front();
        const WriteBeat<BUS_BYTES>& beat = m_beats.front();
        const uint32_t address = a.beat_address(m_write_beat);
        if (inside(address)) store_bytes(at(address), beat);
        else m_write_response = 3;
        const bool last = m_write_beat++ == a.len;
        if (beat.last != last) violation("WLAST misplaced", address);
        m_beats.pop_front();
        if (!last) return;
        if (a.ready != ANSWERED) answer_write(a);
        m_writes.pop_front();
        m_write_beat = m_write_response = 0;
    }

    static void store_bytes(uint8_t* to, const WriteBeat<BUS_BYTES>& beat) {
        for (uint32_t i = 0; i < BUS_BYTES; ++i)
            if (beat.strobe >> i & 1) to[i] = beat.data[i];
    }

    void answer_write(const Address& a) {
        Answer answer{a.id, m_write_response, stats.cycles + m_options.latency, a.number};
        Injection i;
        if (armed()) {
            if (fire(RESPONSE, B, a.number, -1, &i)) answer.response = i.value;
            if (fire(WRONG_ID, B, a.number, -1, &i)) answer.id ^= i.value;
        }
        m_answers.push_back(answer);
    }

    void drive_answer(Top& t, uint64_t now) {
        if (!m_answer_valid) m_answer_valid = next_answer(t, now);
        t.m_bvalid = m_answer_valid;
    }

    bool next_answer(Top& t, uint64_t now) {
        if (m_answers.empty()) return armed() && m_writes.empty() && stray_answer(t);
        if (m_answers.front().ready > now) return false;
        if (armed() && dead(B, m_answers.front().number, 0)) return false;
        if (stalled()) return false;
        t.m_bid = m_answers.front().id;
        t.m_bresp = m_answers.front().response;
        m_answers.pop_front();
        return true;
    }

    bool stray_answer(Top& t) {
        Injection i;
        if (!fire(STRAY, B, stats.write_bursts, -1, &i)) return false;
        t.m_bid = i.value;
        t.m_bresp = 0;
        return true;
    }

    // -- rules for the master (ARM IHI 0022, A3.2.1, A3.4.1) -----------------------------------

    void check_address(const Address& a) {
        const uint32_t last = a.beat_address(a.len) + (1u << a.size) - 1;
        if (a.burst != 1) violation("burst type is not INCR", a.address);
        if (1u << a.size > BUS_BYTES) violation("AxSIZE is wider than the bus", a.address);
        if (a.address >> 12 != last >> 12) violation("burst crosses 4096 bytes", a.address);
    }

    void check_held(const Top& t) {
        if (m_ar_held && !(t.m_arvalid && read_address(t) == m_ar))
            violation("ARVALID withdrawn or changed while stalled", m_ar.address);
        if (m_aw_held && !(t.m_awvalid && write_address(t) == m_aw))
            violation("AWVALID withdrawn or changed while stalled", m_aw.address);
        if (m_w_held && !(t.m_wvalid && write_beat(t) == m_w))
            violation("WVALID withdrawn or changed while stalled", m_aw.address);
        m_ar_held = t.m_arvalid && !t.m_arready;
        m_aw_held = t.m_awvalid && !t.m_awready;
        m_w_held = t.m_wvalid && !t.m_wready;
        if (m_ar_held) m_ar = read_address(t);
        if (m_aw_held) m_aw = write_address(t);
        if (m_w_held) m_w = write_beat(t);
    }
};

}  // namespace sparsemac
