# SPDX-License-Identifier: Apache-2.0
"""``sparsemac run``: a network on a device, with what each step cost."""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import sparsemac
from sparsemac import Core
from sparsemac.graph import Graph
from sparsemac.inference import Inference, Mismatch, Model, StepReport
from sparsemac.netfile import NetworkFile, first_difference, random_inputs
from sparsemac.precompile import preload

from ._chunks import Chunk, Ticker, default_batch, run_chunks, samples_in
from ._inputs import INPUT_HELP, Given, output_format, read_inputs, write_outputs
from ._network import add_model_arguments, batch_of, counted, load_network, print_table
from ._report import (
    MISMATCH,
    OK,
    Progress,
    add_config_arguments,
    add_json_argument,
    config_from,
    stalls_text,
    write_json,
)
from ._waves import JobLog, Window, find_culprit, record_window

__all__ = ["add_parser"]

#: Values of an output that are printed, and that the JSON output has.
SHOWN, WRITTEN = 12, 4096


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "run",
        help="run a network on a device, and say what each step cost",
        description="Runs samples through a network: layers on the device, the rest on the host. "
        "Says what came out, and tells apart host time, device cycles and transfers. Exit code 1 "
        "if --check finds a difference.",
    )
    add_model_arguments(parser, "samples that run at a time")
    parser.add_argument("inputs", metavar="INPUT", nargs="*", default=[],
                        help=f"{INPUT_HELP}. None: random samples from --seed, as many as --batch")
    parser.add_argument("--seed", type=int, default=1,
                        help="of random samples (default: %(default)s)")
    parser.add_argument("--device", default="sim:", metavar="URI", help="default: %(default)s")
    parser.add_argument("-o", "--output", metavar="OUT", type=Path,
                        help="write the outputs: .npy, or .npz by name")
    parser.add_argument("--check", choices=("exact",),
                        help="compare every integer with the golden model, layer by layer")
    parser.add_argument("--per-layer", action="store_true",
                        help="a doorbell for each layer, so that its counters are its own")
    parser.add_argument("--waveform", metavar="FST", type=Path,
                        help="with --check on sim: the waves around the first wrong value")
    add_config_arguments(parser)
    add_json_argument(parser)
    parser.set_defaults(run=run)


def _check_arguments(args: argparse.Namespace) -> None:
    if args.waveform is None:
        return
    if args.check is None:
        raise ValueError("--waveform must have --check, which finds what it shows")
    if not args.device.startswith("sim:") or "waves=" in args.device:
        raise ValueError(f"--waveform must be used on sim: without waves of its own, "
                         f"not on {args.device}")
    if not args.waveform.parent.is_dir():
        raise ValueError(f"folder of the waveform must be there: {args.waveform.parent}")


def run(args: argparse.Namespace) -> int:
    """Runs the samples; 1 if something differs from the golden model."""
    began = time.monotonic()
    _check_arguments(args)
    progress = Progress(4)
    with progress.stage(f"read {args.model.name}"):
        graph, file = load_network(args)
        if args.output is not None:
            output_format(args.output, graph.outputs)
        config = config_from(args, file.config if file else None)
        given = _given(args, graph, config, file)
        samples = samples_in(graph, given.arrays)
    for note in given.notes:
        print(f"      {note}", file=sys.stderr)
    with progress.stage(f"open {args.device} with {config.engines} engines x {config.lanes} lanes"):
        core = sparsemac.open(args.device, config)
    with core:
        session = _Session(graph, file, args.per_layer, args.check is not None)
        with progress.stage("compile"):
            model = session.model(core)
        if session.note:
            print(f"      {session.note}", file=sys.stderr)
        batch = _batch(args, graph, file, session, samples, core)
        log = JobLog(core) if args.waveform else None
        with progress.stage(f"run {counted(samples, 'sample')}, {min(batch, samples)} at a time"):
            result, chunk, mismatch = run_chunks(
                model, given.arrays, samples, batch, per_layer=args.per_layer,
                check=args.check is not None, ticker=Ticker(samples),
                begin=log.jobs.clear if log else None)
    drift = _drift(args, file)
    figures = _figures(args, graph, result, samples, batch, core)
    figures["golden_checksums"] = drift
    figures["seconds"] = time.monotonic() - began
    if args.output is not None:
        if result.mismatch is None:
            write_outputs(args.output, result.outputs)
        else:
            print(f"sparsemac: {args.output} was not written, as integers differ", file=sys.stderr)
    if str(args.json) != "-":
        _print(args, figures, result)
    if mismatch is not None and log is not None:
        figures["waveform"] = _waveform(args, core, log, mismatch, chunk, session)
    write_json(args.json, figures)
    return MISMATCH if result.mismatch is not None or drift else OK


