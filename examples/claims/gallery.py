"""The page ``examples/README.md``, made of the claims and their results."""

from examples.claims import (
    batch_size,
    convergence,
    cost,
    covariate_shift,
    depth,
    folding,
    inference,
    initialisation,
    learning_rate,
    placement,
    regularisation,
    saturation,
    style,
)
from examples.claims.command import table_text

SCRIPTS = (
    convergence, learning_rate, initialisation, depth, saturation, regularisation, batch_size, inference,
    placement, covariate_shift, cost, folding, style,
)  # fmt: skip
CLAIMS = [script.CLAIM for script in SCRIPTS]

HEAD = """\
# The claims, run

What is said of normalisation, and what experiments show: every section is a claim, the figure and the table
of its experiment, what was found, and the command that runs it. `python -m examples.claims` runs all of them,
in a checkout after `python -m pip install -e ".[examples]"`, and writes this page: nothing on it is typed by
hand. `--help` names the options, among them other data than the digits of scikit-learn.

Findings come from {seeds} seeds each. A difference counts if it is more than two standard deviations of the
differences between networks of the same seed; tables have means and standard deviations. These results took
{minutes:.0f} minutes on {machine}.
"""


TAIL = """\
## Other examples

- `python examples/quickstart.py` shows every function in thirty lines.
- `python examples/train_fashion.py` is a real training run, in NHWC: a residual network that recognises the
  clothes of Fashion-MNIST (92.99 % of the test images after 22.5 minutes on 2 cores of type znver3), and goes
  on bit for bit after it was killed; `--data digits` needs no files.
- `python examples/train_digits.py` trains an MLP and a CNN with and without batch norm.
- `python examples/torch_resnet.py` trains a residual network in PyTorch, with its norms and with numbabn's.
- `python examples/compare_norms.py` compares the norms by their errors, `--rnn` in a recurrent network.
- `python examples/recalibrate.py` shows what `numbabn.recalibrate` mends, `python examples/fold.py` how norms
  are folded into the layers before them.
- `python examples/dataset_statistics.py --data FOLDER` gives mean and standard deviation of images.
- `python examples/cupy_batch_norm.py` normalises arrays on a GPU.
"""


def page(results):
    """Return the page, where ``results[claim.name]`` are those of a claim."""
    any_of_them, seconds = results[CLAIMS[0].name], sum(each.seconds for each in results.values())
    parts = [HEAD.format(**any_of_them.options, minutes=seconds / 60)]
    parts += [section(claim, results[claim.name]) for claim in CLAIMS]
    return "\n".join([*parts, TAIL])


def section(claim, results):
    """Return the part of the page on one claim."""
    return f"""\
## {claim.statement}

{claim.source}.

![{claim.statement}](results/{claim.name}.png)

{claim.finding(results)}

{table_text(claim.table(results))}

`python -m examples.claims.{claim.name}` ({results.seconds:.0f} s)
"""
