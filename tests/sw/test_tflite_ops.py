# SPDX-License-Identifier: Apache-2.0
"""Each operator of TensorFlow Lite against the integers of its reference kernels.

What the models must give was computed once with LiteRT 2.3.0, kernels BUILTIN_REF, and stands here
as a checksum.
"""

import zlib

import pytest
from sparsemac.graph import run_golden
from sparsemac.importers import load_model

pytest.importorskip("tflite", reason="needs the package tflite: pip install 'sparsemac[tflite]'")

from support.tflite_cases import CASES, sample  # noqa: E402

#: Of the output's bytes in order.
EXPECTED = {
    "conv": 0xAE8478EE,
    "conv stride, relu": 0x9F32A841,
    "conv dilated, valid, relu6": 0x60D7B4F4,
    "conv 1 x 1, relu -1 to 1": 0x109DD5C2,
    "conv factor above 1": 0xE36B5B9F,
    "conv int4": 0x6100AE46,
    "conv grouped": 0xD2B20690,
    "depthwise": 0x633D11E6,
    "depthwise times 2": 0x12FBA574,
    "depthwise dilated": 0x5CD7BD62,
    "fully connected": 0x04C7472F,
    "fully connected, flat": 0x3653F4F1,
    "fully connected, axes": 0x512C34A7,
    "fully connected, channels": 0x2ABF12FF,
    "average pool": 0xB9B2986A,
    "average pool valid, relu": 0xAF57FA62,
    "average pool uint8": 0xF986A8AB,
    "max pool": 0x2CEC52F6,
    "max pool valid, relu6": 0x03DF7B7F,
    "mean over the map": 0x2CDE5662,
    "mean over the map, flat": 0x10D91110,
    "mean over channels": 0xD75AE16E,
    "mean over all": 0x3C0C8EA1,
    "add": 0x35A50F02,
    "add wide output, relu": 0xB960585D,
    "add broadcast": 0x5680732D,
    "add of two values": 0x41066DCD,
    "pad": 0x59E8AA34,
    "reshape": 0x85D69995,
    "softmax": 0x562825AC,
    "softmax beta": 0x0E642442,
    "softmax uint8": 0x789EAC7E,
    "relu": 0x31BD4B28,
    "relu6": 0xF6BBD768,
    "relu wider": 0xA88047D4,
    "requantize": 0x01D5FCD1,
    "requantize wider": 0x84DE3537,
    "real": 0x7837B171,
}


@pytest.mark.parametrize("name", CASES)
def test_operator_is_bit_exact(tmp_path, name):
    path = tmp_path / "model.tflite"
    path.write_bytes(CASES[name].to_bytes())
    graph = load_model(path)
    (y,) = run_golden(graph, sample(CASES[name], name)).values()
    assert y.shape == tuple(CASES[name].tensors[-1].shape)
    assert zlib.crc32(y.tobytes()) == EXPECTED[name]
