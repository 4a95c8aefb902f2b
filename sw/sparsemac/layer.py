# SPDX-License-Identifier: Apache-2.0
"""Layers as the core runs them, and the file that holds a network of them."""

import io
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._checks import as_int_in
from .commands import OutputMode
from .csr import Csr, as_csr, weight_range
from .numerics import MAX_MULTIPLIER_BITS, MAX_SHIFT, pack_int4, quantize_multiplier, unpack_int4

__all__ = ["FILE_VERSION", "LinearLayer", "load_network", "save_network"]

FILE_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearLayer:
    """``y = output(weights @ x + bias)``, in integers.

    Parameters
    ----------
    weights : Csr                  (outputs, inputs)
    weight_bits : int              4 or 8.
    bias : (outputs,) int32        The input's zero point is folded in.  None: no bias.
    mode : OutputMode              RAW: int32 outputs.
    multiplier, shift : (outputs,) For the other modes; see `numerics.requantize`.
    zero_point, low, high : int    Of the output, int8; ReLU is ``low = zero_point``.
    input_scale, output_scale : float, input_zero_point : int
                                   What the integers mean: real = scale * (integer - zero point).
    name : str
    """

    weights: Csr
    weight_bits: int = 8
    bias: NDArray[np.int32] | None = None
    mode: OutputMode = OutputMode.RAW
    multiplier: NDArray[np.uint64] | None = None
    shift: NDArray[np.int64] | None = None
    zero_point: int = 0
    low: int = -128
    high: int = 127
    input_scale: float = 1.0
    input_zero_point: int = 0
    output_scale: float = 1.0
    name: str = "layer"

    def __post_init__(self) -> None:
        low, high = weight_range(self.weight_bits)
        if not isinstance(self.weights, Csr):
            raise TypeError(
                f"weights must be a Csr (see as_csr), not {type(self.weights).__name__}"
            )
        data = self.weights.data
        if data.size and (data.min() < low or data.max() > high):
            raise ValueError(f"weights must be {low} to {high}, not {data.min()} to {data.max()}")
        object.__setattr__(self, "mode", OutputMode(self.mode))
        for name in ("zero_point", "low", "high", "input_zero_point"):
            object.__setattr__(self, name, as_int_in(name, getattr(self, name), -128, 127))
        if self.low > self.high:
            raise ValueError(f"low must be at most high, {self.high}, not {self.low}")
        for name in ("input_scale", "output_scale"):
            scale = getattr(self, name)
            if not (np.isfinite(scale) and scale > 0):
                raise ValueError(f"{name} must be positive and finite, not {scale!r}")
            object.__setattr__(self, name, float(scale))
        self._check_vectors()

    def _check_vectors(self) -> None:
        limits = {"bias": (-(1 << 31), (1 << 31) - 1),
                  "multiplier": (0, (1 << MAX_MULTIPLIER_BITS) - 1), "shift": (0, MAX_SHIFT)}
        quantized = self.mode != OutputMode.RAW
        for name in ("multiplier", "shift"):
            if (getattr(self, name) is None) == quantized:
                need = "given" if quantized else "None"
                raise ValueError(f"{name} must be {need} for output mode {self.mode.name}")
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if value is None:
                continue
            if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu":
                kind = getattr(value, "dtype", type(value).__name__)
                raise TypeError(f"{name} must be an array of integers, not {kind}")
            if value.shape != (self.outputs,):
                raise ValueError(f"{name} must have shape ({self.outputs},), not {value.shape}")
            if value.size and (int(value.min()) < low or int(value.max()) > high):
                raise ValueError(
                    f"{name} must be {low} to {high}, not {value.min()} to {value.max()}"
                )

    @property
    def inputs(self) -> int:
        """Channels of the input."""
        return self.weights.shape[1]

    @property
    def outputs(self) -> int:
        """Channels of the output."""
        return self.weights.shape[0]

    @classmethod
    def from_matrix(
        cls, matrix: Any, *, weight_bits: int = 8, raw: bool = True, name: str = "matrix"
    ) -> "LinearLayer":
        """Makes a layer of a bare integer matrix.

        ``raw`` keeps the int32 sums. Otherwise outputs are requantized to int8, with a factor for
        each row that spreads sums of random int8 inputs over the range: three of their standard
        deviations (input's, 74, times the root of the sum of squared weights) become 127.
        """
        weights = as_csr(matrix, weight_bits=weight_bits)
        if raw:
            return cls(weights=weights, weight_bits=weight_bits, name=name)
        energy = np.concatenate([[0], np.cumsum(weights.data.astype(np.float64) ** 2)])
        norm = np.sqrt(np.maximum(np.diff(energy[weights.indptr]), 1.0))
        multiplier, shift = quantize_multiplier(127 / (3 * 74 * norm))
        return cls(
            weights=weights, weight_bits=weight_bits, mode=OutputMode.DOUBLE, name=name,
            bias=np.zeros(weights.shape[0], np.int32), multiplier=multiplier, shift=shift,
        )