def _given(args: argparse.Namespace, graph: Graph, config: sparsemac.CoreConfig,
           file: NetworkFile | None) -> Given:
    """The samples of the files, or random ones."""
    if args.inputs:
        return read_inputs(graph, args.inputs)
    batch = args.batch
    if batch is None and file is not None:
        batch = file.compiled.batch
    return Given(random_inputs(graph, args.seed, batch_of(batch, graph, config)),
                 [f"no INPUT: random samples from seed {args.seed}"])


def _batch(args: argparse.Namespace, graph: Graph, file: NetworkFile | None, session: "_Session",
           samples: int, core: Core) -> int:
    if args.batch is not None:
        return batch_of(args.batch, graph, core.config)
    if file is not None and not session.note:
        return file.compiled.batch
    return default_batch(graph, samples, core.config.lanes)


class _Session:
    """Makes models of one network on any core, and repeats what one of them ran."""

    def __init__(self, graph: Graph, file: NetworkFile | None, per_layer: bool, check: bool
                 ) -> None:
        self._graph, self._file = graph, file
        self._per_layer, self._check = per_layer, check
        self.note = ""

    def model(self, core: Core) -> Model:
        """A model on a core, with the programs of the network file if they fit it."""
        if self._file is not None:
            self.note = preload(core, self._graph, self._file.compiled, self._file.config)
            self.note = self.note and f"compiled again: {self.note}"
        return Model(self._graph, core)

    def repeat(self, chunk: Chunk) -> Callable[[Core], Mismatch | None]:
        """What runs a chunk again on another core."""
        return lambda core: self.model(core).run(
            chunk.inputs, per_layer=self._per_layer, check=self._check).mismatch


def _drift(args: argparse.Namespace, file: NetworkFile | None) -> str:
    """Name of the first node whose golden outputs are not as when the file was written."""
    if args.check is None or file is None:
        return ""
    node = first_difference(file)
    return "" if node is None else node.name


def _waveform(args: argparse.Namespace, core: Core, log: JobLog, mismatch: Mismatch,
              chunk: Chunk, session: _Session) -> dict[str, Any] | None:
    """Records the wrong value and says where."""
    culprit = find_culprit(log, mismatch)
    window: Window | None = None
    if culprit is not None:
        with Progress(1).stage(f"record the waveform of job {culprit.job}"):
            window = record_window(core.uri, core.config, culprit, args.waveform,
                                   session.repeat(chunk), mismatch)
    stream = sys.stderr if str(args.json) == "-" else sys.stdout
    if culprit is None or window is None:
        print("waveform     none: the difference did not show again", file=stream)
        return None
    print(f"waveform     {args.waveform}: cycles {window.first} to {window.last}; the value "
          f"appears at {culprit.address:#x} by cycle {window.cycle}, in job {culprit.job}",
          file=stream)
    return {"file": str(args.waveform), "job": culprit.job, "address": culprit.address,
            "first_cycle": window.first, "last_cycle": window.last, "cycle": window.cycle}


# -- the report ---------------------------------------------------------------------------------


