# SPDX-License-Identifier: Apache-2.0
"""Modules read as float graphs: the graph's outputs are the module's."""

import numpy as np
import pytest
from sparsemac.errors import ModelError
from sparsemac.graph import run_golden

torch = pytest.importorskip("torch")
nn, functional = torch.nn, torch.nn.functional
prune = pytest.importorskip("torch.nn.utils.prune")

from sparsemac.importers.torch import import_module  # noqa: E402

SHAPES = {"vector": (3, 12), "line": (3, 4, 16), "map": (3, 4, 12, 10)}


torch.manual_seed(2)  # of the layers below, made before any test runs


@pytest.fixture(autouse=True)
def seeded():
    """The same modules in every run, whichever tests ran before."""
    torch.manual_seed(2)


def given(kind, scale=1.0):
    return scale * torch.randn(*SHAPES[kind], generator=torch.Generator().manual_seed(1))


class Call(nn.Module):
    """A module whose forward is a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def randomized(module):
    """Fills what a new module has in numbers without meaning."""
    torch.manual_seed(2)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is not None:
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.5, 2)
        if isinstance(getattr(part, "weight", None), nn.Parameter) and part.weight.ndim == 1:
            nn.init.normal_(part.weight)
    return module


def check(module, x, batchable=True):
    """Reads a module and compares it on other inputs, of another batch if it can have one."""
    module = randomized(module)
    graph = import_module(module, x)
    assert graph.batchable == batchable
    other = torch.cat([-x, x.flip(0) + 0.25]) if batchable else x * 1.5
    module.eval()
    with torch.no_grad():
        wanted = module(other)
    for found, real in zip(run_golden(graph, other.numpy()).values(),
                           wanted if isinstance(wanted, tuple) else (wanted,), strict=True):
        assert str(real.dtype) == f"torch.{found.dtype.name}"
        np.testing.assert_allclose(found, real.numpy(), rtol=1e-4, atol=1e-5)
    return graph


def operations(graph):
    return [node.operation for node in graph.nodes]


LAYERS = [
    ("vector", nn.Linear(12, 5)),
    ("map", nn.Linear(10, 5, bias=False)),
    ("line", nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2)),
    ("line", nn.Conv1d(4, 8, 4, padding="same", groups=4)),
    ("map", nn.Conv2d(4, 8, (3, 2), padding="same", dilation=(1, 2), bias=False)),
    ("map", nn.Conv2d(4, 8, 3, padding="valid", stride=(2, 1))),
    ("map", nn.Conv2d(4, 8, 3, padding=2, padding_mode="reflect")),
    ("map", nn.Conv2d(4, 8, 3, padding=(1, 0), padding_mode="replicate")),
    ("map", nn.Conv2d(4, 8, 3, padding=1, padding_mode="circular")),
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize(("kind", "module"), LAYERS, ids=lambda p: str(p)[:60])
def test_layers(kind, module):
    assert operations(check(module, given(kind)))[-1] in ("float_linear", "float_conv")


MODULES = [
    ("map", nn.BatchNorm2d(4)), ("line", nn.BatchNorm1d(4, affine=False)),
    ("vector", nn.BatchNorm1d(12)),
    ("map", nn.MaxPool2d(3, 2, 1, ceil_mode=True)), ("map", nn.MaxPool2d(2, dilation=2)),
    ("line", nn.MaxPool1d(3, 2)), ("line", nn.AvgPool1d(3, 2, 1)),
    ("map", nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False)),
    ("map", nn.AvgPool2d((3, 2), padding=(1, 0))),
    ("map", nn.AdaptiveAvgPool2d(1)), ("map", nn.AdaptiveAvgPool2d((5, 3))),
    ("map", nn.AdaptiveAvgPool2d((None, 5))), ("line", nn.AdaptiveAvgPool1d(5)),
    ("map", nn.AdaptiveMaxPool2d((4, 5))),
    ("map", nn.LayerNorm(10)), ("map", nn.LayerNorm((12, 10), bias=False)),
    ("map", nn.GroupNorm(2, 4)),
    ("map", nn.InstanceNorm2d(4, affine=True)), ("line", nn.GLU(1)), ("map", nn.PixelShuffle(2)),
    ("map", nn.PReLU()), ("map", nn.PReLU(4)),
    ("vector", nn.ELU(0.7)), ("vector", nn.GELU()), ("vector", nn.GELU("tanh")),
    ("vector", nn.Softplus(2.0, 40.0)), ("vector", nn.Softmax(1)), ("map", nn.Softmax(-1)),
    ("vector", nn.LogSoftmax(-1)), ("vector", nn.Hardtanh(-0.3, 0.4)), ("vector", nn.ReLU6()),
    ("vector", nn.LeakyReLU(0.2)), ("map", nn.Flatten(2)), ("vector", nn.Unflatten(1, (3, -1))),
    ("map", nn.ZeroPad2d((1, 2, -1, 3))), ("line", nn.ConstantPad1d(2, 1.5)),
    ("map", nn.Upsample(scale_factor=2)), ("map", nn.Upsample(size=(7, 9), mode="bilinear")),
    ("map", nn.Upsample(scale_factor=1.5, mode="bilinear", align_corners=True)),
    *(("vector", getattr(nn, name)()) for name in (
        "Dropout", "Hardsigmoid", "Hardswish", "Identity", "LogSigmoid", "Mish", "SELU", "Sigmoid",
        "SiLU", "Softsign", "Tanh")),
]


@pytest.mark.parametrize(("kind", "module"), MODULES, ids=lambda p: str(p)[:60])
def test_modules(kind, module):
    check(module, given(kind, 2.0))


FUNCTIONS = {
    "vector": [
        lambda x: (2 - x) / 3 + x**2 * 0.5 - 1 / (x.abs() + 1),
        lambda x: 2**x - abs(x), lambda x: torch.exp(-x).log().neg(),
        lambda x: torch.rsqrt(x.square() + 1) * torch.reciprocal(x + 9),
        lambda x: torch.add(x, x * x, alpha=3) - torch.sub(x, 2, alpha=0.5),
        lambda x: x + torch.arange(12), lambda x: x + torch.ones(12, dtype=torch.float64),
        lambda x: x.double() * 2, lambda x: x.clamp(min=-0.5), lambda x: torch.clip(x, max=0.1),
        lambda x: torch.clamp(x, torch.full((12,), -0.1), torch.full((12,), 0.1)),
        lambda x: functional.hardtanh(x), lambda x: torch.max(x, x * 0.5).maximum(-x),
        lambda x: x @ torch.ones(12, 3), lambda x: torch.addmm(torch.ones(3), x, torch.ones(12, 3)),
        lambda x: torch.addmm(x[:, :3], x, torch.ones(12, 3), beta=2, alpha=0.5),
        lambda x: functional.linear(x, torch.ones(2, 12), torch.ones(2)),
        lambda x: functional.softmax(x, dim=-1) + torch.softmax(x, 1),
        lambda x: functional.log_softmax(x, 1), lambda x: x.argmax(1),
        lambda x: torch.argmax(x, -1),
        lambda x: functional.dropout(x, 0.5, False), lambda x: x * len(x.shape),
        lambda x: torch.stack((x, -x), -1).mean(-1), lambda x: sum(x.chunk(3, 1)),
        lambda x: torch.split(x, [3, 9], 1)[1], lambda x: x.split(5, 1)[2],
        lambda x: torch.mul(*x.split(6, 1)), lambda x: x.narrow(1, 2, 3), lambda x: (x, x * 2, x),
        lambda x: x * 2 if x.dim() == 2 else x, lambda x: (x * 1).clamp_(-0.2, 0.3),
        lambda x: functional.relu(x * 1, inplace=True), lambda x: (x * 1).relu_().sqrt_(),
    ],
    "map": [
        lambda x: x.view(x.size(0), -1), lambda x: x.reshape(x.shape[0], x.shape[1], -1),
        lambda x: x.reshape(x.shape[0] * x.shape[1], -1).mean(1).reshape(-1, 4),
        lambda x: torch.flatten(x, 1, 2), lambda x: x.permute(0, 3, 1, 2),
        lambda x: torch.permute(x, (0, 2, 3, 1)), lambda x: x.transpose(1, -1).contiguous(),
        lambda x: x.mT, lambda x: x[:, :1].squeeze(1), lambda x: x.unsqueeze(-1).unsqueeze(1),
        lambda x: torch.cat([x, x * 2], dim=1), lambda x: x.select(2, -1),
        lambda x: x[..., -1, 2:7:2], lambda x: x[:, None, 1], lambda x: x[:, -3:, 2:-2],
        lambda x: functional.pad(x, (1, 1, 2, 0), mode="replicate"),
        lambda x: functional.pad(x, (1, 2, 0, 3), value=0.5), lambda x: x.mean((2, 3)),
        lambda x: x.sum(-1, keepdim=True), lambda x: torch.amax(x, (1, 2)) - x.amin((1, 2)),
        lambda x: torch.matmul(x, x.transpose(-1, -2)), lambda x: torch.ones(5, 12) @ x,
        lambda x: functional.interpolate(x, scale_factor=0.5, mode="bilinear"),
        lambda x: functional.max_pool2d(x, 2), lambda x: functional.avg_pool2d(x, 2, 1),
        lambda x: functional.adaptive_avg_pool2d(x, 1).flatten(1),
        lambda x: functional.conv2d(x, torch.ones(2, 4, 3, 3), padding=1),
        lambda x: functional.batch_norm(x, torch.ones(4), torch.ones(4)),
        lambda x: x.view(-1, 2, 2, 12, 10).transpose(1, 2).reshape(-1, 4, 12, 10),  # shuffles
    ],
}


@pytest.mark.parametrize(
    ("kind", "number"), [(k, i) for k, fs in FUNCTIONS.items() for i in range(len(fs))])
def test_functions(kind, number):
    check(Call(FUNCTIONS[kind][number]), given(kind))


@pytest.mark.parametrize(("kind", "function"), [
    ("vector", lambda x: x - x.mean(0)), ("vector", lambda x: x * x.max()),
    ("vector", lambda x: x.T), ("vector", lambda x: x[:2]), ("vector", lambda x: x.view(3, 2, 6)),
    ("vector", lambda x: x * len(x)), ("map", lambda x: x.view(-1, 10)),
    ("vector", lambda x: functional.softmax(x, 0)),
])
def test_modules_whose_samples_see_one_another_keep_their_batch(kind, function):
    check(Call(function), given(kind), batchable=False)


def test_one_sample_is_enough_of_an_example():
    module = nn.Sequential(nn.Conv2d(4, 2, 3), nn.Flatten(), nn.Linear(160, 3))
    graph = import_module(module, given("map")[:1])
    assert graph.batchable and graph.values[graph.outputs[0]].shape == (1, 3)
    x = given("map")
    np.testing.assert_allclose(next(iter(run_golden(graph, x.numpy()).values())),
                               module(x).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_maps_without_samples():
    module = nn.Sequential(nn.Conv2d(4, 2, 3), nn.MaxPool2d(2))
    graph = check(module, given("map")[0], batchable=False)
    assert graph.values[graph.outputs[0]].shape == (2, 5, 4)


def test_float64_stays():
    check(nn.Sequential(nn.Linear(12, 4), nn.Sigmoid()).double(), given("vector").double())


# -- weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "module"), [
    ("map", nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU())),
    ("line", nn.Sequential(nn.Conv1d(4, 6, 3, bias=False), nn.BatchNorm1d(6, affine=False))),
    ("vector", nn.Sequential(nn.Linear(12, 6), nn.Dropout(), nn.BatchNorm1d(6))),
])
def test_batch_normalization_is_folded(kind, module):
    graph = check(module, given(kind))
    assert len(graph.nodes) == (2 if len(module) == 3 and kind == "map" else 1)
    assert "BatchNorm" in graph.nodes[0].source


def test_batch_normalization_is_not_folded_into_what_others_use():
    class Branched(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            y = self.conv(x)
            return self.norm(y) + y

    assert "onnx_elementwise" in operations(check(Branched(), given("map")))


def test_pruned_weights_are_zero():
    conv, dense = nn.Conv2d(4, 6, 3), nn.Linear(480, 5)
    prune.l1_unstructured(conv, "weight", 0.8)
    prune.ln_structured(dense, "weight", 0.6, n=2, dim=0)
    prune.random_unstructured(dense, "bias", 0.5)
    module = nn.Sequential(conv, nn.Flatten(), dense)
    graph = check(module, given("map"))
    first, last = graph.nodes[0].attributes, graph.nodes[-1].attributes
    assert (first["weight"] == 0).mean() == pytest.approx(0.8, abs=0.01)
    assert (last["weight"] == 0).all(1).sum() == 3 and (last["bias"] == 0).sum() >= 2
    assert prune.is_pruned(module) and isinstance(conv.weight_orig, nn.Parameter)


class OwnWeights(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 12))

    def forward(self, x):
        return functional.linear(x, self.weight) * self.weight.abs().max()


def test_pruned_weights_of_a_module_of_ones_own():
    module = prune.l1_unstructured(OwnWeights(), "weight", 0.5)
    before = module.weight
    graph = check(nn.Sequential(module), given("vector"))
    assert (graph.nodes[0].attributes["weight"] == 0).sum() == 30
    assert torch.equal(module.weight, before) and isinstance(module.weight, torch.Tensor)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("wrap", [
    torch.nn.utils.parametrizations.weight_norm, torch.nn.utils.parametrizations.spectral_norm,
    torch.nn.utils.spectral_norm,
])
def test_weights_that_are_computed(wrap):
    check(nn.Sequential(wrap(nn.Linear(12, 5))), given("vector"))


def test_subclasses_of_layers():
    class Named(nn.Linear):
        pass

    class Doubled(nn.Linear):
        def forward(self, input):
            return super().forward(input) * 2

    graph = check(nn.Sequential(Named(12, 5), Doubled(5, 3)), given("vector"))
    assert operations(graph) == ["float_linear", "float_linear", "onnx_elementwise"]


# -- structure ------------------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        out += x
        return self.relu(out)


def test_residual_blocks():
    graph = check(nn.Sequential(Residual(), Residual()), given("map"))
    block = ["float_conv", "clamp", "float_conv", "onnx_elementwise", "clamp"]
    assert operations(graph) == 2 * block


def test_in_place_modules_change_what_others_read():
    check(Call(lambda x: functional.relu(x.mul(1), inplace=True)), given("map"))
    module = Call(lambda x: module.relu(x) + x)
    module.relu = nn.ReLU(inplace=True)
    x = given("map")
    before = x.clone()
    graph = import_module(module, x)
    assert operations(graph) == ["clamp", "onnx_elementwise"] and torch.equal(x, before)
    found = next(iter(run_golden(graph, x.numpy()).values()))
    np.testing.assert_allclose(found, 2 * x.clamp(min=0).numpy())


@pytest.mark.slow
def test_compiled_modules_are_read_as_what_they_were():
    check(torch.compile(nn.Linear(12, 5)), given("vector"))


def test_one_module_used_twice():
    layer = nn.Linear(12, 12)
    graph = check(nn.Sequential(layer, nn.Tanh(), layer), given("vector"))
    assert len({node.name for node in graph.nodes}) == 3


class Inputs(nn.Module):
    def forward(self, left, right, mask=None, *, scale=2.0):
        if mask is not None:
            left = left * mask
        return {"sum": (left + right) * scale, "parts": [left, (right, None)]}


def test_several_inputs_and_defaults():
    x = given("vector")
    graph = import_module(Inputs(), (x, x * 2))
    assert graph.inputs == ("left", "right") and len(graph.outputs) == 3
    found = run_golden(graph, {"left": x.numpy(), "right": 2 * x.numpy()})
    np.testing.assert_allclose(found[graph.outputs[0]], 6 * x.numpy(), rtol=1e-5)


def test_any_number_of_inputs():
    class Joined(nn.Module):
        def forward(self, *parts):
            return torch.cat(parts, 1)

    assert len(import_module(Joined(), (given("vector"),) * 3).inputs) == 3


def test_modules_are_not_changed():
    module = nn.Sequential(nn.Linear(12, 5), nn.BatchNorm1d(5), nn.Dropout(0.5)).train()
    state = {name: value.clone() for name, value in module.state_dict().items()}
    names = set(vars(module))
    import_module(module, given("vector"))
    assert module.training and module[2].training and set(vars(module)) == names
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


# -- what cannot be read --------------------------------------------------------------------------


def refused(module, x, match):
    with pytest.raises(ModelError, match=match):
        import_module(module, x)


def test_control_flow_that_depends_on_numbers():
    inner = Call(lambda x: x if x.sum() > 0 else -x)
    refused(nn.Sequential(nn.Linear(12, 12), inner), given("vector"),
            r"module '1' \(Call\) cannot be traced: .*control flow")
    refused(Call(lambda x: x * float(x[0, 0])), given("vector"), "module Call cannot be traced")
    refused(Call(lambda x: x * x[0, 0].item()), given("vector"), "'item'.* cannot be run")


@pytest.mark.parametrize(("module", "match"), [
    (nn.LSTM(12, 4), "module '0' .LSTM. cannot be run"),
    (nn.Sequential(nn.Linear(12, 8), nn.TransformerEncoderLayer(8, 2, 16)),
     "module '1' .TransformerEncoderLayer. cannot be run"),
    (nn.Sequential(nn.Unflatten(1, (12, 1)), nn.ConvTranspose1d(12, 2, 3)),
     "module '1' .ConvTranspose1d. cannot be run"),
    (nn.BatchNorm1d(12, track_running_stats=False), "the batch's own mean"),
    (Call(lambda x: nn.ReLU()(x)), "module ReLU must be an attribute of the module"),
    (Call(lambda x: torch.fft.fft(x).real), "function 'fft_fft' cannot be run"),
    (Call(lambda x: x.cumsum(1)), "method 'cumsum' cannot be run"),
    (Call(lambda x: torch.max(x, 1)[0]), "'max' cannot be run with a dim"),
    (Call(lambda x: x[x > 0]), "'gt' cannot be run"),
    (Call(lambda x: torch.tensor([1.0])), "outputs of Call"),
    (Call(lambda x: x + torch.rand_like(x)), "cannot be run|does what its trace does not show"),
    (Call(lambda x: x + torch.rand(12)), "does what its trace does not show"),
    (Call(lambda x: functional.dropout(x, 0.5)), "training=True"),
    (Call(lambda x: torch.from_numpy(np.asarray(x.numpy() * 2))), "cannot be (traced|run)"),
])
def test_what_cannot_be_run_is_named(module, match):
    torch.manual_seed(3)
    refused(module, given("vector"), match)


def test_hooks():
    module = nn.Sequential(nn.Linear(12, 5), nn.ReLU())

    def doubled(module, inputs, output):
        return output * 2

    for register in ("register_forward_hook", "register_forward_pre_hook"):
        handle = getattr(module[0], register)(doubled if "pre" not in register else print)
        refused(module, given("vector"), "module '0' .Linear. must have no hook")
        handle.remove()
    handle = module.register_forward_hook(doubled)
    refused(module, given("vector"), "module .* must have no hook")
    handle.remove()
    check(module, given("vector"))


def test_parameters_that_do_not_exist_yet():
    refused(nn.Sequential(nn.LazyLinear(5)), given("vector"), "module '0' .* must have its param")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_weights_that_are_not_finite(name, value):
    module = nn.Sequential(nn.ReLU(), nn.Linear(12, 5))
    with torch.no_grad():
        getattr(module[1], name).view(-1)[3] = value
    refused(module, given("vector"), f"{name} of module '1' .Linear. must be finite, not")


def test_examples_that_do_not_fit():
    module = nn.Linear(12, 5)
    refused(module, given("map"), "example must be one that module Linear can run")
    refused(module, given("vector").int(), "example must hold float32 or float64, not torch.int32")
    refused(module, given("vector").half(), "not torch.float16")
    refused(module, given("vector")[:0], "example must have elements")
    refused(module, given("vector") * float("nan"), "example must hold finite values")
    refused(module, (), "example must have at least one tensor")
    refused(Inputs(), given("vector"), "example must be one that module Inputs can run")
    with pytest.raises(TypeError, match="example must be a tensor"):
        import_module(module, given("vector").numpy())
    with pytest.raises(TypeError, match=r"module must be a torch.nn.Module, not function"):
        import_module(functional.relu, given("vector"))
