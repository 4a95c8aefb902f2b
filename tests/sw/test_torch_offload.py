# SPDX-License-Identifier: Apache-2.0
"""PyTorch modules on a device: the integers of the golden model, within a bound of the module."""

import gzip

import numpy as np
import pytest
import sparsemac
from sparsemac.errors import MissingDependency, ModelError
from sparsemac.graph import run_golden

torch = pytest.importorskip("torch")
prune = pytest.importorskip("torch.nn.utils.prune")
nn, functional = torch.nn, torch.nn.functional

#: Largest error of random networks of int8 layers, as a share of the largest output. Weights are
#: rounded by 1/254 of the largest of their row, activations by 1/510 of their range.
BOUND = 0.03

#: Of a network where batch normalization magnifies channels that vary a tenth as much as others.
WIDE_BOUND = 0.15


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small networks gain nothing by more, and lose on a busy machine
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def core():
    with sparsemac.open("reference:") as opened:
        yield opened


def normalized(module, x):
    """Gives batch normalizations the statistics of inputs; prunes layers to 70 % zeros."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            prune.l1_unstructured(part, "weight", 0.7)
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.momentum = 1.0
    with torch.no_grad():
        module.train()(x)
    return module.eval()


def golden(net, *inputs):
    arrays = dict(zip(net.graph.inputs, (x.numpy() for x in inputs), strict=True))
    return [torch.from_numpy(y) for y in run_golden(net.graph, arrays).values()]


def convolution(channels, outputs, *rest, rank=2, **options):
    kind, norm = ((nn.Conv1d, nn.BatchNorm1d), (nn.Conv2d, nn.BatchNorm2d))[rank - 1]
    return nn.Sequential(
        kind(channels, outputs, *rest, bias=False, **options), norm(outputs), nn.ReLU())


class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.first = convolution(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return functional.relu(x + self.second(self.first(x)))


class Columns(nn.Module):
    """Fully connected layers along each axis, as in MLP-Mixer."""

    def __init__(self):
        super().__init__()
        self.across, self.along = nn.Linear(6, 6), nn.Linear(8, 8)

    def forward(self, x):
        x = x + self.across(x.transpose(1, 2)).transpose(1, 2)
        return (x + functional.gelu(self.along(x))).mean(1)


NETWORKS = {
    "mlp": ((12,), lambda: nn.Sequential(
        nn.Linear(12, 30), nn.BatchNorm1d(30), nn.ReLU(), nn.Dropout(), nn.Linear(30, 7))),
    "cnn": ((3, 12, 10), lambda: nn.Sequential(
        convolution(3, 8, 3, padding=1), nn.MaxPool2d(2), convolution(8, 12, (3, 2), stride=(2, 1)),
        nn.Flatten(), nn.Linear(12 * 2 * 4, 10), nn.Softmax(1))),
    "keywords": ((4, 40), lambda: nn.Sequential(
        convolution(4, 8, 5, rank=1, padding="same"), nn.MaxPool1d(2),
        convolution(8, 8, 3, rank=1, dilation=2, groups=2), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
        nn.Linear(8, 5))),
    "mobile": ((3, 16, 16), lambda: nn.Sequential(
        convolution(3, 8, 3, stride=2, padding=1), convolution(8, 8, 3, padding=1, groups=8),
        convolution(8, 12, 1), nn.Hardswish(),
        convolution(12, 12, 3, stride=2, padding=1, groups=12), nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 6))),
    "residual": ((4, 8, 8), lambda: nn.Sequential(
        Residual(4), nn.AvgPool2d(2), Residual(4), nn.Flatten(), nn.Linear(64, 5))),
    "mixer": ((6, 8), Columns),
    "sequence": ((9, 8), lambda: nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("per_channel", [True, False])
def test_integers_are_the_golden_models_and_near_the_modules(name, per_channel, core):
    torch.manual_seed(4)
    shape, make = NETWORKS[name]
    x = torch.randn(32, *shape)
    module = normalized(make(), x)
    net = sparsemac.offload(module, core, example=x[:4], calibration=x, per_channel=per_channel)
    assert net.graph.batchable and not net.model.on_host
    assert not [node.reason for node in net.graph.nodes if node.operation.startswith("float_l")]
    with torch.no_grad():
        found, real = net(x), module(x)
    assert torch.equal(found, *golden(net, x))
    error = (found - real).abs().max() / real.abs().max()
    bound = WIDE_BOUND if name == "mobile" else BOUND
    assert error < bound and next(iter(net.errors.values())).relative < bound
    assert found.dtype == real.dtype and found.shape == real.shape


def test_layers_of_a_chain_pass_integers(core):
    x = torch.randn(8, 3, 12, 10)
    net = sparsemac.offload(normalized(NETWORKS["cnn"][1](), x), core, example=x)
    steps = [node.operation for node in net.graph.nodes if node.layer is None]
    assert steps == ["quantize", "onnx_max_pool", "reshape", "dequantize", "onnx_softmax"]
    net(x)
    assert net.last.macs > 0 and net.last.cycles > 0


# -- accuracy on digits ---------------------------------------------------------------------------


class Digits(nn.Module):
    """A small network for 8 x 8 or 28 x 28 pixels."""

    def __init__(self, side):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.out = nn.Linear(16 * (side // 4) ** 2, 10)

    def forward(self, x):
        x = functional.max_pool2d(functional.relu(self.norm1(self.conv1(x))), 2)
        x = functional.max_pool2d(functional.relu(self.norm2(self.conv2(x))), 2)
        return self.out(torch.flatten(x, 1))


def trained(module, images, labels, epochs):
    torch.manual_seed(5)
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    for epoch in range(epochs):
        if epoch == epochs // 2:  # the rest of the training makes up for what pruning takes away
            for layer in (module.conv1, module.conv2, module.out):
                prune.l1_unstructured(layer, "weight", 0.75)
            optimizer = torch.optim.Adam(module.parameters(), 2e-3)
        for batch in torch.randperm(len(images)).split(32):
            loss = functional.cross_entropy(module(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return module.eval()


def compared(module, core, images, labels, used, bits):
    """Accuracies in reals and in integers behind ``used``, and the mean error of scores.

    Scores beyond those of the calibration are clipped, so that the largest error has no bound.
    """
    net = sparsemac.offload(
        module, core, example=images[:1], calibration=images[:256], weight_bits=bits)
    with torch.no_grad():
        scores = module(images[used:])
    ours, labels = net(images[used:]), labels[used:]
    assert torch.equal(ours, *golden(net, images[used:]))
    right = [(y.argmax(1) == labels).float().mean().item() for y in (scores, ours)]
    return *right, ((ours - scores).abs().mean() / scores.abs().max()).item()


def read_digits(data_dir):
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    return digits.images / 16, digits.target


def read_mnist(data_dir):
    def read(name, header):
        with gzip.open(data_dir / "images" / name) as file:
            return np.frombuffer(file.read(2000 * 784 + header), np.uint8, offset=header)

    images = read("t10k-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28) / 255
    return images, read("t10k-labels-idx1-ubyte.gz", 8)[: len(images)].astype(np.int64)


@pytest.mark.parametrize(("read", "epochs"), [(read_digits, 8), (read_mnist, 2)])
def test_digits_lose_nothing_that_counts(read, epochs, core, data_dir):
    pixels, numbers = read(data_dir)
    order = np.random.default_rng(7).permutation(len(pixels))
    images = torch.tensor(pixels[order, None], dtype=torch.float32)
    labels = torch.tensor(numbers[order])
    used = len(images) - 150
    module = trained(Digits(images.shape[-1]), images[:used], labels[:used], epochs)
    real, ours, error = compared(module, core, images, labels, used, 8)
    assert real > 0.85 and ours > real - 0.02 and error < 0.005
    real, ours, error = compared(module, core, images, labels, used, 4)
    assert ours > real - 0.05 and error < 0.05


# -- the module that is returned ------------------------------------------------------------------


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(6, 4), nn.Linear(5, 4)

    def forward(self, a, b):
        return {"sum": self.left(a) + self.right(b), "both": [self.left(a), (self.right(b), None)]}


def test_several_inputs_and_outputs_keep_their_structure(core):
    a, b = torch.randn(7, 6), torch.randn(7, 5)
    net = sparsemac.offload(Named(), core, example=(a, b))
    found = net(a, b=b)
    assert set(found) == {"sum", "both"} and isinstance(found["both"], list)
    assert found["both"][1][1] is None and len(net.errors) == 3
    flat = [found["sum"], found["both"][0], found["both"][1][0]]
    assert all(torch.equal(x, y) for x, y in zip(flat, golden(net, a, b), strict=True))
    for call, match in [
        (lambda: net(a), r"inputs must be 2 tensors \(a, b of Named\), not 1"),
        (lambda: net(a, b, b), "inputs must be 2 tensors"),
        (lambda: net(a, a=a), "inputs must be a, b of Named, each once, not 'a'"),
        (lambda: net(a, c=b), "not 'c'"), (lambda: net(b, a), r"a must have shape \(n, 6\)"),
    ]:
        with pytest.raises(ModelError, match=match):
            call()


def test_inputs_that_are_not_like_the_example(core):
    x = torch.randn(4, 6)
    net = sparsemac.offload(nn.Linear(6, 3), core, example=x)
    assert net(x[:1]).shape == (1, 3) and net(x.repeat(5, 1)).shape == (20, 3)
    for wrong, match in [
        (x[0], r"input must have shape \(n, 6\), not \(6,\)"), (x[:, :5], "not .4, 5."),
        (x[:0], "inputs must have elements"), (x.double(), "input must hold float32, not float64"),
        (x.int(), "inputs must hold float32 or float64, not torch.int32"),
        (x * float("nan"), "inputs must hold finite values"),
    ]:
        with pytest.raises(ModelError, match=match):
            net(wrong)
    with pytest.raises(TypeError, match="inputs must be a tensor"):
        net(x.numpy())


def test_modules_for_one_batch_only(core):
    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x):
            return self.layer(x - x.mean(0))

    x = torch.randn(4, 6)
    net = sparsemac.offload(Centred(), core, example=x)
    assert torch.equal(net(x), *golden(net, x))
    with pytest.raises(ModelError, match=r"input|x must have shape \(4, 6\), not \(2, 6\)"):
        net(x[:2])
    single = nn.Linear(6, 3)
    net = sparsemac.offload(single, core, example=x[0])
    assert (net(x[0]) - single(x[0])).abs().max() < BOUND * single(x[0]).abs().max()


def test_float64_in_and_out(core):
    x = torch.randn(4, 6, dtype=torch.float64)
    net = sparsemac.offload(nn.Linear(6, 3).double(), core, example=x)
    assert net(x).dtype == torch.float64
    assert torch.equal(net(x), *(y.double() for y in golden(net, x)))


def test_gradients_are_refused_aloud(core):
    x = torch.randn(4, 6)
    net = sparsemac.offload(nn.Linear(6, 3), core, example=x)
    assert not net(x).requires_grad
    with pytest.raises(ModelError, match="must have no gradients asked of it"):
        net(x.clone().requires_grad_()).sum().backward()
    inside = nn.Sequential(nn.Linear(6, 6), net, nn.Linear(3, 2))
    assert inside(x).shape == (4, 2)


def test_it_is_a_module_and_stays_what_it_was(core):
    x = torch.randn(4, 6)
    module = nn.Sequential(nn.Linear(6, 3), nn.Dropout()).train()
    net = sparsemac.offload(module, core, example=x)
    before = net(x)
    with torch.no_grad():
        module[0].weight.zero_()
    assert module.training and torch.equal(net.train()(x), before)
    assert isinstance(net, nn.Module) and "Sequential, 1 layers on reference:" in repr(net)


def test_cores_are_closed_by_who_opened_them(core):
    x = torch.randn(4, 6)
    with sparsemac.offload(nn.Linear(6, 3), example=x) as net:
        net(x)
    with pytest.raises(sparsemac.DeviceError, match="is closed"):
        net(x)
    sparsemac.offload(nn.Linear(6, 3), core, example=x).close()
    assert sparsemac.offload(nn.Linear(6, 3), core, example=x)(x).shape == (4, 3)
    with pytest.raises(ValueError, match="uri must begin with"):
        sparsemac.offload(nn.Linear(6, 3), "nowhere:", example=x)
    with pytest.raises(TypeError, match="device must be a URI or an open Core, not int"):
        sparsemac.offload(nn.Linear(6, 3), 3, example=x)


def test_errors_above_the_bound_are_refused(core):
    torch.manual_seed(6)
    x = torch.randn(16, 64)
    module = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    net = sparsemac.offload(module, core, example=x, max_error=0.03)
    (error,) = net.errors.values()
    assert 0 < error.mean < error.largest < 0.03 * error.span
    with pytest.raises(ModelError, match="error of output .* must be at most 0.0001 of its l"):
        sparsemac.offload(module, core, example=x, max_error=1e-4)


@pytest.mark.parametrize(("options", "error", "match"), [
    ({"weight_bits": 3}, ModelError, "weight_bits must be 4 or 8, not 3"),
    ({"calibration": torch.zeros(2, 5)}, ModelError, "calibration must be like the example"),
    ({"calibration": torch.full((2, 6), torch.inf)}, ModelError, "calibration must hold finite"),
])
def test_options_that_do_not_fit(options, error, match, core):
    with pytest.raises(error, match=match):
        sparsemac.offload(nn.Linear(6, 3), core, example=torch.randn(4, 6), **options)


@pytest.mark.parametrize("module", [
    nn.Linear(6, 3), nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)),
])
@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e6])
def test_weights_of_any_size(module, scale, core):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape) * scale)
    x = torch.randn(4, 6)
    net = sparsemac.offload(module.eval(), core, example=x)
    (error,) = net.errors.values()
    assert error.largest <= BOUND * error.span
    assert torch.equal(net(x), *golden(net, x))


def test_without_torch_the_extra_is_named(monkeypatch):
    import importlib

    def missing(name, *args):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(MissingDependency, match=r"pip install 'sparsemac\[torch\]'"):
        sparsemac.offload(None, example=None)
