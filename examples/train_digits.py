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
from pathlib import Path

import console
import numpy as np
from digits import cnn, load_data, mlp, mover
from matplotlib.figure import Figure
from over_seeds import draw_band
from threadpoolctl import threadpool_limits
from tqdm import tqdm
from training import train

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


MODELS = {  # name: (builder, norm)
    "MLP": (mlp, None),
    "MLP + batch norm": (mlp, nbn.BatchNorm),
    "CNN": (cnn, None),
    "CNN + batch norm": (cnn, nbn.BatchNorm),
}


def train_model(model, data, lr, epochs, batch_size, seed, progress):
    """Train one model from scratch and return its history."""
    build, norm = MODELS[model]
    rng = np.random.default_rng(seed)
    return train(build(rng, norm), data, lr, epochs, batch_size, rng, progress)


def compare(data, args):
    """Train every model from every seed; return {model: [History]}."""
    results = {}
    for model in MODELS:
        with tqdm(total=args.epochs * args.seeds, desc=f"{model:17}", unit="epoch") as progress:
            results[model] = [
                train_model(model, data, args.lr, args.epochs, args.batch_size, seed, progress)
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
                runs = [
                    train_model(model, data, lr, epochs, args.batch_size, seed, progress) for seed in seeds
                ]
                results[model].append(np.mean([run.accuracies[-1] for run in runs]))
    return results


def final_accuracy(runs):
    """Return the mean and the standard deviation of the final accuracy over the seeds."""
    finals = [run.accuracies[-1] for run in runs]
    return np.mean(finals), np.std(finals, ddof=1)


def describe_epochs(runs):
    """Return as text the mean of the epochs to the target accuracy, and how many runs reached it."""
    reached = [epochs for run in runs if (epochs := run.epochs_to(TARGET)) is not None]
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
            draw_band(axes, epochs, curves, label=model, **style)
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
