"""Run all claims, and write their results, figures and the page that shows them.

::

    python -m examples.claims                           # writes examples/README.md and examples/results
    python -m examples.claims --quick --output trial    # does everything run?
    python -m examples.claims --redraw                  # figures and page from the results that are there
"""

import argparse
from pathlib import Path

import console

from examples.claims import command, gallery
from examples.claims.study import Options, Results

EXAMPLES = Path(__file__).parents[1]


def parse_args():
    """Read the command line; return the options, the folder to write to and whether to run anything."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    command.add_options(parser)
    parser.add_argument("--redraw", action="store_true", help="use the results that are there, run nothing")
    args = parser.parse_args()
    options = command.options(parser, args)
    if args.output is None and options != Options():
        parser.error("--output FOLDER is needed: the gallery is made from the defaults alone")
    return options, args.output or EXAMPLES, args.redraw


def stored(claims, folder):
    """Yield every claim with the results that lie in the folder."""
    for claim in claims:
        yield claim, Results.from_json((folder / f"{claim.name}.json").read_text(encoding="utf-8"))


def main():
    """Run or read everything; write one claim after the other, and the page at the end."""
    options, folder, redraw = parse_args()
    results = folder / "results"
    found = stored(gallery.CLAIMS, results) if redraw else command.run_claims(gallery.CLAIMS, options)
    finished = {}
    for claim, measured in found:
        command.save(claim, measured, results)
        finished[claim.name] = measured
    (folder / "README.md").write_text(gallery.page(finished), encoding="utf-8")
    print(f"Written: {folder / 'README.md'} and {len(finished)} figures in {results}.")


if __name__ == "__main__":
    console.set_up("Interrupted; what was finished is saved, and the page is not.")
    main()
