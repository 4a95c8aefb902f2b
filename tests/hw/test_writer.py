# SPDX-License-Identifier: Apache-2.0
import random
from collections import deque

import pytest
from sparsemac.config import CoreConfig
from sparsemac.registers import FaultCode
from sparsemac_hw.testing import simulate, stream_put
from sparsemac_hw.writer import Writer

OKAY, EXOKAY, SLVERR, DECERR = range(4)


class Bench:
    """A writer between engines, a guard and a memory, all of which stall at random.

    The guard answers in order, with one request waiting; W beats fill the granted bursts in order;
    responses follow in order. What the writer may not do is asserted where it would show.
    """

    def __init__(self, config, words, rng, *, raw=False, output=0x1000, stall=0.0, epoch=5):
        self.config, self.words, self.rng, self.stall = config, words, rng, stall
        self.raw, self.output, self.epoch = raw, output, epoch
        self.dut = Writer(config)
        self.memory: dict[int, int] = {}
        self.asked: deque[tuple[int, int]] = deque()  # by the writer, of the guard
        self.granted: list[tuple[int, int]] = []
        self.unfilled: deque[tuple[int, int, int]] = deque()  # granted, with epoch; lack beats
        self.due: deque[tuple[int, int]] = deque()  # address and epoch: await their response
        self.responses: deque[tuple[int, int]] = deque()  # extra or other responses: (id, resp)
        self.faults: list[tuple[int, int, int]] = []
        self.stale = self.bytes = self.beats = self.cycle = 0
        self.deny = lambda address: False
        self.resp = lambda address: OKAY
        self.hold_responses = False
        self.hold_beats = False
        self.stopped = False
        self.strobes_of_dead: list[int] = []

    def chance(self):
        return self.rng.random() >= self.stall

    def feeder(self, engine):
        async def feed(ctx):
            for out_word, image in self.words[engine]:
                for beat in self.beats_of(out_word, image):
                    while not self.chance():
                        await ctx.tick()
                    await self.put(ctx, self.dut.i[engine], beat)
        return feed

    async def put(self, ctx, dst, beat):
        """Sends a beat, unless the job has been stopped: engines are reset then."""
        ctx.set(dst.payload, beat)
        ready = False
        while not ready and not self.stopped:
            ctx.set(dst.valid, 1)
            *_, ready = await ctx.tick().sample(dst.ready)
        ctx.set(dst.valid, 0)

    def beats_of(self, out_word, image):
        """Beats of one word, or of one beat's words that follow one another."""
        size = self.config.bus_bytes
        place = (self.output + out_word * self.config.out_word_bytes(self.raw)) % size
        filled = 1
        if self.config.lanes < size:
            filled = (1 << len(image) // self.config.lanes) - 1 << place // self.config.lanes
        image = bytes(place) + image
        image += bytes(-len(image) % size)
        pieces = [image[k : k + size] for k in range(0, len(image), size)]
        for k, piece in enumerate(pieces):
            yield {"data": int.from_bytes(piece, "little"), "out_word": out_word,
                   "filled": filled, "raw": self.raw, "first": k == 0,
                   "last": k == len(pieces) - 1}

    def expected_memory(self):
        size = self.config.out_word_bytes(self.raw)
        return {
            (self.output + out_word * size + k) % (1 << 32): byte
            for queue in self.words for out_word, image in queue for k, byte in enumerate(image)
        }

    async def settings(self, ctx):
        ctx.set(self.dut.output, self.output)
        ctx.set(self.dut.epoch, self.epoch)

    async def guard(self, ctx):
        dut = self.dut
        answer_in = None
        while True:
            waiting = answer_in is not None
            granted = denied = False
            if waiting and not self.stopped:
                answer_in -= 1
                if answer_in <= 0:
                    denied = self.deny(self.asked[0][0])
                    granted = not denied
            ready = not self.stopped and (not waiting or granted) and self.chance()
            ctx.set(dut.granted, granted)
            ctx.set(dut.denied, denied)
            ctx.set(dut.o_burst.ready, ready)
            *_, valid, burst = await ctx.tick().sample(dut.o_burst.valid, dut.o_burst.payload)
            if granted or denied:
                burst_now = self.asked.popleft()
                answer_in = None
                if granted:
                    self.granted.append(burst_now)
                    self.unfilled.append((*burst_now, self.epoch))
                self.stopped |= denied
            if valid and ready:
                assert burst.address % self.config.bus_bytes == 0
                self.asked.append((burst.address, burst.beats))
                answer_in = 1
                while not self.chance():
                    answer_in += 1
            if self.stopped:
                answer_in = None
                self.asked.clear()

    async def data_channel(self, ctx):
        dut = self.dut
        filled = 0
        held = None
        while True:
            ready = not self.hold_beats and self.chance()
            ctx.set(dut.wready, ready)
            may_fill = len(self.unfilled)
            *_, valid, data, strobes, last, beat, count = await ctx.tick().sample(
                dut.wvalid, dut.wdata, dut.wstrb, dut.wlast, dut.beat, dut.beat_bytes
            )
            assert held is None or (valid, data, strobes, last) == held, "W changed while stalled"
            held = (valid, data, strobes, last) if valid and not ready else None
            assert beat == (valid and ready)
            if valid:
                assert may_fill, "W beat before its burst was granted"
            if not beat:
                continue
            address, beats, epoch = self.unfilled[0]
            for k in range(self.config.bus_bytes):
                if strobes >> k & 1:
                    self.memory[address + filled * self.config.bus_bytes + k] = (
                        data >> 8 * k & 0xFF
                    )
            if epoch != self.epoch:
                self.strobes_of_dead.append(strobes)
            assert count == strobes.bit_count()
            self.bytes += count
            self.beats += 1
            filled += 1
            assert last == (filled == beats)
            if last:
                filled = 0
                self.unfilled.popleft()
                self.due.append((address, epoch))

    async def response_channel(self, ctx):
        dut = self.dut
        while True:
            extra = self.responses.popleft() if self.responses else None
            if extra is not None:
                bid, resp = extra
            elif self.due and not self.hold_responses and self.chance():
                address, bid = self.due.popleft()
                resp = self.resp(address)
            else:
                bid, resp = None, self.rng.randrange(4)
            ctx.set(dut.bvalid, bid is not None)
            ctx.set(dut.bid, self.rng.randrange(16) if bid is None else bid)
            ctx.set(dut.bresp, resp)
            await ctx.tick()

    async def watch(self, ctx):
        dut = self.dut
        async for *_, faulty, fault, stale, bready, outstanding in ctx.tick().sample(
            dut.fault_valid, dut.fault, dut.stale, dut.bready, dut.outstanding
        ):
            assert bready
            assert outstanding <= Writer.MAX_OUTSTANDING
            self.stale += stale
            self.cycle += 1
            if faulty:
                self.faults.append((fault.code, fault.address, fault.detail))

    async def until_idle(self, ctx):
        count = sum(len(queue) for queue in self.words)
        while len(self.granted) < count or not ctx.get(self.dut.idle):
            await ctx.tick()
        await ctx.tick().repeat(2)  # a fault shows a cycle later

    def run(self, *testbenches, feed=True):
        feeders = [self.feeder(e) for e in range(self.config.engines)] if feed else []
        simulate(
            self.dut, self.settings, *testbenches,
            background=[
                *feeders, self.guard, self.data_channel, self.response_channel, self.watch
            ],
        )


def configuration(engines=2, lanes=8, bus_width=64):
    return CoreConfig(
        engines=engines, lanes=lanes, bus_width=bus_width, fifo_depth=64, burst_beats=8
    )


def random_words(config, raw, count, rng, output=0x1000):
    """Words of all engines, at distinct places; ``count`` per engine at most.

    Words shorter than a beat come as runs of neighbours that share one.
    """
    indices = rng.sample(range(1, 200), config.engines * count)
    size = config.out_word_bytes(raw)
    share = max(1, config.bus_bytes // size)
    queues = []
    for _ in range(config.engines):
        queue = []
        for _ in range(rng.randrange(count // 2, count + 1)):
            place = rng.randrange(share)
            out_word = indices.pop() * share + place - output // size % share
            queue.append((out_word, rng.randbytes(size * rng.randint(1, share - place))))
        queues.append(queue)
    return queues


@pytest.mark.parametrize("stall", [0.0, 0.5])
@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize(
    ("engines", "lanes", "bus_width"),
    [(1, 1, 32), (2, 4, 32), (1, 16, 32), (3, 8, 64), (4, 2, 64), (4, 16, 128), (2, 1, 128)],
)
def test_writes_every_word_at_its_place(engines, lanes, bus_width, raw, stall):
    seed = 10_000 * engines + 100 * lanes + bus_width + raw
    print("seed", seed)
    rng = random.Random(seed)
    config = configuration(engines, lanes, bus_width)
    output = 0x1000 + config.out_word_bytes(raw) * rng.randrange(64)
    bench = Bench(
        config, random_words(config, raw, 30, rng, output), rng, raw=raw, output=output,
        stall=stall
    )
    bench.run(bench.until_idle)
    assert bench.memory == bench.expected_memory()
    assert bench.bytes == len(bench.memory)
    assert not bench.due and not bench.unfilled
    assert not bench.faults and not bench.stale


def test_addresses_wrap():
    config = configuration(engines=1)
    words = [[((1 << 32) - 1, bytes(range(8))), (0xFFFF, bytes(range(8, 16)))]]
    bench = Bench(config, words, random.Random(0), output=0x40)
    bench.run(bench.until_idle)
    assert bench.granted == [(0x38, 1), (0x40 + 0xFFFF * 8, 1)]
    assert bench.memory == bench.expected_memory()


@pytest.mark.parametrize("engines", [1, 4])
def test_stores_a_beat_per_cycle(engines):
    config = configuration(engines)
    words = [[(64 * e + k, bytes(8)) for k in range(60)] for e in range(engines)]
    bench = Bench(config, words, random.Random(0))
    bench.run(bench.until_idle)
    assert bench.beats == 60 * engines
    assert bench.cycle < bench.beats + 15


def test_asks_after_its_latency():
    dut = Writer(configuration(engines=1))
    cycles = 0

    async def drive(ctx):
        nonlocal cycles
        await stream_put(ctx, dut.i[0], {"out_word": 3, "first": 1, "last": 1})
        while not ctx.get(dut.o_burst.valid):
            cycles += 1
            await ctx.tick()

    simulate(dut, drive)
    assert cycles + 1 == Writer.LATENCY_CYCLES


def test_asks_for_a_word_when_all_its_beats_are_here():
    config = configuration(engines=1)
    bench = Bench(config, [[(0, bytes(32))]], random.Random(0), raw=True)

    async def check(ctx):
        *early, last = bench.beats_of(*bench.words[0][0])
        for beat in early:
            await bench.put(ctx, bench.dut.i[0], beat)
        for _ in range(10):
            await ctx.tick()
            assert not ctx.get(bench.dut.o_burst.valid)
        await bench.put(ctx, bench.dut.i[0], last)
        await bench.until_idle(ctx)

    bench.run(check, feed=False)
    assert bench.granted == [(bench.output, 4)]


def test_stops_asking_at_sixteen_outstanding_bursts():
    config = configuration(engines=1)
    bench = Bench(config, [[(k, bytes(8)) for k in range(40)]], random.Random(0))
    bench.hold_responses = True

    async def check(ctx):
        for _ in range(200):
            await ctx.tick()
        assert len(bench.granted) == 16
        assert ctx.get(bench.dut.outstanding) == 16
        assert not ctx.get(bench.dut.idle)
        bench.hold_responses = False
        await bench.until_idle(ctx)

    bench.run(check)
    assert len(bench.granted) == 40


def test_denied_word_ends_all_requests():
    config = configuration(engines=2)
    rng = random.Random(4)
    bench = Bench(config, random_words(config, False, 20, rng), rng, stall=0.3)
    answers = 0

    def deny(address):
        nonlocal answers
        answers += 1
        return answers == 7

    bench.deny = deny

    async def check(ctx):
        for _ in range(300):
            await ctx.tick()
        assert ctx.get(bench.dut.outstanding) == 0
        assert not ctx.get(bench.dut.owed)
        assert not ctx.get(bench.dut.o_burst.valid)
        assert len(bench.granted) == bench.beats == 6
        assert bench.memory.items() <= bench.expected_memory().items()
        # After a soft reset all is well again.
        await soft_reset(ctx, bench)
        await ctx.tick().repeat(2)
        bench.stopped = False
        bench.words = [[(3, bytes(range(8)))], []]
        bench.memory.clear()
        bench.granted.clear()
        for beat in bench.beats_of(*bench.words[0][0]):
            await bench.put(ctx, bench.dut.i[0], beat)
        await bench.until_idle(ctx)

    bench.run(check)
    assert bench.memory == bench.expected_memory()


@pytest.mark.parametrize("resp", [EXOKAY, SLVERR, DECERR])
@pytest.mark.parametrize("position", [0, 3, 9])
def test_c1_error_response_is_a_bus_fault_with_its_address(resp, position):
    config = configuration(engines=1)
    rng = random.Random(position)
    bench = Bench(config, [[(k, bytes(8)) for k in range(10)]], rng, stall=0.4)
    bad = bench.output + 8 * position
    bench.resp = lambda address: resp if address == bad else OKAY
    bench.run(bench.until_idle)
    assert bench.faults == [(FaultCode.BUS, bad, resp | 1 << 2)]
    assert len(bench.memory) == 80


def test_c2_response_with_nothing_outstanding_is_a_protocol_fault():
    bench = Bench(configuration(), [[], []], random.Random(0))

    async def check(ctx):
        bench.responses.append((bench.epoch, OKAY))
        for _ in range(5):
            await ctx.tick()
        assert ctx.get(bench.dut.outstanding) == 0

    bench.run(check)
    assert bench.faults == [(FaultCode.PROTO, 0, 1)]
    assert not bench.stale


def test_c2_response_before_the_last_beat_is_a_protocol_fault_and_not_counted():
    config = configuration(engines=1)
    bench = Bench(config, [[(2, bytes(32)), (3, bytes(32))]], random.Random(0), raw=True)
    bench.hold_beats = True

    async def check(ctx):
        while ctx.get(bench.dut.outstanding) < 2:
            await ctx.tick()
        bench.responses.append((bench.epoch, OKAY))
        for _ in range(5):
            await ctx.tick()
        assert ctx.get(bench.dut.outstanding) == 2
        bench.hold_beats = False
        await bench.until_idle(ctx)

    bench.run(check)
    assert bench.faults == [(FaultCode.PROTO, bench.output + 64, 1)]
    assert len(bench.memory) == 64


def test_d2_response_of_another_epoch_is_stale():
    config = configuration()
    rng = random.Random(6)
    bench = Bench(config, random_words(config, False, 20, rng), rng, stall=0.3)

    async def disturb(ctx):
        for k in range(12):
            bench.responses.append(((bench.epoch + 1 + k) % 16, SLVERR))
            await ctx.tick().repeat(4)

    bench.run(disturb, bench.until_idle)
    assert bench.stale == 12
    assert not bench.faults
    assert bench.memory == bench.expected_memory()


async def soft_reset(ctx, bench):
    """What the job control does: stop the guard, clear; the epoch advances a cycle later.

    Returns the strobes of the beat that is on the pins with ``clear``; 0 if there is none.
    """
    bench.stopped = True
    await ctx.tick().repeat(2)
    dut = bench.dut
    ctx.set(dut.clear, 1)
    *_, valid, strobes = await ctx.tick().sample(dut.wvalid, dut.wstrb)
    ctx.set(dut.clear, 0)
    bench.epoch = (bench.epoch + 1) % 16
    ctx.set(bench.dut.epoch, bench.epoch)
    return strobes if valid else 0


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("moment", [3, 8, 13, 19, 24, 30, 47, 60])
def test_d1_soft_reset_sends_what_is_owed_without_strobes(moment, raw):
    seed = 2 * moment + raw
    print("seed", seed)
    rng = random.Random(seed)
    config = configuration(engines=2)
    bench = Bench(config, random_words(config, raw, 20, rng), rng, raw=raw, stall=0.5)
    dut = bench.dut
    bench.hold_responses = True

    async def check(ctx):
        await ctx.tick().repeat(moment)
        shown = await soft_reset(ctx, bench)
        assert ctx.get(dut.outstanding) == 0
        bench.hold_responses = False
        while ctx.get(dut.owed):
            assert not ctx.get(dut.o_burst.valid)
            if len(bench.unfilled) > 2:  # not only the burst that is on the pins
                assert not any(ctx.get(dut.i[e].ready) for e in range(2)), "taken while owing"
            await ctx.tick()
        await ctx.tick().repeat(3)
        assert not bench.unfilled
        assert ctx.get(dut.idle)
        assert [strobes for strobes in bench.strobes_of_dead if strobes] == [shown] * bool(shown)
        while bench.due:
            await ctx.tick()
        await ctx.tick().repeat(3)
        assert bench.stale == len(bench.granted)
        assert not bench.faults
        # What the dropped bursts did must not make a stray response look right.
        bench.responses.append((bench.epoch, OKAY))
        await ctx.tick().repeat(5)
        assert bench.faults == [(FaultCode.PROTO, 0, 1)]
        assert ctx.get(dut.outstanding) == 0

    bench.run(check)
    assert bench.memory.items() <= bench.expected_memory().items()


def test_d1_job_after_soft_reset_is_exact():
    config = configuration(engines=2)
    rng = random.Random(9)
    bench = Bench(config, [[], []], rng, stall=0.4)
    first = [[(20 * e + k, rng.randbytes(8)) for k in range(12)] for e in range(2)]
    second = random_words(config, False, 30, rng)

    async def feed(ctx, words):
        bench.words = words
        for e, queue in enumerate(words):
            for out_word, image in queue:
                for beat in bench.beats_of(out_word, image):
                    await bench.put(ctx, bench.dut.i[e], beat)

    async def check(ctx):
        bench.hold_responses = True
        await feed(ctx, first)
        while ctx.get(bench.dut.outstanding) < 16:
            await ctx.tick()
        await soft_reset(ctx, bench)
        while ctx.get(bench.dut.owed):
            await ctx.tick()
        await ctx.tick()
        # Responses of the first job arrive while the second is at work.
        bench.stopped = bench.hold_responses = False
        bench.memory.clear()
        bench.granted.clear()
        await feed(ctx, second)
        await bench.until_idle(ctx)

    bench.run(check, feed=False)
    assert bench.stale
    assert bench.memory == bench.expected_memory()
    assert not bench.faults
