"""Trains and exports the shipped example: a small CNN on the UCI handwritten digits.

    pip install torch==2.15.0 onnx==1.23.2 onnxruntime==1.32.0 scikit-learn==1.9.1 numpy==2.4.6
    python train.py

writes digits.onnx, digits_train.npz and digits_test.npz beside this file. The network takes pixel / 16 as
float32 [n, 1, 8, 8]; the sets hold the pixels themselves (uint8, 0 to 16). Batch norm stays unfolded in the
file, so that importers fold it.
"""

import argparse
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn


def conv(inputs, outputs, kernel, groups=1):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    )


class Digits(nn.Module):
    """Convolution, depthwise-separable block, residual depthwise-separable block, max and average pooling, linear."""

    def __init__(self):
        super().__init__()
        self.stem = conv(1, 16, 3)
        self.depthwise = conv(16, 16, 3, groups=16)
        self.pointwise = conv(16, 32, 1)
        self.residual_depthwise = conv(32, 32, 3, groups=32)
        self.residual_pointwise = conv(32, 32, 1)
        self.pool = nn.MaxPool2d(2)
        self.average = nn.AdaptiveAvgPool2d(1)  # exported as GlobalAveragePool
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(self.depthwise(x))
        x = torch.relu(self.pointwise(x))
        y = torch.relu(self.residual_depthwise(x))
        x = torch.relu(x + self.residual_pointwise(y))
        return self.head(self.average(self.pool(x)).flatten(1))


def shifted(x, generator):
    """Images, each moved by up to one pixel on its own, with a little noise."""
    padded = nn.functional.pad(x, (1, 1, 1, 1))
    offset = torch.randint(0, 3, (2, len(x), 1), generator=generator)
    rows, columns = offset + torch.arange(8)
    image = torch.arange(len(x))[:, None, None]
    moved = padded[image, 0, rows[:, :, None], columns[:, None, :]]
    return moved[:, None] + 0.03 * torch.randn(x.shape, generator=generator)


def train(x, y, epochs, seed):
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = Digits()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        model.train()
        for batch in torch.randperm(len(x), generator=generator).split(64):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(shifted(x[batch], generator)), y[batch], label_smoothing=0.05)
            loss.backward()
            optimizer.step()
        schedule.step()
    return model.eval()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=160)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    here = Path(__file__).parent

    digits = load_digits()
    images, labels = digits.images.astype(np.uint8), digits.target.astype(np.uint8)
    x_train, x_test, y_train, y_test = train_test_split(images, labels, test_size=450, random_state=0, stratify=labels)
    np.savez_compressed(here / "digits_train.npz", x=x_train, y=y_train)
    np.savez_compressed(here / "digits_test.npz", x=x_test, y=y_test)

    tensor = lambda x: torch.tensor(x, dtype=torch.float32)[:, None] / 16
    model = train(tensor(x_train), torch.tensor(y_train, dtype=torch.long), args.epochs, args.seed)
    torch.onnx.export(
        model,
        (tensor(x_test[:1]),),
        here / "digits.onnx",
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}},
        opset_version=17,
        do_constant_folding=False,
        training=torch.onnx.TrainingMode.PRESERVE,
        dynamo=False,
    )
    session = onnxruntime.InferenceSession(here / "digits.onnx")
    (logits,) = session.run(None, {"image": tensor(x_test).numpy()})
    with torch.no_grad():
        assert np.abs(logits - model(tensor(x_test)).numpy()).max() < 1e-4
    print(f"test accuracy {100 * (logits.argmax(1) == y_test).mean():.2f} % on {len(y_test)} images")


if __name__ == "__main__":
    main()
