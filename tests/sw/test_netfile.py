# SPDX-License-Identifier: Apache-2.0
"""The network file: what it holds, that it is the same to the byte, and what it refuses."""

import copy
import dataclasses
import hashlib
import io
import json
import random
import subprocess
import sys
import zipfile
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from sparsemac import _netcodec, netfile
from sparsemac.commands import StreamFormat
from sparsemac.config import CoreConfig
from sparsemac.conv import ConvLayer, Geometry
from sparsemac.conv_tiling import ConvTiling, Pass
from sparsemac.emitter import LayerPlan
from sparsemac.errors import ModelError
from sparsemac.graph import Graph, Node, Value, run_golden
from sparsemac.importers import load_model
from sparsemac.layer import LinearLayer
from sparsemac.layout import Area, Tensor
from sparsemac.netfile import read_network_file, write_network_file
from sparsemac.precompile import Compiled, Placed, SegmentProgram, compile_graph
from sparsemac.program import Program
from sparsemac.tiling import RowTile, Tiling
from support.layers import random_layer

CONFIG = CoreConfig(engines=2, lanes=4, act_depth=256, fifo_depth=32)

#: Where the image of the first program stands in the manifest.
IMAGE = ("compiled", "programs", 0, "program", "image")

#: Attributes that a file of this version has of each class.
KEYS = {
    3: {
        Graph: "name values inputs outputs nodes batchable",
        Value: "name shape dtype scale zero_point",
        Node: "name inputs outputs layer operation attributes source reason",
        LinearLayer: "weights weight_bits bias mode multiplier shift zero_point low high "
                     "input_scale input_zero_point output_scale name",
        ConvLayer: "linear geometry channels_last one_dimensional",
        Geometry: "channels height width kernel stride dilation padding groups",
        Compiled: "core_version memory_base batch programs placed",
        SegmentProgram: "nodes columns program",
        Placed: "where reason doorbell macs cycles utilization",
        netfile.Golden: "seed batch nodes",
        Program: "image image_address command_count inputs outputs input_padding fills areas macs "
                 "entries fillers format_bits parameter_bits estimated_cycles layers",
        Tensor: "address channels height width columns lanes pads plane pitch raw strips "
                "strip_height",
        Area: "address length writable",
        LayerPlan: "name fmt tiling macs estimated_cycles",
        StreamFormat: "delta_bits absolute rice weight_bits count_bits offset_bits",
        Tiling: "positions columns row_tiles regions resident rows_per_engine",
        RowTile: "rows replayed",
        ConvTiling: "band blocks width passes regions rows_per_engine",
        Pass: "channels inputs",
    },
}


@pytest.fixture(scope="module")
def graph():
    rng = np.random.default_rng(7)
    geometry = Geometry(channels=2, height=5, width=4, kernel=(3, 3), padding=(1, 1, 1, 1),
                        groups=2)
    conv = ConvLayer(linear=random_layer(rng, 4, 9, name="conv"), geometry=geometry)
    values = [Value(name="x", shape=(1, 5, 4, 2), dtype="int8", scale=0.1, zero_point=5),
              Value(name="maps", shape=(1, 5, 4, 4), dtype="int8"),
              Value(name="flat", shape=None, dtype="int8"),
              Value(name="row", shape=(1, 80), dtype="int8"),
              Value(name="y", shape=(1, 6), dtype="int8")]
    nodes = [
        Node(name="conv", inputs=("x",), outputs=("maps",), layer=conv, source="operator 0"),
        Node(name="flatten", inputs=("maps",), outputs=("flat",), operation="reshape",
             attributes={"shape": [-1, 80]}, reason="only moves data"),
        Node(name="clip", inputs=("flat",), outputs=("row",), operation="onnx_clip",
             attributes={"low": np.int8(-90), "high": np.array(90, np.int8)}),
        Node(name="dense", inputs=("row",), outputs=("y",),
             layer=random_layer(rng, 6, 80, 0.1, weight_bits=4, name="dense")),
    ]
    return Graph(name="small", values={v.name: v for v in values}, inputs=("x",), outputs=("y",),
                 nodes=tuple(nodes), batchable=True)


@pytest.fixture(scope="module")
def compiled(graph):
    return compile_graph(graph, CONFIG, 4)


@pytest.fixture(scope="module")
def data(graph, compiled, tmp_path_factory):
    path = tmp_path_factory.mktemp("net") / "small.smnet"
    write_network_file(path, graph, CONFIG, compiled)
    return path.read_bytes()


