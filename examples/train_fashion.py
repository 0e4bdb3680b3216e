"""A real training run: a small residual network that recognises clothes, in NumPy or CuPy plus numbabn.

Trains on Fashion-MNIST (60000 images of 28x28 pixels, 10 classes), with images that are moved and mirrored by
chance, a learning rate that falls as a cosine, and a checkpoint after every epoch. A run that was killed, at
whatever moment, goes on with the same command, and ends with the same bits as without the interruption::

    python examples/train_fashion.py            # 92.99 % after 22.5 minutes with 2 cores (AMD Zen 3)
    python examples/train_fashion.py --norm group
    python examples/train_fashion.py --data digits    # needs no files
    python examples/train_fashion.py --quick --data digits    # a few seconds: does it run?
    python examples/train_fashion.py --device cuda    # on a GPU, through CuPy

Debian's package dataset-fashion-mnist installs the data; elsewhere, ``--data`` names a folder with the four
files of https://github.com/zalandoresearch/fashion-mnist. Nothing was tuned on the test images, and no epoch
is chosen by them: what counts is the accuracy after the last one.
"""

import argparse
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

# Before numba is imported. Threads of OpenMP that wait for numbabn's next call would keep the cores from the
# threads of the convolutions.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import checkpoint
import confusion
import console
import images
import numpy as np
from augment import augmented
from descent import Nesterov, cosine
from digits import mover
from minimal_nn import Sequential, in_numpy, library, softmax_cross_entropy
from residual import NORMS, REDUCTION, residual_network
from threadpoolctl import threadpool_limits
from tqdm import tqdm
from training import batches

WARM_UP = 1 / 20  # of all steps
TEST_BATCH = 500
SHOWN = 10  # after so many batches the loss beside the progress bar is a new one
QUICK = {"epochs": 2, "images": 2000, "batch_size": 32, "checkpoint": Path("train_fashion_quick.npz")}
SAME_RUN = ("data", "images", "norm", "epochs", "batch_size", "lr", "seed")  # what the weights depend on


@dataclass
class Run:
    """What changes in training, and is kept in a checkpoint."""

    net: Sequential
    sgd: Nesterov
    rng: np.random.Generator
    history: list = field(default_factory=list)  # of dictionaries, one for each epoch