_SCALARS = ("zero_point", "low", "high", "input_scale", "input_zero_point", "output_scale", "name")


def save_network(
    path: str | Path, layers: Sequence[LinearLayer], extras: Mapping[str, Any] | None = None
) -> None:
    """Writes a packed network: one NumPy archive with a header, a checksum and compressed arrays.

    ``extras`` is anything that JSON can hold; `load_network` returns it.
    """
    arrays: dict[str, NDArray[Any]] = {}
    header: dict[str, Any] = {"version": FILE_VERSION, "extras": dict(extras or {}), "layers": []}
    for i, layer in enumerate(layers):
        csr = layer.weights.without_zeros()
        arrays[f"{i}.counts"] = csr.row_lengths.astype(np.uint32)
        narrow = csr.shape[1] <= 1 << 16
        arrays[f"{i}.columns"] = csr.indices.astype(np.uint16 if narrow else np.uint32)
        arrays[f"{i}.data"] = pack_int4(csr.data) if layer.weight_bits == 4 else csr.data
        for name in ("bias", "multiplier", "shift"):
            if (value := getattr(layer, name)) is not None:
                arrays[f"{i}.{name}"] = value
        header["layers"].append({
            "shape": list(csr.shape), "weight_bits": layer.weight_bits, "mode": int(layer.mode),
            **{name: getattr(layer, name) for name in _SCALARS},
        })
    header["checksum"] = _checksum(arrays, header)
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    Path(path).write_bytes(buffer.getvalue())


def _checksum(arrays: Mapping[str, NDArray[Any]], header: Mapping[str, Any]) -> int:
    described = {key: value for key, value in header.items() if key != "checksum"}
    total = zlib.crc32(json.dumps(described, sort_keys=True).encode())
    for name in sorted(arrays):
        if name != "header":
            total = zlib.crc32(name.encode() + arrays[name].tobytes(), total)
    return total


def load_network(path: str | Path) -> tuple[list[LinearLayer], dict[str, Any]]:
    """Reads what `save_network` wrote; returns the layers and the extras.

    Raises
    ------
    ValueError    Naming the file and what is wrong with it: not a network, truncated, another
                  version, or a checksum that differs.
    OSError       If the file cannot be read.
    """
    path = Path(path)
    data = path.read_bytes()
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        header = json.loads(arrays["header"].tobytes())
        version = header["version"]
    except Exception as error:  # damaged archives raise many kinds, which are not documented
        raise ValueError(f"{path.name} must be a packed network: {error}") from None
    if version != FILE_VERSION:
        raise ValueError(f"version of {path.name} must be {FILE_VERSION}, not {version!r}")
    if (found := _checksum(arrays, header)) != header.get("checksum"):
        raise ValueError(
            f"checksum of {path.name} must be {header.get('checksum')!r}, not {found}: "
            f"the file is damaged"
        )
    try:
        layers = [_layer(arrays, i, spec) for i, spec in enumerate(header["layers"])]
        return layers, header["extras"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path.name} must be a packed network: {error!r} is missing") from None


def _layer(arrays: Mapping[str, NDArray[Any]], i: int, spec: Mapping[str, Any]) -> LinearLayer:
    counts = arrays[f"{i}.counts"].astype(np.int64)
    indptr = np.concatenate([[0], np.cumsum(counts)])
    data = arrays[f"{i}.data"]
    if spec["weight_bits"] == 4:
        data = unpack_int4(data, int(indptr[-1]))
    weights = as_csr((data, arrays[f"{i}.columns"], indptr, tuple(spec["shape"])),
                     weight_bits=spec["weight_bits"])
    vectors = {name: arrays.get(f"{i}.{name}") for name in ("bias", "multiplier", "shift")}
    return LinearLayer(
        weights=weights, weight_bits=spec["weight_bits"], mode=OutputMode(spec["mode"]), **vectors,
        **{name: spec[name] for name in _SCALARS},
    )
