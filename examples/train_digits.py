"""What batch normalisation does to the training of small networks, on real handwritten digits.

Trains an MLP and a CNN, each with and without batch norm and otherwise alike, on the digits that
come with scikit-learn (8x8 pixels, 10 classes, no download), in NumPy or CuPy plus numbabn::

    python examples/train_digits.py            # about half a minute
    python examples/train_digits.py --quick    # a few seconds
    python examples/train_digits.py --device cuda    # on a GPU, through CuPy

First all four networks are trained from several seeds at one learning rate that suits each of
them; then shorter, at smaller and larger learning rates. Nothing is tuned on the test images: the
architectures and the default settings were chosen by cross-validation on the training images.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import console
import numpy as np
from matplotlib.figure import Figure
from minimal_nn import (
    SGD,
    Conv2d,
    Dense,
    Flatten,
    MaxPool2d,
    ReLU,
    Sequential,
    library,
    softmax_cross_entropy,
)
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_limits
from tqdm import tqdm

import numbabn as nbn

TARGET = 0.97  # test accuracy in the column "epochs to 97%"
# Measured after 20 epochs, means of 5 seeds: on training images the MLP with batch norm has a loss of 0.0063
# by the statistics of each batch, and of 0.0010 by running statistics, as the MLP without has. On test images
# their losses are 0.061 and 0.086.
CAPTION = (
    "Lines are means over the seeds, bands their range. In training, batch norm uses the statistics of each "
    "batch, which vary from batch to batch.\nThe training loss includes this noise, and a higher one is not "
    "worse: the noise works against overfitting, and test images are normalised by running statistics."
)
RATE_FACTORS = (1 / 10, 1 / 3, 1, 10 / 3, 10)  # the learning rates of the second part, relative to --lr


def mlp(rng, batch_norm):
    """Return a network with two hidden layers, 64 - 128 - 128 - 10, with or without batch norm."""
    layers = [Flatten()]
    for inputs, outputs in [(64, 128), (128, 128)]:
        layers.append(Dense(inputs, outputs, bias=not batch_norm, rng=rng))  # batch norm's beta is the bias
        if batch_norm:
            layers.append(nbn.BatchNorm(outputs))
        layers.append(ReLU())
    return Sequential(*layers, Dense(128, 10, rng=rng))


def cnn(rng, batch_norm):
    """Return a convolutional network, with or without batch norm.

    It has two 3x3 convolutions with 16 and 32 channels, each followed by 2x2 max pooling.
    """
    layers = []
    for inputs, outputs in [(1, 16), (16, 32)]:
        layers.append(Conv2d(inputs, outputs, 3, padding=1, bias=not batch_norm, rng=rng))
        if batch_norm:
            layers.append(nbn.BatchNorm(outputs))
        layers += [ReLU(), MaxPool2d(2)]
    return Sequential(*layers, Flatten(), Dense(32 * 2 * 2, 10, rng=rng))


MODELS = {  # name: (builder, with batch norm?)
    "MLP": (mlp, False),
    "MLP + batch norm": (mlp, True),
    "CNN": (cnn, False),
    "CNN + batch norm": (cnn, True),
}


def load_data():
    """Return x_train and x_test, which are standardised images (N, 1, 8, 8), and the labels of both.

    The split is always the same. The same people wrote digits of both parts; digits of other people would be
    harder to recognise.
    """
    digits = load_digits()
    images = digits.images[:, None].astype(np.float32)
    x_train, x_test, labels_train, labels_test = train_test_split(
        images, digits.target, test_size=360, stratify=digits.target, random_state=0
    )
    count, mean, m2 = nbn.moments(x_train)
    scale, shift = np.float32(np.sqrt(count / m2[0])), np.float32(mean[0])
    return (x_train - shift) * scale, (x_test - shift) * scale, labels_train, labels_test


def mover(device):
    """Return a function that moves arrays to the device, or exit and say what the device needs."""
    if device == "cpu":
        return np.asarray
    try:
        import cupy

        nbn.BatchNorm(1, device="cuda")  # raises an error that says what it needs
    except (ImportError, RuntimeError) as error:
        raise SystemExit(
            f"--device cuda cannot run: {error}\n"
            'It needs an NVIDIA GPU and: python -m pip install "numbabn[cuda]" cupy-cuda13x'
        ) from None
    return cupy.asarray


@dataclass
class History:
    """Training loss and test accuracy after every epoch, and the seconds spent in training."""

    losses: list
    accuracies: list
    seconds: float = 0.0

    @property
    def epochs_to_target(self):
        """Number of the first epoch that ends at the target accuracy, or None."""
        return next((epoch for epoch, a in enumerate(self.accuracies, 1) if a >= TARGET), None)


def train(model, data, lr, epochs, batch_size, seed, progress):
    """Train one network from scratch and return its `History`."""
    x_train, x_test, labels_train, labels_test = data
    build, batch_norm = MODELS[model]
    rng = np.random.default_rng(seed)
    net = build(rng, batch_norm)
    net.to(x_train)
    sgd = SGD(net, lr=lr, momentum=0.9)
    history = History([], [])
    whole = len(x_train) // batch_size * batch_size  # an incomplete last batch is left out
    for _ in range(epochs):
        start = time.perf_counter()
        net.train()
        losses = []
        shuffled = rng.permutation(len(x_train))[:whole].reshape(-1, batch_size)
        for rows in library(x_train).asarray(shuffled):
            logits = net(x_train[rows])
            loss, dlogits = softmax_cross_entropy(logits, labels_train[rows])
            net.backward(dlogits)
            sgd.step()
            losses.append(loss)
        loss = np.mean([float(loss) for loss in losses])  # float() waits for the GPU's results
        history.seconds += time.perf_counter() - start

        net.eval()
        accuracy = float((net(x_test).argmax(axis=1) == labels_test).mean())
        history.losses.append(loss)
        history.accuracies.append(accuracy)
        progress.set_postfix(loss=f"{history.losses[-1]:.4f}", test=f"{accuracy:.1%}", refresh=False)
        progress.update()
    return history


def compare(data, args):
    """Train every model from every seed; return {model: [History]}."""
    results = {}
    for model in MODELS:
        with tqdm(total=args.epochs * args.seeds, desc=f"{model:17}", unit="epoch") as progress:
            results[model] = [
                train(model, data, args.lr, args.epochs, args.batch_size, seed, progress)
                for seed in range(args.seed, args.seed + args.seeds)
            ]
    return results


def sweep(data, rates, args):
    """Train every model for half the epochs at every rate; return {model: [mean accuracy]}."""
    epochs, seeds = max(1, args.epochs // 2), range(args.seed, args.seed + min(args.seeds, 2))
    results = {model: [] for model in MODELS}
    total = len(MODELS) * len(rates) * len(seeds) * epochs
    with tqdm(total=total, desc=f"{'learning rates':17}", unit="epoch") as progress:
        for model in MODELS:
            for lr in rates:
                runs = [train(model, data, lr, epochs, args.batch_size, seed, progress) for seed in seeds]
                results[model].append(np.mean([run.accuracies[-1] for run in runs]))
    return results


def final_accuracy(runs):
    """Return the mean and the standard deviation of the final accuracy over the seeds."""
    finals = [run.accuracies[-1] for run in runs]
    return np.mean(finals), np.std(finals, ddof=1)


def describe_epochs(runs):
    """Return as text the mean of the epochs to the target accuracy, and how many runs reached it."""
    reached = [run.epochs_to_target for run in runs if run.epochs_to_target is not None]
    if not reached:
        return "not reached"
    how_many = "" if len(reached) == len(runs) else f" ({len(reached)} of {len(runs)})"
    return f"{np.mean(reached):.1f}{how_many}"


def print_comparison(results, args):
    """Print the table of all models at one learning rate."""
    print(f"\nLearning rate {args.lr:g}, {args.epochs} epochs, {args.seeds} seeds (+- standard deviation):\n")
    print(f"{'model':17}  {f'epochs to {TARGET:.0%}':>14}  {'final test accuracy':>19}  {'fastest run':>11}")
    for model, runs in results.items():
        mean, spread = final_accuracy(runs)
        seconds = min(run.seconds for run in runs)  # the first run may have compiled the kernels
        accuracy = f"{mean:.2%} +- {spread:.2%}"
        print(f"{model:17}  {describe_epochs(runs):>14}  {accuracy:>19}  {seconds:9.2f} s")


def print_sweep(results, rates):
    """Print the table of final accuracies at smaller and larger learning rates."""
    print("\nFinal test accuracy by learning rate, after half the epochs:\n")
    print(f"{'model':17}" + "".join(f"  {f'lr {lr:g}':>9}" for lr in rates))
    for model, accuracies in results.items():
        print(f"{model:17}" + "".join(f"  {accuracy:9.1%}" for accuracy in accuracies))


def largest_rate(rates, accuracies):
    """Return the largest learning rate that still trains to 90 %, as text."""
    trained = [lr for lr, accuracy in zip(rates, accuracies, strict=True) if accuracy >= 0.9]
    return f"{max(trained):g}" if trained else "none"


def print_summary(results, swept, rates, num_test):
    """Print what batch norm changes in accuracy, against the spread over seeds, and in learning rates."""
    print()
    for name in ("MLP", "CNN"):
        plain, normed = name, f"{name} + batch norm"
        (plain_mean, plain_sd), (normed_mean, normed_sd) = (
            final_accuracy(results[m]) for m in (plain, normed)
        )
        gain, spread = normed_mean - plain_mean, max(plain_sd, normed_sd)
        print(
            f"{name}: batch norm changes the final accuracy by {gain:+.2%} ({gain * num_test:+.1f} of "
            f"{num_test} images), {'more' if abs(gain) > spread else 'no more'} than the spread over seeds; "
            f"the largest learning rate that trains to 90%: {largest_rate(rates, swept[plain])} without it, "
            f"{largest_rate(rates, swept[normed])} with it."
        )


def save_figure(path, results, swept, rates):
    """Save a figure of loss and accuracy by epoch (mean, range over seeds) and accuracy by learning rate."""
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    loss_axes, accuracy_axes, sweep_axes = figure.subplots(1, 3)
    for model, runs in results.items():
        style = {"color": "C0" if "MLP" in model else "C1", "ls": "-" if "batch norm" in model else "--"}
        epochs = np.arange(1, len(runs[0].losses) + 1)
        for axes, curves in (
            (loss_axes, np.array([run.losses for run in runs])),
            (accuracy_axes, 100 * np.array([run.accuracies for run in runs])),
        ):
            axes.plot(epochs, curves.mean(axis=0), label=model, **style)
            axes.fill_between(
                epochs, curves.min(axis=0), curves.max(axis=0), color=style["color"], alpha=0.12
            )
        sweep_axes.plot(rates, 100 * np.array(swept[model]), marker="o", label=model, **style)
    loss_axes.set(title="Loss in training", xlabel="epoch", ylabel="training loss", yscale="log")
    accuracy_axes.set(
        title="Accuracy on images never seen", xlabel="epoch", ylabel="test accuracy (%)", ylim=(85, 100)
    )
    accuracy_axes.axhline(100 * TARGET, color="grey", lw=0.8, ls=":")
    sweep_axes.set(
        title="Which learning rates work", xlabel="learning rate", ylabel="final test accuracy (%)",
        xscale="log", ylim=(0, 102),
    )  # fmt: skip
    loss_axes.legend()
    figure.supxlabel(CAPTION, fontsize="medium")
    figure.savefig(path, dpi=150)


def parse_args():
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.03, help="learning rate of every network")
    parser.add_argument("--seed", type=int, default=0, help="first of the seeds")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument(
        "--figure", type=Path, default=Path("train_digits.png"), help="where to save the curves"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="NumPy, or CuPy on a GPU")
    parser.add_argument("--quick", action="store_true", help="2 epochs, 2 seeds: does it run?")
    args = parser.parse_args()
    if args.quick:
        args.epochs, args.seeds = 2, 2
    if args.epochs < 1:
        parser.error("--epochs must be at least 1")
    if args.seeds < 2:
        parser.error("--seeds must be at least 2: one run says nothing about chance")
    return args


def main():
    """Compare the models at one learning rate and at several, print the results and save the figure."""
    args = parse_args()
    start = time.perf_counter()
    data = tuple(map(mover(args.device), load_data()))
    num_train, num_test = len(data[0]), len(data[1])
    if not 2 <= args.batch_size <= num_train:  # one image alone has no variance to normalise by
        raise SystemExit(f"--batch-size must be between 2 and {num_train}")
    rates = [float(f"{args.lr * factor:.1g}") for factor in RATE_FACTORS]
    print(f"{num_train} training and {num_test} test images; SGD, batches of {args.batch_size}, momentum 0.9")
    # BLAS has one thread because the matrices are too small to share between threads. NumPy does not warn of
    # overflow because a network that diverges is a result here.
    with threadpool_limits(1, user_api="blas"), np.errstate(over="ignore", invalid="ignore"):
        results = compare(data, args)
        swept = sweep(data, rates, args)
    print_comparison(results, args)
    print_sweep(swept, rates)
    print_summary(results, swept, rates, num_test)
    save_figure(args.figure, results, swept, rates)
    print(f"\nCurves saved to {args.figure}; {time.perf_counter() - start:.0f} s in all.")


if __name__ == "__main__":
    console.set_up()
    main()