@dataclass
class Data:
    """Standardised images (N, H, W, C) and their labels, on the device."""

    x_train: np.ndarray
    x_test: np.ndarray
    labels_train: np.ndarray
    labels_test: np.ndarray
    names: tuple  # of the classes
    mirror: bool  # whether the mirror image of an image is one of the same class

    @property
    def shift(self):
        """By how many pixels images may be moved: 2 of 28, and at least 1."""
        return max(1, self.x_train.shape[1] // 14)


def load(args, move):
    """Return the data of the command line, moved by a function to the device."""
    x_train, x_test, *labels = images.load(args.data, args.images)
    names = images.class_names(args.data, labels[0])
    height, width = x_train.shape[2:]
    if height % REDUCTION or width % REDUCTION:
        raise SystemExit(f"the images have {height}x{width} pixels; both must be multiples of {REDUCTION}")
    if not 2 <= args.batch_size <= len(x_train):
        raise SystemExit(f"--batch-size must be between 2 and {len(x_train)}")
    last = (np.ascontiguousarray(x.transpose(0, 2, 3, 1)) for x in (x_train, x_test))
    return Data(*map(move, (*last, *labels)), names, images.of_clothes(args.data))


def new_run(args, data):
    """Return a run that has not begun."""
    rng = np.random.default_rng(args.seed)
    net = residual_network(rng, data.x_train.shape[-1], len(data.names), args.norm)
    net.to(data.x_train)
    return Run(net, Nesterov(net, lr=args.lr), rng)


def train(run, data, args):
    """Train for the epochs that are left, and write the checkpoint after each."""
    whole = len(data.x_train) // args.batch_size * args.batch_size
    done = len(run.history)
    with tqdm(total=args.epochs * whole, initial=done * whole, unit=" images") as progress:
        for epoch in range(done, args.epochs):
            progress.set_description(f"epoch {epoch + 1} of {args.epochs}")
            start = time.perf_counter()
            loss = train_epoch(run, data, args, progress)
            if not math.isfinite(loss):
                raise SystemExit(f"the loss of epoch {epoch + 1} is no number; give a smaller --lr")
            right = in_numpy(predict(run.net, data.x_test) == data.labels_test).mean()
            seconds = round(time.perf_counter() - start, 1)
            run.history.append({"loss": loss, "accuracy": float(right), "seconds": seconds})
            checkpoint.save(args.checkpoint, same_run(args), run)
            progress.write(f"epoch {epoch + 1:3}: loss {loss:.4f}, test accuracy {right:.2%}, {seconds} s")


def train_epoch(run, data, args, progress):
    """Train with all images once and return the mean loss."""
    run.net.train()
    losses = []
    shuffled = batches(len(data.x_train), args.batch_size, run.rng)
    steps = args.epochs * len(shuffled)
    for i, rows in enumerate(library(data.x_train).asarray(shuffled)):
        x = augmented(data.x_train[rows], run.rng, shift=data.shift, mirror=data.mirror)
        loss, dlogits = softmax_cross_entropy(run.net(x), data.labels_train[rows])
        run.net.backward(dlogits)
        run.sgd.lr = args.lr * cosine(len(run.history) * len(shuffled) + i, steps, int(WARM_UP * steps))
        run.sgd.step()
        losses.append(loss)
        if i % SHOWN == 0:
            progress.set_postfix(loss=f"{float(loss):.3f}", refresh=False)  # float() waits for the GPU
        progress.update(len(rows))
    return float(np.mean([float(loss) for loss in losses]))


def predict(net, x):
    """Return the classes for which a network takes images.

    While the learning rate is high, running averages lag behind the weights: after 4 of 12 epochs 59.5 % of
    the clothes are recognised with them, and 89.5 % with averages over 40 batches of the same weights.
    """
    net.eval()
    parts = [net(x[start : start + TEST_BATCH]).argmax(axis=1) for start in range(0, len(x), TEST_BATCH)]
    return library(x).concatenate(parts)


def report(run, data, args):
    """Print the accuracy and the most frequent mistake on test images, and save the confusion matrix."""
    labels, predicted = map(in_numpy, (data.labels_test, predict(run.net, data.x_test)))
    matrix = confusion.confusion_matrix(labels, predicted, len(data.names))
    right = f"{confusion.accuracy(matrix):.2%} of {len(labels)} test images are recognised"
    print(f"\n{right}, with {args.norm} norm after {args.epochs} epochs.")
    print(confusion.sentence(matrix, data.names))
    confusion.figure(matrix, data.names, right).savefig(args.figure, dpi=150)
    minutes = sum(epoch["seconds"] for epoch in run.history) / 60
    print(f"Confusion matrix saved to {args.figure}; {minutes:.1f} minutes of training.")


def same_run(args):
    """Return the options that a run must have in common with the checkpoint from which it goes on."""
    return {name: getattr(args, name) for name in SAME_RUN}


def parse_args():
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument(
        "--data",
        default="fashion-mnist",
        help="fashion-mnist (default), digits, or a folder of IDX files like MNIST's",
    )
    parser.add_argument(
        "--images",
        type=int,
        default=60_000,
        help="so many at most to train with, and to test with (default %(default)s)",
    )
    parser.add_argument("--norm", choices=NORMS, default="batch", help="default %(default)s")
    parser.add_argument("--epochs", type=int, default=12, help="default %(default)s")
    parser.add_argument("--batch-size", type=int, default=128, help="default %(default)s")
    parser.add_argument(
        "--lr", type=float, default=0.1, help="the largest learning rate (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="NumPy, or CuPy on a GPU")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        default=Path("train_fashion.npz"),
        metavar="FILE",
        help="is written after every epoch; if it exists, the run goes on from there (default %(default)s)",
    )
    parser.add_argument(
        "--figure",
        type=Path,
        default=Path("train_fashion.png"),
        metavar="FILE",
        help="where to save the confusion matrix (default %(default)s)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="does it run? Other defaults: 2 epochs of 2000 images"
    )
    if parser.parse_args().quick:
        parser.set_defaults(**QUICK)
    args = parser.parse_args()
    if args.epochs < 1:
        parser.error("--epochs must be at least 1")
    for path in (args.checkpoint, args.figure):
        if not path.parent.is_dir():
            parser.error(f"there is no folder {path.parent} for {path.name}")
    return args


def main():
    """Train, or go on training, print what was learned and save the figure."""
    args = parse_args()
    data = load(args, mover(args.device))
    run = new_run(args, data)
    size = "x".join(map(str, data.x_train.shape[1:3]))
    print(f"{len(data.x_train)} training and {len(data.x_test)} test images of {size} pixels")
    parameters = sum(p.size for p in run.net.params.values())
    print(f"residual network with {args.norm} norm, {parameters} parameters")
    if args.checkpoint.exists():
        checkpoint.restore(args.checkpoint, same_run(args), run)
        print(f"{args.checkpoint} has {len(run.history)} of {args.epochs} epochs; the run goes on from there")
    # BLAS has one thread because each thread of the convolutions calls it by itself. NumPy does not warn of
    # overflow because a run that diverges ends with a sentence of its own.
    with threadpool_limits(1, user_api="blas"), np.errstate(over="ignore", invalid="ignore"):
        train(run, data, args)
        report(run, data, args)


if __name__ == "__main__":
    console.set_up("Interrupted. The same command goes on after the last epoch that was finished.")
    main()
