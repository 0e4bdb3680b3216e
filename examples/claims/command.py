"""The command line of a claim: run it, print what was found and save it."""

import argparse
from pathlib import Path

import console
from images import DEFAULT, load
from tqdm import tqdm

from examples.claims.study import Options

FOLDER = Path("claims")  # where the results of one claim go
LEAST_IMAGES = 300  # of which ten classes and batches of 256 can be taken


def add_options(parser):
    """Add the options that all claims have."""
    parser.add_argument(
        "--data",
        default=DEFAULT,
        help="digits (default), fashion-mnist, or a folder of IDX files like MNIST's",
    )
    parser.add_argument(
        "--images", type=int, default=Options.images, help="training images at most (%(default)s)"
    )
    parser.add_argument("--seeds", type=int, default=Options.seeds, help="number of seeds (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="few settings, 1 epoch, 2 seeds: does it run?")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where to save the results")


def options(parser, args):
    """Return the `Options` of a command line, or end with what is wrong with it."""
    if args.seeds < 2:
        parser.error("--seeds must be at least 2: one run says nothing about chance")
    if args.images < LEAST_IMAGES:
        parser.error(f"--images must be at least {LEAST_IMAGES}")
    return Options(args.data, args.images, args.seeds, args.quick)


def run_claims(claims, options):
    """Yield every claim with its `Results`; one progress bar counts the runs of all."""
    data = load(options.data, options.images)
    with tqdm(total=sum(claim.num_runs(options) for claim in claims), unit="run") as progress:
        for claim in claims:
            progress.set_description(claim.name)
            yield claim, claim.measure(data, options, progress)


def save(claim, results, folder):
    """Write the results and the figure of a claim to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{claim.name}.json").write_text(results.to_json(), encoding="utf-8")
    claim.figure(results).savefig(folder / f"{claim.name}.png", dpi=100)


def table_text(rows):
    """Return rows of texts as a table of Markdown, which is aligned for a terminal, too."""
    first, *others = zip(*rows, strict=True)
    columns = [_column(first, str.ljust), *(_column(texts, str.rjust) for texts in others)]
    return "\n".join(f"| {' | '.join(row)} |" for row in zip(*columns, strict=True))


def _column(texts, align):
    """Return the cells of a column, the first of which is its heading, with the rule below it."""
    width = max(map(len, texts))
    heading, *cells = (align(text, width) for text in texts)
    rule = "-" * (width - 1) + (":" if align is str.rjust else "-")
    return [heading, rule, *cells]


def main(claim):
    """Run one claim as a script."""
    console.set_up("Interrupted; nothing was saved.")
    parser = argparse.ArgumentParser(description=claim.statement)
    add_options(parser)
    args = parser.parse_args()
    print(f"The claim: {claim.statement}\nSource: {claim.source}\n")
    ((_, results),) = run_claims([claim], options(parser, args))
    print(f"\n{table_text(claim.table(results))}\n\n{claim.finding(results)}\n")
    folder = args.output or FOLDER
    save(claim, results, folder)
    print(f"Figure and results saved to {folder / claim.name}.png and .json; {results.seconds:.0f} s in all.")
