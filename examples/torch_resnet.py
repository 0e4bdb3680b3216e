"""Train a small residual network with PyTorch, on the CPU, with PyTorch's norms and with numbabn's.

The images are the handwritten digits that come with scikit-learn (8x8 pixels, 10 classes, no download)::

    python examples/torch_resnet.py                 # both, an epoch of each in turn
    python examples/torch_resnet.py --numbabn       # with numbabn's norms alone; --no-numbabn: PyTorch's
    python examples/torch_resnet.py --quick         # does it run?

Both networks start from the same weights and see the same batches: they differ by roundings alone, which
training makes larger, as it does those between float32 and float64. At larger learning rates more. Of a batch
of 256 images the norms of the first two stages are large enough for numbabn to take less time than PyTorch;
those of the third one are left to PyTorch.
"""

import argparse
import copy
import time
from dataclasses import dataclass

import console

try:
    import torch
    from torch import nn
    from torch.nn.functional import cross_entropy, relu

    import numbabn.torch
except ImportError as error:
    raise SystemExit(
        f'{error}\nThis example needs: python -m pip install "numbabn[examples,torch]"'
    ) from None
from digits import load_data

WIDTHS = (32, 64, 128)  # channels of the stages; each stage has half the height and width of the one before
NAMES = {False: "PyTorch's norms", True: "numbabn's norms"}


class Block(nn.Module):
    """Two convolutions beside a connection that skips them (He et al., 2016).

    ``y = relu(norm(conv(relu(norm(conv(x))))) + x)``
    """

    def __init__(self, channels):
        super().__init__()
        first, second = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        norms = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.body = nn.Sequential(first, norms[0], nn.ReLU(), second, norms[1])

    def forward(self, x):
        """Return y, which has the shape of x."""
        return relu(self.body(x) + x)


def residual_network():
    """Return a network of one block per stage, whose result is the logits (N, 10)."""
    layers, inputs = [], 1
    for outputs in WIDTHS:
        stride = 1 if inputs == 1 else 2
        convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU(), Block(outputs)]
        inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


@dataclass
class Run:
    """A network in training, the seconds that it has taken, and the mean loss of its last epoch."""

    network: nn.Module
    sgd: torch.optim.Optimizer
    seconds: float = 0.0
    loss: float = float("nan")

    def train(self, images, labels, batches):
        """Train on batches, which are rows of indices."""
        start = time.perf_counter()
        self.network.train()
        losses = []
        for rows in batches:
            self.sgd.zero_grad()
            loss = cross_entropy(self.network(images[rows]), labels[rows])
            loss.backward()
            self.sgd.step()
            losses.append(loss.item())
        self.seconds += time.perf_counter() - start
        self.loss = sum(losses) / len(losses)

    @torch.no_grad()
    def accuracy(self, images, labels):
        """Return the part of the images that the network recognises."""
        self.network.eval()
        return float((self.network(images).argmax(1) == labels).float().mean())


def started(network, with_numbabn, args):
    """Return the `Run` of a copy of a network, whose norms and the ReLUs after them may be numbabn's."""
    network = copy.deepcopy(network)
    if with_numbabn:
        numbabn.torch.convert(network, fuse=True)  # the one line
    # A first step compiles numbabn's kernels, before the clock runs.
    copy.deepcopy(network)(torch.zeros(args.batch_size, 1, 8, 8)).sum().backward()
    return Run(network, torch.optim.SGD(network.parameters(), args.lr, momentum=0.9))


def parse_args():
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument(
        "--numbabn", action=argparse.BooleanOptionalAction, help="one kind of norms alone (default: both)"
    )
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument(
        "--batch-size", type=int, default=256, help="numbabn leaves the norms of small ones to PyTorch"
    )
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="5 epochs: does it run?")
    args = parser.parse_args()
    if args.quick:
        args.epochs = 5
    if args.epochs < 1:
        parser.error("--epochs must be at least 1")
    return args


def main():
    """Train, an epoch of each network in turn, and print losses, accuracies and times."""
    args = parse_args()
    x_train, x_test, labels_train, labels_test = map(torch.from_numpy, load_data())
    if not 1 <= args.batch_size <= len(x_train):
        raise SystemExit(f"--batch-size must be between 1 and {len(x_train)}")
    torch.manual_seed(args.seed)
    network = residual_network()
    kinds = (False, True) if args.numbabn is None else (args.numbabn,)
    runs = {NAMES[kind]: started(network, kind, args) for kind in kinds}
    whole = len(x_train) // args.batch_size * args.batch_size
    print(f"{len(x_train)} training and {len(x_test)} test images; {torch.get_num_threads()} threads")
    for epoch in range(1, args.epochs + 1):
        batches = torch.randperm(len(x_train))[:whole].reshape(-1, args.batch_size)
        for run in runs.values():
            run.train(x_train, labels_train, batches)
        losses = ", ".join(f"{run.loss:.4f} with {name}" for name, run in runs.items())
        print(f"epoch {epoch:2}: loss {losses}")
    print()
    for name, run in runs.items():
        print(f"{name:15}  {run.seconds:6.2f} s  {run.accuracy(x_test, labels_test):7.2%} of the test images")


if __name__ == "__main__":
    console.set_up()
    main()
