# SPDX-License-Identifier: Apache-2.0
"""TensorFlow Lite models: int8 layers for the device, the reference kernels' integers for the rest.

Convolutions, depthwise convolutions and fully connected operators become layers; the others become
host operations with the same integers as TensorFlow Lite's reference kernels. A uint8 tensor is
int8 inside of the graph, with a zero point 128 lower.

Layers round twice, as those kernels and gemmlowp do. So did FULLY_CONNECTED, as the outputs that
are published for whole networks need; LiteRT 2 rounds it once, and can differ by 1.
"""

from collections.abc import Callable
from pathlib import Path

from ...errors import ModelError
from ...graph import Graph
from . import host, layers
from .builder import Builder
from .file import FileOperator, read_file

__all__ = ["load_tflite"]


_HANDLERS: dict[str, Callable[[Builder, FileOperator], None]] = {
    "ADD": host.add,
    "AVERAGE_POOL_2D": host.pool,
    "CONV_2D": layers.convolution,
    "DEPTHWISE_CONV_2D": layers.convolution,
    "DEQUANTIZE": host.dequantize,
    "FULLY_CONNECTED": layers.fully_connected,
    "MAX_POOL_2D": host.pool,
    "MEAN": host.mean,
    "PAD": host.pad,
    "QUANTIZE": host.quantize,
    "RELU": host.relu,
    "RELU6": host.relu,
    "RELU_N1_TO_1": host.relu,
    "RESHAPE": host.reshape,
    "SOFTMAX": host.softmax,
}


def load_tflite(path: str | Path) -> Graph:
    """Reads a quantized TensorFlow Lite model.

    The graph is batchable if every operator keeps the samples along axis 0 apart.

    Raises
    ------
    ModelError           If the file is damaged, or holds what cannot be run (a float model, 16-bit
                         activations, weights with a zero point, an unknown operator); names the
                         operator and the tensor.
    MissingDependency    If the package ``tflite`` is not installed.
    OSError              If the file cannot be read.
    """
    path = Path(path)
    model = read_file(path)
    builder = Builder(model)
    try:
        builder.begin()
        for i, operator in enumerate(model.operators):
            builder.start(i, operator.code)
            if operator.code not in _HANDLERS:
                raise ValueError(f"operator must be one of {', '.join(sorted(_HANDLERS))}, "
                                 f"not {operator.code}")
            _HANDLERS[operator.code](builder, operator)
        return builder.end()
    except ValueError as error:
        raise ModelError(f"{path.name}, {builder.where}: {error}") from error
