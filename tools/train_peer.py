"""Seconds that PyTorch takes for one epoch of ResNet-8 on the CPU: what `quantize`'s own training is compared with.

The network is `resnet8` of quantize/src/networks.rs; SGD with momentum, batches of 64, 10,000 pictures of 32 x 32 (CIFAR-10
where the shared data are, else random ones). Both memory formats are tried, the faster one is the answer. One line of JSON.

    python tools/train_peer.py [--threads N] [--samples 10000] [--batch 64] [--epochs 2] [--data FILE.npz]
"""

import argparse
import json
import pathlib
import time

import numpy
import torch
from torch import nn

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared/data/sets/cifar10_train.npz"


class Stack(nn.Module):
    """Two 3 x 3 convolutions beside a projection, or beside nothing if the size stays."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x):
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.skip(x))


def resnet8(classes=10):
    stem = [nn.Conv2d(3, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU()]
    stacks = [Stack(16, 16, 1), Stack(16, 32, 2), Stack(32, 64, 2)]
    return nn.Sequential(*stem, *stacks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


def load(path, samples):
    """Pictures as NCHW floats, and their classes."""
    if path.exists():
        arrays = numpy.load(path)
        x, y = arrays["x"][:samples], arrays["y"][:samples]
    else:
        random = numpy.random.default_rng(0)
        x = random.integers(0, 256, (samples, 32, 32, 3), dtype=numpy.uint8)
        y = random.integers(0, 10, samples)
    x = torch.from_numpy(x.astype(numpy.float32)).permute(0, 3, 1, 2) / 255
    return x.contiguous(), torch.from_numpy(y.astype(numpy.int64).reshape(-1))


def train(x, y, batch, epochs, memory_format):
    """Seconds of every epoch, and the loss of the last."""
    torch.manual_seed(0)
    model = resnet8().to(memory_format=memory_format)
    x = x.to(memory_format=memory_format)
    sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    loss_of = nn.CrossEntropyLoss()
    seconds = []
    for _ in range(epochs):
        start, total = time.perf_counter(), 0.0
        for part in torch.randperm(len(x)).split(batch):
            loss = loss_of(model(x[part]), y[part])
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            total += loss.item() * len(part)
        seconds.append(time.perf_counter() - start)
    return seconds, total / len(x)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=0, help="0: as many as PyTorch chooses")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=2, help="the fastest one counts")
    parser.add_argument("--data", type=pathlib.Path, default=SHARED)
    args = parser.parse_args()
    if args.threads > 0:
        torch.set_num_threads(args.threads)
    x, y = load(args.data, args.samples)
    formats = {"default": torch.contiguous_format, "channels_last": torch.channels_last}
    runs = {name: train(x, y, args.batch, args.epochs, kind) for name, kind in formats.items()}
    best = min(runs, key=lambda name: min(runs[name][0]))
    answer = {
        "framework": f"torch {torch.__version__}",
        "network": "resnet8",
        "threads": torch.get_num_threads(),
        "samples": len(x),
        "batch": args.batch,
        "data": args.data.name if args.data.exists() else "random",
        "seconds_per_epoch": round(min(runs[best][0]), 3),
        "memory_format": best,
        "runs": {
            name: {"seconds": [round(s, 3) for s in seconds], "loss": round(loss, 4)}
            for name, (seconds, loss) in runs.items()
        },
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
