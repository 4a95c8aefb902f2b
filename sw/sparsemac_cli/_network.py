# SPDX-License-Identifier: Apache-2.0
"""What the commands on networks share: loading a model, names of operations, tables."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from sparsemac._checks import as_int_in
from sparsemac.config import CoreConfig
from sparsemac.conv import ConvLayer
from sparsemac.csr import Csr
from sparsemac.graph import Graph, Layer, Node, Value
from sparsemac.importers import load_model
from sparsemac.layout import round_up
from sparsemac.netfile import NetworkFile, is_network_file, read_network_file
from sparsemac.precompile import samples_of

__all__ = [
    "add_model_arguments", "batch_of", "counted", "csr_of", "load_network",
    "operation_text", "print_table", "shape_text", "shortened",
]

#: Widest cell of a table [characters]; the JSON output has everything.
WIDEST = 40


def add_model_arguments(parser: argparse.ArgumentParser, batch: str) -> None:
    """Adds the model, what its file may leave open, and the batch, which ``batch`` explains."""
    parser.add_argument(
        "model", metavar="MODEL", type=Path,
        help=".tflite, .onnx, a matrix (.mtx, .smtx, .npz, .npy), or a network file (.smnet)")
    parser.add_argument(
        "--weight-bits", type=int, choices=(4, 8), help="of a matrix (default: 8)")
    parser.add_argument(
        "--batch", type=int, metavar="N", help=f"{batch} (default: one for each lane)")


def batch_of(batch: int | None, graph: Graph, config: CoreConfig) -> int:
    """Samples that run at a time: those asked for, or else one for each lane.

    A graph whose samples see one another, or that was made for more, has its own number.
    """
    made_for = samples_of(graph)
    if batch is None:
        return round_up(config.lanes, made_for) if graph.batchable else made_for
    if not graph.batchable and batch != made_for:
        raise ValueError(f"batch must be {made_for}, not {batch}: samples of {graph.name} see one "
                         f"another")
    if as_int_in("batch", batch, 1, 1 << 20) % made_for:
        raise ValueError(f"batch must be a multiple of {made_for}, not {batch} (nearest legal "
                         f"value: {round_up(batch, made_for)})")
    return batch


def load_network(args: argparse.Namespace) -> tuple[Graph, NetworkFile | None]:
    """Reads the model; the second is what a network file holds beside it."""
    if args.model.is_dir():
        raise ValueError(f"model must be a file, not the folder {args.model}")
    if is_network_file(args.model) or args.model.suffix.lower() == ".smnet":
        file = read_network_file(args.model)
        return file.graph, file
    return load_model(args.model, weight_bits=args.weight_bits), None


# -- words for things ---------------------------------------------------------------------------


def csr_of(layer: Layer) -> Csr:
    """Weights of a layer."""
    return layer.linear.weights if isinstance(layer, ConvLayer) else layer.weights


def shape_text(value: Value) -> str:
    """Shape and type of an array, such as ``1x28x28x1 int8``."""
    if value.shape is None:
        return f"? {value.dtype}"
    return f"{'x'.join(map(str, value.shape)) or 'scalar'} {value.dtype}"


def operation_text(node: Node) -> str:
    """What a node does, such as ``conv 3x3 /2, int4`` or ``reshape``."""
    layer = node.layer
    if layer is None:
        return node.operation
    if not isinstance(layer, ConvLayer):
        return f"linear {layer.inputs} -> {layer.outputs}, int{layer.weight_bits}"
    g = layer.geometry
    kind = "conv"
    if g.groups > 1:
        kind = "depthwise conv" if g.groups == g.channels else f"conv in {g.groups} groups"
    text = f"{kind} {g.kernel[0]}x{g.kernel[1]}"
    if g.stride != (1, 1):
        text += f" /{g.stride[0]}" + (f",{g.stride[1]}" if g.stride[0] != g.stride[1] else "")
    if g.dilation != (1, 1):
        text += f" dilated {g.dilation[0]},{g.dilation[1]}"
    return f"{text}, int{layer.linear.weight_bits}"


def counted(count: int, thing: str) -> str:
    """Such as ``1 doorbell`` or ``2 doorbells``."""
    return f"{count} {thing}{'' if count == 1 else 's'}"


def shortened(text: str, width: int = WIDEST) -> str:
    """Text of at most so many characters: its end says most in the names of layers."""
    return text if len(text) <= width else "..." + text[3 - width:]


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> None:
    """Prints columns under their names: the first ``left`` and the last to the left."""
    rows = [[shortened(cell) if i < left else cell for i, cell in enumerate(row)] for row in rows]
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, *rows]:
        cells = [cell.ljust(width) if i < left or i == len(row) - 1 else cell.rjust(width)
                 for i, (cell, width) in enumerate(zip(row, widths, strict=True))]
        print("  ".join(cells).rstrip())