def _figures(args: argparse.Namespace, graph: Graph, result: Inference, samples: int, batch: int,
             core: Core) -> dict[str, Any]:
    mismatch = result.mismatch
    return {
        "network": graph.name,
        "device": args.device,
        "samples": samples,
        "batch": batch,
        "outputs": {name: _output(array) for name, array in result.outputs.items()},
        "checked": args.check,
        "mismatch": None if mismatch is None else {
            "layer": mismatch.layer, "index": list(mismatch.index), "text": str(mismatch),
            "expected": mismatch.expected, "got": mismatch.got, "count": mismatch.count,
            "size": mismatch.size},
        "cycles": result.cycles,
        "cycles_per_sample": result.cycles / samples,
        "macs": result.macs,
        "utilization": result.utilization,
        "jobs": result.jobs,
        "host_seconds": result.host_seconds,
        "device_seconds": result.device_seconds,
        "bytes_to_device": result.bytes_to_device,
        "bytes_from_device": result.bytes_from_device,
        "steps": [_step(step, core.config.engines) for step in result.steps],
        "config": core.config.as_dict(),
    }


def _output(array: np.ndarray[Any, Any]) -> dict[str, Any]:
    described = {"shape": list(array.shape), "dtype": str(array.dtype)}
    return described | ({"values": array.tolist()} if array.size <= WRITTEN else {})


def _step(step: StepReport, engines: int) -> dict[str, Any]:
    counters = step.counters.as_dict() if step.counters else {}
    total = max(1, step.cycles * engines)
    return {**{name: value for name, value in asdict(step).items() if name != "counters"},
            "counters": counters or None,
            "stalls": {name: value / total for name, value in counters.items()
                       if name.startswith("stall_") or name == "idle"}}


def _print(args: argparse.Namespace, f: dict[str, Any], result: Inference) -> None:
    for name, array in result.outputs.items():
        first = array.reshape(len(array), -1)[0] if array.ndim else array.reshape(1)
        more = " ..." if first.size > SHOWN else ""
        values = " ".join(f"{value:g}" for value in first[:SHOWN].tolist())
        print(f"output       {name} {'x'.join(map(str, array.shape))} {array.dtype}; first sample: "
              f"{values}{more}")
    if args.output is not None and result.mismatch is None:
        print(f"written      {args.output}")
    print(f"device       {f['cycles']} cycles, {f['cycles_per_sample']:.0f} per sample; "
          f"{f['utilization']:.1%} of the multipliers' peak; {counted(f['jobs'], 'doorbell')}; "
          f"{f['device_seconds']:.2f} s on {f['device']}")
    host = [step for step in f["steps"] if step["where"] == "host"]
    print(f"host         {f['host_seconds']:.3f} s in {counted(len(host), 'step')}")
    print(f"transfers    {f['bytes_to_device']} bytes to the device, "
          f"{f['bytes_from_device']} bytes from it")
    if args.check:
        text = (f"differs: {f['mismatch']['text']}" if f["mismatch"] else
                "every integer of the device is as the golden model's" if f["jobs"] else
                "nothing ran on the device")
        print(f"check        {text}")
    if f["golden_checksums"]:
        print(f"golden       differs from when the file was written, first in "
              f"{f['golden_checksums']}")
    if args.per_layer:
        print()
        header = ["step", "where", "cycles", "predicted", "MACs", "of peak", "seconds", "lost to"]
        print_table(header, [_row(step) for step in f["steps"]], 2)


def _row(step: dict[str, Any]) -> list[str]:
    if step["where"] == "host":
        return [step["name"], "host", "", "", "", "", f"{step['seconds']:.3f}", ""]
    return [step["name"], "device", str(step["cycles"]), str(step["estimated_cycles"]),
            str(step["macs"]), f"{step['utilization']:.1%}", f"{step['seconds']:.3f}",
            stalls_text(step["stalls"])]
