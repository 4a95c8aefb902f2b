# SPDX-License-Identifier: Apache-2.0
"""The cycle model of a core at work on a command list: dispatcher, loader, executor."""

from collections.abc import Callable, Sequence

from ..commands import COMMAND_BYTES, Exec, Load, OutputMode
from ..config import CoreConfig
from .bus import COMMANDS, LOADS, Bus, WeightFetch, bursts_of
from .engine import EngineModel
from .memory import Clock, DataPins, MemoryModel, Process
from .store import Store
from .streams import Streams

__all__ = ["CoreModel"]

#: Cycles from a complete command to its being handed on; more of them if the engines are no power
#: of two (`sparsemac_hw.dispatcher`).
CHECK_CYCLES, DIVIDE_CYCLES = 3, 32

#: Cycles from an EXEC's last word being acknowledged to the EXEC being complete, and from all
#: commands being complete to the end of the job.
QUIET_CYCLES, FINISHED_CYCLES = 1, 1

#: Counters of engine cycles that are told apart; the rest is `stall_command`.
_SPENT = ("issued", "stall_activations", "stall_weights", "stall_store", "stall_short", "idle")


class _Beats:
    """Beats that a process waits for."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._left = clock, 0
        self._waiting: Process | None = None
        self.last = 0  # when the newest one came

    def expect(self, beats: int) -> None:
        self._left += beats

    def deliver(self, first: int, beats: int) -> None:
        self._left -= beats
        self.last = first + beats - 1
        if not self._left and self._waiting is not None:
            self._clock.wake(self._waiting, self._clock.now)
            self._waiting = None

    def wait(self, process: Process) -> bool:
        """Tells whether beats are missing; then the process is woken with the last one."""
        if self._left:
            self._waiting = process
        return self._left > 0


class CoreModel:
    """A core, from the doorbell to the end of a job.

    Parameters
    ----------
    config : CoreConfig
    memory : MemoryModel
    read_streams : function    Returns the `Streams` of an EXEC.

    Attributes
    ----------
    cycles : int               Of the job; the doorbell rings in cycle 0.
    exec_ends : list of int    When the loader sees that each EXEC is complete.
    counters : dict            Sums over all engines, by the names of `result.Counters`.
    """

    def __init__(self, config: CoreConfig, memory: MemoryModel,
                 read_streams: Callable[[Exec], Streams]) -> None:
        self._config, self._read_streams = config, read_streams
        self._clock = clock = Clock()
        pins = DataPins(clock, memory, config.bus_bytes)
        self._bus = Bus(clock, memory, pins)
        self._engines = [EngineModel(e, config, self) for e in range(config.engines)]
        self.fetch = WeightFetch(clock, self._bus, config, self._engines)
        self.fetch.on_ready = lambda: self._wake("hand_on")
        self.store = Store(clock, memory, pins, config, self._engines)
        self.store.on_idle = lambda: self._wake("execs")
        self.exec_ends: list[int] = []
        self.cycles = 0
        self.counters: dict[str, int] = dict.fromkeys(
            (*_SPENT, "fillers", "write_beats", "write_bytes"), 0)
        self._load_ends: list[int] = []
        self._command_beats, self._load_beats = _Beats(clock), _Beats(clock)
        # A command between two processes, and when it is there; and when the next may be.
        self._fetched: tuple[Load | Exec, int] | None = None
        self._load: tuple[Load, int] | None = None
        self._exec: tuple[Exec, int] | None = None
        self._empty = self._load_free = self._exec_free = 0
        self._at_work = 0  # engines
        self._parked: set[str] = set()
        self._processes: dict[str, Process] = {}

    def run(self, commands: Sequence[Load | Exec]) -> None:
        """Runs a command list, once."""
        self._processes = {
            "dispatch": self._dispatch(commands), "hand_on": self._hand_on(),
            "loads": self._run_loads(), "execs": self._run_execs(),
        }
        for name in ("hand_on", "loads", "execs"):
            next(self._processes[name])
        self._clock.wake(self._processes["dispatch"], 1)
        self._clock.run()
        if len(self.exec_ends) + len(self._load_ends) != len(commands):
            raise ValueError("commands must wait only for what can be complete before them")
        ends = [self._empty, *self._load_ends[-1:], *self.exec_ends[-1:]]
        self.cycles = max(ends) + FINISHED_CYCLES + 1
        counters = self.counters
        counters["cycles"], counters["read_beats"] = self.cycles, self._bus.beats
        counters["stall_command"] = (
            self.cycles * self._config.engines - sum(counters[name] for name in _SPENT))

    def _wake(self, name: str) -> None:
        """Resumes a process that waits for another one to do something."""
        if name in self._parked:
            self._parked.remove(name)
            self._clock.wake(self._processes[name], self._clock.now)

    # -- commands -------------------------------------------------------------------------------

    def _dispatch(self, commands: Sequence[Load | Exec]) -> Process:
        """Fetches commands one by one."""
        config, clock, beats = self._config, self._clock, self._command_beats
        bursts = max(1, COMMAND_BYTES // (config.burst_beats * config.bus_bytes))
        burst = COMMAND_BYTES // config.bus_bytes // bursts
        me, ask = self._processes["dispatch"], 1
        for command in commands:
            for _ in range(bursts):
                beats.expect(burst)
                self._bus.request(COMMANDS, ask, burst, me, beats.deliver)
                yield None
                ask = clock.now + 1
            if beats.wait(me):
                yield None
            while self._fetched is not None:
                self._parked.add("dispatch")
                yield None
            taken = max(beats.last + 1, self._empty)
            self._fetched = command, taken
            self._wake("hand_on")
            ask = taken + 2
            yield ask - 1

    def _hand_on(self) -> Process:
        """Checks commands and hands them on."""
        clock, engines = self._clock, self._config.engines
        check = CHECK_CYCLES + DIVIDE_CYCLES * (engines & (engines - 1) != 0)
        while True:
            while self._fetched is None:
                self._parked.add("hand_on")
                yield None
            command, taken = self._fetched
            yield taken + check
            if isinstance(command, Load):
                while self._load is not None:
                    self._parked.add("hand_on")
                    yield None
                given = max(clock.now, self._load_free)
                self._load = command, given
                self._wake("loads")
            else:
                while self._exec is not None or self.fetch.ready is None:
                    self._parked.add("hand_on")
                    yield None
                given = max(clock.now, self._exec_free, self.fetch.ready)
                self._exec = command, given
                self.fetch.run(given, command.weights, command.beats)
                self._wake("execs")
            self._empty = given + 1
            self._fetched = None
            self._wake("dispatch")

    # -- LOADs ----------------------------------------------------------------------------------

    def _run_loads(self) -> Process:
        clock, config, beats = self._clock, self._config, self._load_beats
        me = self._processes["loads"]
        while True:
            while self._load is None:
                self._parked.add("loads")
                yield None
            command, given = self._load
            while len(self.exec_ends) < command.wait:
                self._parked.add("loads")
                yield None
            start = max(given + 1, self.exec_ends[command.wait - 1] if command.wait else 0)
            yield start
            step, granted = start, 0
            for line in range(command.lines):
                address = command.address + line * command.stride
                step += 1
                for burst in bursts_of(address, command.line_beats, config):
                    step = max(step + 1, granted + 1)
                    beats.expect(burst)
                    self._bus.request(LOADS, step + 1, burst, me, beats.deliver)
                    yield None
                    granted = clock.now
            if beats.wait(me):
                yield None
            self._load = None
            self._load_free = beats.last + 2
            self._load_ends.append(beats.last + 2)
            self._wake("hand_on")
            self._wake("execs")

    # -- EXECs ----------------------------------------------------------------------------------

    def _run_execs(self) -> Process:
        complete = 0
        while True:
            while self._exec is None:
                self._parked.add("execs")
                yield None
            command, given = self._exec
            while len(self._load_ends) < command.wait:
                self._parked.add("execs")
                yield None
            streams = self._read_streams(command)
            loaded = self._load_ends[command.wait - 1] if command.wait else 0
            begin = max(given + 1, complete, loaded)
            waited = loaded - max(given + 1, complete + 1)
            self.counters["stall_activations"] += max(waited, 0) * self._config.engines
            yield begin
            self._exec = None
            self._exec_free = begin + 1
            self._wake("hand_on")
            self._start(command, streams, begin + 1)
            while self._at_work or self.store.busy:
                self._parked.add("execs")
                yield None
            quiet = max(self.store.idle, *(e.done for e in self._engines))
            complete = max(begin + 3, quiet + QUIET_CYCLES)
            self._count(streams, begin + 1, complete)
            yield complete
            self.exec_ends.append(complete + 1)
            self._wake("loads")

    def _start(self, command: Exec, streams: Streams, now: int) -> None:
        self._at_work = self._config.engines
        self.store.begin(command.mode == OutputMode.RAW)
        for engine, stream in zip(self._engines, streams.engines, strict=True):
            engine.start(stream, streams.rounds, streams.positions, not command.psum_out, now)

    def engine_done(self) -> None:
        """Notes that an engine has nothing more to do."""
        self._at_work -= 1
        if not self._at_work:
            self._wake("execs")

    def _count(self, streams: Streams, first: int, last: int) -> None:
        """Adds up what the engines did in the cycles of an EXEC."""
        counters = self.counters
        for engine in self._engines:
            busy = engine.all_issued - first - 1  # in its first cycle an engine looks idle
            counters["stall_weights"] += busy - engine.issued - engine.short - engine.store
            counters["stall_short"] += engine.short
            counters["stall_store"] += engine.store
            counters["idle"] += last - first + 1 - busy
        for name in ("issued", "fillers", "write_beats", "write_bytes"):
            counters[name] += getattr(streams, name)
