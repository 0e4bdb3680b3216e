"""A trained network without its batch norms: the same predictions with fewer layers.

Trains an MLP and a CNN with batch norm on scikit-learn's digits. Then ``numbabn.fold_into_dense`` and
``numbabn.fold_into_conv`` put every norm into the layer before it, and both networks of each kind see the
test images::

    python examples/fold.py            # some seconds
    python examples/fold.py --quick    # a second or two
    python examples/fold.py --device cuda    # on a GPU, through CuPy
"""

import argparse
import time
from copy import copy
from dataclasses import dataclass
from functools import partial

import console
import numpy as np
from digits import cnn, load_data, mlp, mover
from minimal_nn import Conv2d, Dense, Sequential
from recalibrate import batch_norms
from threadpoolctl import threadpool_limits
from tqdm import tqdm
from training import accuracy, train

import numbabn as nbn

NETWORKS = {"MLP": mlp, "CNN": cnn}
FOLDS = {  # the weight of a Dense layer has shape (O, I), that of a Conv2d (O, I, K, K)
    Dense: partial(nbn.fold_into_dense, channel_axis=0),
    Conv2d: nbn.fold_into_conv,
}


def with_norm(layer, norm):
    """Return a layer that does what the layer and the norm behind it do in evaluation mode."""
    result = copy(layer)
    weight, bias = FOLDS[type(layer)](layer.params["weight"], layer.params.get("bias"), norm)
    result.params = {"weight": weight, "bias": bias}
    return result


def folded(net):
    """Return a network without batch norms that does what a network does in evaluation mode."""
    layers = []
    for layer in net.layers:
        if isinstance(layer, nbn.BatchNorm):
            layers[-1] = with_norm(layers[-1], layer)
        else:
            layers.append(layer)
    return Sequential(*layers)


def parameter_bytes(net):
    """Return the bytes of all that inference needs: parameters and running statistics."""
    statistics = [each for norm in batch_norms(net) for each in (norm.running_mean, norm.running_var)]
    return sum(each.nbytes for each in (*net.params.values(), *statistics))


def seconds(nets, images, repeats):
    """Return the seconds that each network takes: of its runs, with which they take turns, the fastest."""
    times = []
    for _ in range(repeats):
        times.append([])
        for net in nets:
            start = time.perf_counter()
            float(net(images)[0, 0])  # float() waits for the GPU's results
            times[-1].append(time.perf_counter() - start)
    return np.min(times, axis=0)


@dataclass
class Result:
    """A trained network before and after its norms were folded."""

    norms: int
    images: int
    same: int  # predictions
    difference: float  # the largest of the logits
    largest: float  # of the logits before
    accuracies: tuple  # before and after, as all that follows
    seconds: tuple
    layers: tuple
    nbytes: tuple


def measure(build, data, args, progress):
    """Train a network, fold its norms, and return what both networks do with the test images."""
    rng = np.random.default_rng(args.seed)
    net = build(rng, nbn.BatchNorm)
    train(net, data, args.lr, args.epochs, args.batch_size, rng, progress)
    nets = net, folded(net)
    _, images, _, labels = data
    before, after = (each(images) for each in nets)
    return Result(
        norms=len(batch_norms(net)),
        images=len(images),
        same=int((before.argmax(axis=1) == after.argmax(axis=1)).sum()),
        difference=float(abs(after - before).max()),
        largest=float(abs(before).max()),
        accuracies=tuple(accuracy(each, images, labels) for each in nets),
        seconds=tuple(seconds(nets, images, args.repeats)),
        layers=tuple(len(each.layers) for each in nets),
        nbytes=tuple(map(parameter_bytes, nets)),
    )


def report(results):
    """Print the table of all networks before and after, and a sentence for each."""
    print(f"\n{'network':16}  {'layers':>6}  {'bytes':>7}  {'accuracy':>8}  {'inference':>9}")
    for name, result in results.items():
        rows = zip(
            (name, f"{name}, folded"), result.layers, result.nbytes, result.accuracies, result.seconds,
            strict=True,
        )  # fmt: skip
        for row, layers, nbytes, right, took in rows:
            print(f"{row:16}  {layers:6}  {nbytes:7}  {right:8.1%}  {took * 1e3:6.2f} ms")
    print()
    for name, result in results.items():
        all_same = result.same == result.images
        same = "all" if all_same else f"{result.same} of"
        nbytes, took = (after / before for before, after in (result.nbytes, result.seconds))
        print(
            f"{name}: without its {result.norms} norms {same} {result.images} predictions are the same, "
            f"logits of up to {result.largest:.0f} differ by at most {result.difference:.1e}; "
            f"parameters take {nbytes:.1%} of the bytes, inference {took:.0%} of the time."
        )


def parse_args():
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.03, help="learning rate of both networks")
    parser.add_argument("--seed", type=int, default=0, help="of the first weights and of the batches")
    parser.add_argument("--repeats", type=int, default=50, help="runs of which the fastest counts")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="NumPy, or CuPy on a GPU")
    parser.add_argument("--quick", action="store_true", help="2 epochs, 5 runs: does it run?")
    args = parser.parse_args()
    if args.quick:
        args.epochs, args.repeats = 2, 5
    if args.epochs < 1 or args.repeats < 1 or args.batch_size < 2:
        parser.error("--epochs and --repeats must be at least 1, --batch-size at least 2")
    return args


def main():
    """Train the networks, fold their norms and print what changes."""
    args = parse_args()
    data = tuple(map(mover(args.device), load_data()))
    results = {}
    # BLAS has one thread because the matrices are too small to share between threads.
    with threadpool_limits(1, user_api="blas"):
        for name, build in NETWORKS.items():
            with tqdm(total=args.epochs, desc=name, unit="epoch") as progress:
                results[name] = measure(build, data, args, progress)
    report(results)


if __name__ == "__main__":
    console.set_up()
    main()
