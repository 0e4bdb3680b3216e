"""What recalibration mends: inference with running averages of tiny batches.

Trains small networks with batches of four images on scikit-learn's digits. Then compares loss and accuracy on
the test images with the statistics of each batch, as in training, with the running averages that training
left, and with what ``numbabn.recalibrate`` takes from all training images::

    python examples/recalibrate.py            # some ten seconds
    python examples/recalibrate.py --quick    # a few seconds
"""

import argparse
from contextlib import ExitStack
from copy import deepcopy

import console
import numpy as np
from digits import load_data, mlp
from minimal_nn import SGD, softmax_cross_entropy
from threadpoolctl import threadpool_limits
from tqdm import tqdm

import numbabn as nbn

RECALIBRATION_BATCH = 64  # larger than in training, as nothing is kept for a backward pass
WAYS = ("statistics of each batch", "running averages", "recalibrated", "recalibrated, sequential")


def batch_norms(net):
    """Return the batch normalisation layers, in the order in which data passes through them."""
    return [layer for layer in net.layers if isinstance(layer, nbn.BatchNorm)]


def in_batches(images, batch_size):
    """Return the images in batches of equal size; images beyond the last whole batch are left out."""
    whole = len(images) // batch_size * batch_size
    return images[:whole].reshape(-1, batch_size, *images.shape[1:])


def train(images, labels, seed, args):
    """Return an MLP with batch normalisation, trained from scratch."""
    rng = np.random.default_rng(seed)
    net = mlp(rng, nbn.BatchNorm)
    sgd = SGD(net, lr=args.lr)
    for _ in range(args.epochs):
        for rows in in_batches(rng.permutation(len(images)), args.batch_size):
            _, dlogits = softmax_cross_entropy(net(images[rows]), labels[rows])
            net.backward(dlogits)
            sgd.step()
    return net


def score(net, images, labels, batch_size):
    """Return (mean loss, accuracy) on the images that fill whole batches."""
    logits = np.concatenate([net(batch) for batch in in_batches(images, batch_size)])
    labels = labels[: len(logits)]
    loss, _ = softmax_cross_entropy(logits, labels)
    return loss, np.mean(logits.argmax(axis=1) == labels)


def compare(net, data, batch_size):
    """Return the scores of a trained network in all `WAYS`, and the variances used in all but the first."""
    x_train, x_test, _, labels_test = data
    with ExitStack() as stack:
        for layer in batch_norms(net):
            stack.enter_context(layer.frozen_stats())  # test images must not change running statistics
        scores = [score(net, x_test, labels_test, batch_size)]
    net.eval()
    variances = []
    for sequential in (None, False, True):
        recalibrated = deepcopy(net)
        if sequential is not None:
            layers = batch_norms(recalibrated)
            batches = in_batches(x_train, RECALIBRATION_BATCH)
            nbn.recalibrate(layers, recalibrated, batches, sequential=sequential)
        scores.append(score(recalibrated, x_test, labels_test, len(x_test)))
        variances.append(np.concatenate([layer.running_var for layer in batch_norms(recalibrated)]))
    return scores, variances


def report(scores, variances):
    """Print the table of loss, accuracy and error of the variances, as means over the networks."""
    exact = variances[:, -1]  # sequential recalibration finds those of every layer's input at inference
    off = np.abs(variances / exact[:, None] - 1).mean(axis=(0, 2))
    print(f"{'test images':26}  {'loss':>6}  {'accuracy':>8}  variances off by")
    for way, (loss, accuracy), error in zip(WAYS, scores.mean(axis=0), [None, *off], strict=True):
        print(f"{way:26}  {loss:6.3f}  {accuracy:8.1%}  {'' if error is None else f'{error:16.1%}'}".rstrip())


def parse_args():
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--lr", type=float, default=0.03, help="learning rate")
    parser.add_argument("--seeds", type=int, default=10, help="number of networks")
    parser.add_argument("--quick", action="store_true", help="one epoch, two networks: does it run?")
    args = parser.parse_args()
    if args.quick:
        args.epochs, args.seeds = 1, 2
    if args.epochs < 1 or args.seeds < 1 or args.batch_size < 2:
        parser.error("--epochs and --seeds must be at least 1, --batch-size at least 2")
    return args


def main():
    """Train the networks, compare their scores in all `WAYS` and print the means."""
    args = parse_args()
    data = load_data()
    print(f"{args.seeds} networks, {args.epochs} epochs in batches of {args.batch_size}; means:\n")
    found = []
    with threadpool_limits(1, user_api="blas"):  # the matrices are too small to share between threads
        for seed in tqdm(range(args.seeds), unit="network"):
            net = train(data[0], data[2], seed, args)
            found.append(compare(net, data, args.batch_size))
    report(*(np.array(part) for part in zip(*found, strict=True)))


if __name__ == "__main__":
    console.set_up()
    main()
