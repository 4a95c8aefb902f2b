# SPDX-License-Identifier: Apache-2.0
"""Trains, prunes and quantizes the network that ``sparsemac demo`` ships, and writes its files.

    python scripts/train_demo.py [--seed 1] [--density 0.1] [-o DIR]

Data: scikit-learn's bundled digits (1,797 images of 8 x 8 pixels); a stratified fifth, 360 images,
is the test split and is never trained on. Pruning: gradual magnitude pruning with fine-tuning (Zhu
and Gupta, "To prune, or not to prune", 2017, section 3), per layer; the last phase trains with
weights rounded to int4 in the forward pass (straight-through estimator; Bengio et al., 2013).
Needs the extra ``train`` (scikit-learn, torch).
"""

import argparse
import logging
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sparsemac.layer import save_network
from sparsemac.quantize import quantize_network
from torch import nn

log = logging.getLogger("train_demo")

HIDDEN = (512, 512)
PIXEL_MAX = 16.0
EPOCHS = {"dense": 40, "prune": 80, "int4": 60}
INT4_MAX = 7
#: Share of the weights that a layer keeps, relative to the second: the outer ones matter more.
SHARES = (2.5, 1.0, 2.0)


def augmented(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Shifts each image by up to one pixel and varies its contrast a little."""
    images = x.view(-1, 1, 8, 8)
    shifts = torch.randint(-1, 2, (2,), generator=generator).tolist()
    moved = torch.roll(nn.functional.pad(images, (1, 1, 1, 1)), shifts, (2, 3))[..., 1:-1, 1:-1]
    gain = 0.9 + 0.2 * torch.rand(len(x), 1, 1, 1, generator=generator)
    return (moved * gain).clamp(0, 1).reshape(len(x), -1)


class Straight(torch.autograd.Function):
    """Rounds weights to int4 with a scale per row; the gradient passes unchanged."""

    @staticmethod
    def forward(ctx, weight: torch.Tensor) -> torch.Tensor:  # noqa: ANN001
        """Returns the rounded weights."""
        scale = weight.abs().amax(1, keepdim=True).clamp_min(1e-8) / INT4_MAX
        return (weight / scale).round().clamp(-INT4_MAX, INT4_MAX) * scale

    @staticmethod
    def backward(ctx, *grads: torch.Tensor) -> torch.Tensor:  # noqa: ANN001
        """Returns the gradient as it is."""
        return grads[0]


class Pruned(nn.Module):
    """A multilayer perceptron with a mask on each weight matrix."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False))
        self.masks = [torch.ones_like(layer.weight) for layer in self.layers]
        self.int4 = False

    def weights(self) -> list[torch.Tensor]:
        """The weights that the forward pass uses."""
        masked = [layer.weight * mask for layer, mask in zip(self.layers, self.masks, strict=True)]
        return [Straight.apply(w) for w in masked] if self.int4 else masked

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns (n, 10) logits of (n, 64) pixels in 0 to 1."""
        for i, (layer, weight) in enumerate(zip(self.layers, self.weights(), strict=True)):
            x = nn.functional.linear(x, weight, layer.bias)
            x = x if i == len(self.layers) - 1 else x.relu()
        return x

    def prune(self, density: float) -> None:
        """Keeps the largest weights of each layer; `SHARES` says how much of which."""
        for i, (layer, factor) in enumerate(zip(self.layers, SHARES, strict=True)):
            share = min(1.0, density * factor)
            magnitude = layer.weight.detach().abs() * self.masks[i]
            keep = max(1, round(share * magnitude.numel()))
            threshold = magnitude.flatten().kthvalue(magnitude.numel() - keep + 1).values
            self.masks[i] = (magnitude >= threshold).float()


def train(x: torch.Tensor, y: torch.Tensor, density: float, seed: int) -> Pruned:
    """Trains dense, prunes gradually, then trains with int4 weights."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    net = Pruned((x.shape[1], *HIDDEN, 10))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=1e-2)
    total = sum(EPOCHS.values())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total, eta_min=1e-5)
    for epoch in range(total):
        past = epoch - EPOCHS["dense"]
        if 0 <= past:
            # Cubic from dense to the final density, over the first three quarters of the phase.
            progress = min(1.0, past / (0.75 * EPOCHS["prune"]))
            net.prune(density + (1 - density) * (1 - progress) ** 3)
        net.int4 = past >= EPOCHS["prune"]
        for index in torch.randperm(len(x), generator=generator).split(64):
            loss = nn.functional.cross_entropy(
                net(augmented(x[index], generator)), y[index], label_smoothing=0.05
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        if epoch % 20 == 19:
            log.info("epoch %d of %d: loss %.4f", epoch + 1, total, loss.item())
    return net


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--density", type=float, default=0.083, help="share of weights that the second layer keeps"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path(__file__).parent.parent / "sw" / "sparsemac_cli" / "data",
    )
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    digits = load_digits()
    pixels = digits.data.astype(np.uint8)
    x_train, x_test, y_train, y_test = train_test_split(
        pixels,
        digits.target.astype(np.uint8),
        test_size=360,
        stratify=digits.target,
        random_state=0,
    )
    to_float = [torch.tensor(a / PIXEL_MAX, dtype=torch.float32) for a in (x_train, x_test)]
    net = train(to_float[0], torch.tensor(y_train, dtype=torch.long), args.density, args.seed)

    def accuracy(x: torch.Tensor) -> float:
        with torch.no_grad():
            return float((net(x).argmax(1).numpy() == y_test).mean())

    net.int4 = False
    float_accuracy = accuracy(to_float[1])
    net.int4 = True
    log.info("float %.4f, int4 weights %.4f", float_accuracy, accuracy(to_float[1]))
    with torch.no_grad():
        weights = [w.numpy().astype(np.float64) for w in net.weights()]
        biases = [layer.bias.numpy().astype(np.float64) for layer in net.layers]
    layers = quantize_network(
        weights, biases, x_train.astype(np.float64) / PIXEL_MAX, weight_bits=4
    )
    nonzeros = sum(layer.weights.nnz for layer in layers)
    log.info("density %.4f", nonzeros / sum(w.size for w in weights))
    args.output.mkdir(parents=True, exist_ok=True)
    extras = {"accuracy_float": float_accuracy, "pixel_max": PIXEL_MAX}
    save_network(args.output / "digits.npz", layers, extras)
    np.savez_compressed(args.output / "digits_test.npz", images=x_test, labels=y_test)
    for path in sorted(args.output.glob("*.npz")):
        log.info("%s: %d bytes", path.name, path.stat().st_size)


if __name__ == "__main__":
    main()