@pytest.fixture
def put(tmp_path):
    def write(content):
        path = tmp_path / "net.smnet"
        path.write_bytes(content)
        return path
    return write


def signed(content):
    """A file with its right checksum."""
    head = content[:-64]
    return head + hashlib.sha256(head).hexdigest().encode()


def members(content):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return json.loads(archive.read(netfile.MANIFEST)), archive.read(netfile.ARRAYS)


def rebuilt(manifest, arrays, *, compression=zipfile.ZIP_STORED, extra=(),
            version=netfile.FILE_VERSION):
    """A file of other contents, with its right checksum."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        text = manifest if isinstance(manifest, str) else json.dumps(manifest)
        archive.writestr(netfile.MANIFEST, text)
        archive.writestr(netfile.ARRAYS, arrays)
        for name in extra:
            archive.writestr(name, b"")
        archive.comment = f"sparsemac network {version} sha256 ".encode() + b"0" * 64
    return signed(buffer.getvalue())


def changed(content, *path, value):
    manifest, arrays = members(content)
    place = manifest
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return rebuilt(manifest, arrays)


def assert_same(a, b):
    """Compares two values of the same dataclasses, array by array."""
    assert type(a) is type(b)
    if dataclasses.is_dataclass(a):
        for field in dataclasses.fields(a):
            assert_same(getattr(a, field.name), getattr(b, field.name))
    elif isinstance(a, (tuple, list)):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (np.ndarray, np.generic)):
        assert a.dtype == b.dtype and a.shape == b.shape and (a == b).all()
    else:
        assert a == b


def test_everything_comes_back(graph, compiled, data, put):
    file = read_network_file(put(data))
    assert_same(file.graph, graph)
    assert_same(file.compiled, compiled)
    assert file.config == CONFIG
    x = np.random.default_rng(1).integers(-128, 128, (3, 5, 4, 2)).astype(np.int8)
    assert (run_golden(file.graph, x)["y"] == run_golden(graph, x)["y"]).all()
    assert_same(load_model(put(data)), graph)


def test_same_network_makes_the_same_bytes(graph, compiled, data, put, tmp_path):
    again = tmp_path / "again.smnet"
    write_network_file(again, graph, CONFIG, compiled)
    assert again.read_bytes() == data
    file = read_network_file(put(data))
    write_network_file(again, file.graph, file.config, file.compiled)
    assert again.read_bytes() == data


def test_is_an_ordinary_zip_archive_without_dates(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        assert {info.date_time[0] for info in archive.infolist()} == {1980}


def test_keys_change_with_the_version_only():
    keys = KEYS[netfile.FILE_VERSION]
    fields = {cls: " ".join(f.name for f in dataclasses.fields(cls)) for cls in keys}
    assert fields == keys, "attributes changed: raise FILE_VERSION"


def test_parameters_of_host_operations_come_back():
    value = {
        "none": None, "flag": True, "int": 1 << 70, "float": 0.1, "text": "a\u00e9",
        "infinite": float("-inf"), "list": [1, [2.5, "x"]], "tuple": (1, (2,), []),
        "dict": {"list": [1]}, "scalar": np.float32(0.1), "zero": np.array(3, np.uint8),
        "int4": np.arange(-8, 8).astype(ml_dtypes.int4), "empty": np.zeros((0, 3), np.float16),
        "big": np.array([[1, 2], [3, 4]], ">i4").T, "flags": np.array([True, False]),
    }
    table = _netcodec.ArrayTable()
    text = json.dumps(_netcodec.encode(value, Any, table, "v"))
    reader = _netcodec.ArrayReader(table.entries, bytes(table.data))
    value["big"] = value["big"].astype("i4")
    assert_same(_netcodec.decode(json.loads(text), Any, reader, "v"), value)
    reader.check_all_taken()


@pytest.mark.parametrize("value", [object(), {1: 2}, b"x", np.array(["a"]), {"x": {1, 2}}])
def test_parameters_that_cannot_be_written_are_named(value, graph, compiled, tmp_path):
    node = dataclasses.replace(graph.nodes[1], attributes={"shape": value})
    other = graph.with_nodes([graph.nodes[0], node, *graph.nodes[2:]], graph.values)
    path = tmp_path / "x.smnet"
    with pytest.raises(ModelError, match=r"graph\.nodes\[1\]\.attributes\.shape"):
        write_network_file(path, other, CONFIG, compiled)
    assert list(tmp_path.iterdir()) == []


def test_opens_without_the_packages_of_importers(data, put):
    code = ("import sys\n"
            "for name in ('onnx', 'tflite', 'torch', 'flatbuffers', 'scipy', 'amaranth'):\n"
            "    sys.modules[name] = None\n"
            "from sparsemac.importers import load_model\n"
            f"print(len(load_model({str(put(data))!r}).nodes))\n")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (run.stdout.strip(), run.stderr) == ("4", "")


def test_golden_checksums_find_the_first_node_that_differs(graph, data, put):
    file = read_network_file(put(data))
    assert file.golden is not None and len(file.golden.nodes) == 4
    assert netfile.first_difference(file) is None
    conv = graph.nodes[0].layer
    bias = conv.linear.bias.copy()
    bias[2] += 10_000
    layer = dataclasses.replace(conv, linear=dataclasses.replace(conv.linear, bias=bias))
    nodes = [dataclasses.replace(graph.nodes[0], layer=layer), *graph.nodes[1:]]
    other = dataclasses.replace(file, graph=graph.with_nodes(nodes, graph.values))
    assert netfile.first_difference(other).name == "conv"


def test_random_inputs_follow_shapes_and_types(graph):
    (x,) = netfile.random_inputs(graph, 3, 2).values()
    assert x.shape == (2, 5, 4, 2) and x.dtype == np.int8 and x.min() < -100 and x.max() > 100
    assert (x == netfile.random_inputs(graph, 3, 2)["x"]).all()
    with pytest.raises(ValueError, match="batch must be 1 to"):
        netfile.random_inputs(graph, 3, 0)


# -- what is refused ----------------------------------------------------------------------------


def test_another_version_is_named(data, put):
    with pytest.raises(ModelError, match=r"net\.smnet: version .* must be 3, not 1"):
        read_network_file(put(rebuilt(*members(data), version=1)))


@pytest.mark.parametrize("keep", [0, 1, 4, 29, 30, 43])
def test_less_than_the_first_member_is_no_network(data, put, keep):
    with pytest.raises(ModelError, match="not a network file"):
        read_network_file(put(data[:keep]))


@pytest.mark.parametrize("lost", [1, 2, 63, 64, 65, 200, 5000])
def test_a_truncated_file_is_named(data, put, lost):
    with pytest.raises(ModelError, match="truncated"):
        read_network_file(put(data[:-lost]))


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"PK\x03\x04", b"PK\x05\x06" + bytes(18)])
def test_other_files_are_no_networks(put, content):
    with pytest.raises(ModelError, match="not a network file"):
        read_network_file(put(content))


def test_another_archive_is_no_network(put):
    buffer = io.BytesIO()
    np.savez(buffer, x=np.zeros(3))
    with pytest.raises(ModelError, match="not a network file"):
        read_network_file(put(buffer.getvalue()))


def test_one_changed_byte_anywhere_is_found(data, put):
    for at in np.linspace(44, len(data) - 1, 60).astype(int):
        content = bytearray(data)
        content[at] ^= 0x10
        with pytest.raises(ModelError, match="checksum|truncated"):
            read_network_file(put(bytes(content)))


def test_compressed_members_are_refused(data, put):
    bomb = rebuilt(members(data)[0], bytes(50_000_000), compression=zipfile.ZIP_DEFLATED)
    assert len(bomb) < 1_000_000
    with pytest.raises(ModelError, match="must be stored, not compressed"):
        read_network_file(put(bomb))


def test_other_members_are_refused(data, put):
    with pytest.raises(ModelError, match="members must be sparsemac.json and arrays.bin"):
        read_network_file(put(rebuilt(*members(data), extra=["more"])))


@pytest.mark.parametrize(("path", "value", "message"), [
    (("more",), 1, "keys of sparsemac.json must be"),
    (("graph", "more"), 1, "graph must have no key but name, values"),
    (("graph", "nodes", 0, "layer", "linear", "more"), 1, r"nodes\[0\]\.layer\.linear must have"),
    (("graph", "nodes", 0, "layer", "class"), "Layer", "must be one of LinearLayer, ConvLayer"),
    (("graph", "nodes", 1, "operation"), "explode", "host operation of flatten must be known"),
    (("graph", "nodes", 1, "attributes"), [], "attributes must be an object"),
    (("graph", "nodes", 1, "attributes", "shape"), [1], "must be no bare list"),
    (("graph", "nodes", 2, "inputs"), ["nothing"], "'nothing' of clip must be made by a node"),
    (("graph", "values", "x", "dtype"), "object", "must hold one of bool, int8"),
    (("graph", "values", "x", "shape"), [1, -5], "must not be negative"),
    (("graph", "values", "x", "shape"), [True], "must be an integer, not True"),
    (("graph", "values", "x", "scale"), {"float": "1"}, "must be a list"),
    (("graph", "values", "x", "scale"), {"list": []}, "must have no key but float"),
    (("graph", "values", "x", "scale"), 10**400, "too large to convert to float"),
    (("graph", "nodes", 3, "layer", "weight_bits"), 5, "weight_bits must be 4 or 8, not 5"),
    (("graph", "nodes", 3, "layer", "mode"), 9, "9 is not a valid OutputMode"),
    (("graph", "nodes", 3, "layer", "weights", "bits"), 2, "bits must be 4 or 8, not 2"),
    (("graph", "nodes", 3, "layer", "weights", "shape"), [6, 10], "indices must be 0 to 9"),
    (("graph", "nodes", 0, "layer", "geometry", "groups"), 3, "groups must divide"),
    (("config", "lanes"), 3, "config: lanes must be a power of two"),
    (("config", "more"), 3, "config: parameter must be one of"),
    (("config", "schema"), 9, "config: schema must be 1, not 9"),
    (IMAGE, 10_000, "must be one of"),
    (IMAGE, {"byte": 0, "count": 1 << 40}, "must be at most"),
    (IMAGE, {"byte": 256, "count": 1}, "must be 0 to 255"),
    (("compiled", "programs"), [], "array .* must be used"),
    (("compiled", "placed"), [], "compiled must place 4 nodes, not 0"),
    (("golden", "nodes"), [], "golden must have 4 nodes, not 0"),
    (("arrays", 0, "offset"), 1 << 40, "must lie in the"),
    (("arrays", 0, "shape"), [1 << 50, 1 << 50], "must lie in the"),
    (("arrays", 0, "shape"), [-1, -4], "must lie in the"),
    (("arrays", 0, "dtype"), "object", "dtype of array 0 must be one of"),
    (("arrays", 0, "dtype"), ["int8"], "dtype of array 0 must be one of"),
    (("arrays", 0, "more"), 0, "must have no key but dtype"),
    (("generator",), 3, "generator must be text, not 3"),
])
def test_what_is_not_as_documented_is_named(data, put, path, value, message):
    with pytest.raises(ModelError, match=message):
        read_network_file(put(changed(data, *path, value=value)))


def test_an_array_is_used_once(data, put):
    other = members(data)[0]["graph"]["nodes"][0]["layer"]["linear"]["weights"]["counts"]
    content = changed(data, *IMAGE, value=other)
    with pytest.raises(ModelError, match=f"{other} was used before"):
        read_network_file(put(content))


@pytest.mark.parametrize("text", [
    "", "{", "[]", "null", '{"a": NaN}', "[" * 100_000, '{"a":' * 100_000, "1" * 10_000])
def test_manifests_that_are_no_objects_are_refused(data, put, text):
    with pytest.raises(ModelError, match=r"net\.smnet: "):
        read_network_file(put(rebuilt(text, members(data)[1])))


# -- fuzzing ------------------------------------------------------------------------------------

_JUNK = (None, True, False, -1, 0, 1, 7, 1 << 31, 1 << 64, -0.5, 1e300, "", "x", "inf", [], [0],
         {}, {"array": 0}, {"list": []}, {"class": "Csr"}, [[]], float("inf"))


def places(value, found):
    """All places of a manifest, as (container, key)."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        found.append((value, key))
        if isinstance(item, (dict, list)):
            places(item, found)
    return found


def mutated(data, rng):
    """A file with its right checksum, some of whose bytes or values of the manifest are others."""
    kind = rng.randrange(3)
    if kind == 0:
        content = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(44, len(content) - 64)] = rng.randrange(256)
        return signed(bytes(content))
    manifest, arrays = members(data)
    for _ in range(rng.randint(1, 3)):
        container, key = rng.choice(places(manifest, []))
        if kind == 1 or isinstance(container, list):
            container[key] = copy.deepcopy(rng.choice(_JUNK))
        elif rng.random() < 0.5:
            del container[key]
        else:
            container[str(rng.random())] = container.pop(key)
    return rebuilt(manifest, arrays)


def fuzz(data, put, seeds):
    refused = 0
    for seed in seeds:
        content = mutated(data, random.Random(seed))
        try:
            read_network_file(put(content))
        except ModelError:
            refused += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
    return refused


def test_mutated_files_are_read_or_refused(data, put):
    assert fuzz(data, put, range(60)) > 20


@pytest.mark.slow
def test_many_mutated_files_are_read_or_refused(data, put):
    assert fuzz(data, put, range(1000, 3000)) > 700
