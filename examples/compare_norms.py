"""How many errors networks make with each norm at several batch sizes, on real handwritten digits.

Trains the CNN of train_digits.py without a norm and with batch, group, layer and instance norm, for the same
number of epochs at every batch size, with a learning rate in proportion to it. That is figure 1 of Wu and He
(2018), "Group normalization", with more norms and small images. Batch norm is also shown with exact
statistics in place of running averages (``numbabn.recalibrate``): small batches make both training and these
averages noisy::

    python examples/compare_norms.py            # some minutes
    python examples/compare_norms.py --rnn      # likewise
    python examples/compare_norms.py --quick    # some seconds

With ``--rnn`` it trains a recurrent network on the rows of the digits instead, without a norm and with layer
norm or RMS norm in every step, at several learning rates. Batch norm has no natural place there, and
compare_rnn.py says why.

Writes a figure and the errors of all seeds to the folder ``--output``; examples/results has those of a run
with the defaults. Nothing is tuned on the test images.
"""

import argparse
import time
from pathlib import Path

import compare_cnn
import compare_rnn
import console
import numpy as np
from digits import load_data
from over_seeds import print_table, save
from threadpoolctl import threadpool_limits


def parse_args():
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--rnn", action="store_true", help="norms in a recurrent network instead")
    parser.add_argument(
        "--epochs", type=int, help=f"default {compare_cnn.EPOCHS}, with --rnn {compare_rnn.EPOCHS}"
    )
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[2, 8, 32, 128], help="not with --rnn")
    parser.add_argument(
        "--lr", type=float, default=0.03, help="learning rate of batches of 32; with --rnn the middle one"
    )
    parser.add_argument("--seed", type=int, default=0, help="first of the seeds")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--output", type=Path, default=Path(), metavar="FOLDER", help="default: this one")
    parser.add_argument("--quick", action="store_true", help="1 epoch, 2 seeds, large batches: does it run?")
    args = parser.parse_args()
    if args.epochs is None:
        args.epochs = compare_rnn.EPOCHS if args.rnn else compare_cnn.EPOCHS
    if args.quick:
        args.epochs, args.seeds, args.batch_sizes = 1, 2, [32, 128]
    args.batch_sizes = sorted(set(args.batch_sizes))
    if args.epochs < 1:
        parser.error("--epochs must be at least 1")
    if args.seeds < 2:
        parser.error("--seeds must be at least 2: one run says nothing about chance")
    return args


def main():
    """Train, print the table and the sentences, save the figure and the results."""
    args = parse_args()
    start = time.perf_counter()
    part = compare_rnn if args.rnn else compare_cnn
    data = load_data()
    num_train = len(data[0])
    if not 2 <= min(args.batch_sizes) <= max(args.batch_sizes) <= num_train:
        raise SystemExit(f"--batch-sizes must be between 2 and {num_train}")
    args.output.mkdir(parents=True, exist_ok=True)
    # As in train_digits.py: the matrices are small, and a network that diverges is a result.
    with threadpool_limits(1, user_api="blas"), np.errstate(over="ignore", invalid="ignore"):
        errors = part.compare(data, args)
    print_table(errors, part.SETTING)
    sentences = part.sentences(errors)
    print("", *sentences, sep="\n")
    path = args.output / part.NAME
    options = {name: getattr(args, name) for name in ("epochs", "lr", "seed", "seeds")}
    save(path, part.figure(errors), options, errors, sentences)
    print(f"\nFigure and results saved to {path}.png and .json; {time.perf_counter() - start:.0f} s in all.")


if __name__ == "__main__":
    console.set_up("Interrupted; nothing was saved.")
    main()
