// SPDX-License-Identifier: Apache-2.0
// Runs a verilated core with its memory behind a flat C interface.
//
// One call runs until the interrupt, not one per cycle. Nothing here prints or exits: a failure is
// a negative return value, and `sm_error` says what happened. The build defines SM_BUS_BYTES
// and SM_TRACE (0 or 1, for waves); the model's class is Vcore.

#include <sys/mman.h>

#include <memory>
#include <stdexcept>

#include "memory.h"
#if SM_TRACE
#include "verilated_fst_c.h"
#endif

using sparsemac::Injection;
using sparsemac::Options;
using sparsemac::Statistics;

namespace {

constexpr int64_t FAILED = -1;   // see sm_error
constexpr int64_t NO_ANSWER = -2;  // no handshake within the limit

struct Simulation {
    VerilatedContext context;
    std::unique_ptr<Vcore> top;
    Options options;
    uint8_t* bytes;
    sparsemac::Memory<Vcore, SM_BUS_BYTES> memory;
    std::string error;
#if SM_TRACE
    std::unique_ptr<VerilatedFstC> trace;
    std::string trace_path;
    bool trace_wanted = false;
    uint64_t trace_from = 0, trace_to = 0;
#endif

    Simulation(const Options& o, uint8_t* bytes) : options(o), bytes(bytes), memory(o, bytes) {
        // Takes effect only in a model built with --x-initial unique.
        context.randReset(2);
        context.randSeed(static_cast<int>(o.seed & 0x7FFFFFFF) + 1);
#if SM_TRACE
        context.traceEverOn(true);
#endif
        top.reset(new Vcore{&context, "top"});
        // Inputs are drawn as well, so none may be left as it is.
        Vcore& t = *top;
        t.clk = t.load_reset = t.load_registers = 0;
        t.rst = 1;
        t.s_awaddr = t.s_araddr = 0;
        t.s_wdata = t.s_wstrb = 0;
        t.s_awvalid = t.s_wvalid = t.s_bready = 0;
        t.s_arvalid = t.s_rready = 0;
        top->eval();
        t.load_registers = t.load_reset = 1;
        cycle();
    }

    ~Simulation() {
#if SM_TRACE
        finish_trace();
#endif
        top->final();
        munmap(bytes, options.memory_bytes);
    }

    void settle() {
        memory.drive(*top);
        top->clk = 0;
        top->eval();
        memory.sample(*top);
        dump();
    }

    void edge() {
        top->clk = 1;
        // One load at the falling edge is enough.
        top->load_reset = top->load_registers = 0;
        top->eval();
        dump();
    }

    void cycle() {
        settle();
        edge();
    }

#if SM_TRACE
    void dump() {
        context.timeInc(1);
        if (!trace_wanted) return;
        // `sample` has counted the cycle already.
        const uint64_t now = memory.stats.cycles - 1;
        if (now < trace_from) return;
        if (now >= trace_to) return finish_trace();
        keep_running([this] {
            if (!trace) {
                trace.reset(new VerilatedFstC);
                top->trace(trace.get(), 99);
                trace->open(trace_path.c_str());
            }
            trace->dump(context.time());
        });
    }

    void finish_trace() {
        trace_wanted = false;
        keep_running([this] {
            if (trace && trace->isOpen()) trace->close();
        });
    }

    // Waves may fail, the run goes on: the file's reader sees that it is incomplete.
    template <class Call>
    void keep_running(Call call) {
        try {
            call();
        } catch (const std::exception&) {
            trace_wanted = false;
            // Its destructor would try again, and fail where nobody can catch it.
            static_cast<void>(trace.release());
        }
    }
#else
    void dump() {}
#endif

    int64_t write(uint32_t address, uint32_t data, uint32_t strobe, uint64_t limit) {
        Vcore& t = *top;
        t.s_awaddr = address;
        t.s_wdata = data;
        t.s_wstrb = strobe;
        t.s_awvalid = t.s_wvalid = t.s_bready = 1;
        int64_t response = NO_ANSWER;
        for (uint64_t i = 0; i < limit && response == NO_ANSWER; ++i) {
            t.load_registers = 1;
            settle();
            const bool aw = t.s_awvalid && t.s_awready;
            const bool w = t.s_wvalid && t.s_wready;
            if (t.s_bvalid) response = t.s_bresp;
            edge();
            if (aw) t.s_awvalid = 0;
            if (w) t.s_wvalid = 0;
        }
        t.s_awvalid = t.s_wvalid = t.s_bready = 0;
        t.load_registers = 1;
        return response;
    }

    int64_t read(uint32_t address, uint32_t* data, uint64_t limit) {
        Vcore& t = *top;
        t.s_araddr = address;
        t.s_arvalid = t.s_rready = 1;
        int64_t response = NO_ANSWER;
        for (uint64_t i = 0; i < limit && response == NO_ANSWER; ++i) {
            t.load_registers = 1;
            settle();
            const bool ar = t.s_arvalid && t.s_arready;
            if (t.s_rvalid) {
                response = t.s_rresp;
                *data = t.s_rdata;
            }
            edge();
            if (ar) t.s_arvalid = 0;
        }
        t.s_arvalid = t.s_rready = 0;
        t.load_registers = 1;
        return response;
    }

    int64_t run(uint64_t limit) {
        uint64_t i = 0;
        while (!top->irq && i < limit) {
            cycle();
            ++i;
        }
        return static_cast<int64_t>(i);
    }

    int64_t reset(uint64_t cycles, bool bus) {
        top->rst = 1;
        top->load_reset = 1;
        for (uint64_t i = 0; i < cycles; ++i) {
            memory.forget_held();  // a reset may withdraw a VALID
            cycle();
            if (bus) memory.reset();  // also what the core began in the first cycle
        }
        top->rst = 0;
        top->load_reset = 1;
        memory.forget_held();
        return 0;
    }
};

// Runs a call of the interface; no exception may cross into the caller's language.
template <class Call>
int64_t guarded(Simulation* s, Call call) {
    try {
        return call();
    } catch (const std::exception& e) {
        s->error = e.what();
        return FAILED;
    }
}

[[noreturn]] void stop(const char* what, const char* file, int line, const char* text) {
    throw std::runtime_error(std::string(what) + " at " + (file ? file : "?") + ":"
                             + std::to_string(line) + (text && *text ? ": " : "")
                             + (text ? text : ""));
}

}  // namespace

// Verilator's own versions of these end the process.
void vl_finish(const char* file, int line, const char* scope) VL_MT_UNSAFE {
    stop("$finish", file, line, scope);
}
void vl_stop(const char* file, int line, const char* scope) VL_MT_UNSAFE {
    stop("assertion violated", file, line, scope);
}
void vl_fatal(const char* file, int line, const char* scope, const char* text) VL_MT_UNSAFE {
    (void)scope;
    stop("fatal error", file, line, text);
}

#pragma GCC visibility push(default)
extern "C" {

Simulation* sm_create(const Options* options) {
    void* bytes = mmap(nullptr, options->memory_bytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (bytes == MAP_FAILED) return nullptr;
    return new Simulation(*options, static_cast<uint8_t*>(bytes));
}

void sm_destroy(Simulation* s) { delete s; }

const char* sm_error(Simulation* s) { return s->error.c_str(); }

uint8_t* sm_memory(Simulation* s) { return s->bytes; }

const Statistics* sm_statistics(Simulation* s) { return &s->memory.stats; }

const char* sm_violation(Simulation* s) { return s->memory.first_violation.c_str(); }

// Holds reset for `cycles`; with `bus`, the memory forgets what is outstanding.
int64_t sm_reset(Simulation* s, uint64_t cycles, int bus) {
    return guarded(s, [=] { return s->reset(cycles, bus != 0); });
}

// Returns the response (0 OKAY, 2 SLVERR, 3 DECERR).
int64_t sm_write(Simulation* s, uint32_t address, uint32_t data, uint32_t strobe, uint64_t limit) {
    return guarded(s, [=] { return s->write(address, data, strobe, limit); });
}

int64_t sm_read(Simulation* s, uint32_t address, uint32_t* data, uint64_t limit) {
    return guarded(s, [=] { return s->read(address, data, limit); });
}

// Runs until the interrupt is raised or for `limit` cycles; returns the cycles run.
int64_t sm_run(Simulation* s, uint64_t limit) {
    return guarded(s, [=] { return s->run(limit); });
}

int sm_irq(Simulation* s) { return s->top->irq; }

int64_t sm_step(Simulation* s, uint64_t cycles) {
    return guarded(s, [=] {
        for (uint64_t i = 0; i < cycles; ++i) s->cycle();
        return int64_t(0);
    });
}

void sm_inject(Simulation* s, const Injection* injection) { s->memory.inject(*injection); }

void sm_clear_injections(Simulation* s) { s->memory.clear_injections(); }

// Writes waves of the cycles from..to-1, counted since creation; -1 in a model built without.
int64_t sm_trace(Simulation* s, const char* path, uint64_t from, uint64_t to) {
#if SM_TRACE
    s->trace_path = path;
    s->trace_from = from;
    s->trace_to = to;
    s->trace_wanted = true;
    return 0;
#else
    (void)path, (void)from, (void)to;
    s->error = "the model was built without waves";
    return FAILED;
#endif
}

// Ends the trace, if need be before its window does.
int64_t sm_finish_trace(Simulation* s) {
#if SM_TRACE
    return guarded(s, [=] {
        s->finish_trace();
        return int64_t(0);
    });
#else
    (void)s;
    return 0;
#endif
}

}  // extern "C"
#pragma GCC visibility pop
