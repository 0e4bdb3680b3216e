"""What several seeds say: differences with their spread, and the words for them.

The last axis of all arrays here is that of the seeds. Networks of one seed have drawn the same first weights
and the same batches, so they are compared in pairs.
"""

import numpy as np

# Standard deviations that a mean difference must exceed to count. Between equal networks chance exceeds 2 in
# one of 90 comparisons of 5 seeds (Student's t of 2 * sqrt(5), 4 degrees of freedom).
CLEAR = 2
SEEN, NOT_SEEN, DEPENDS = "Seen", "Not seen", "Depends"


def effect(values, others):
    """Return 1 where values are clearly greater than others, -1 where clearly less, and 0 elsewhere."""
    gaps = np.asarray(values) - np.asarray(others)
    mean, deviation = gaps.mean(axis=-1), gaps.std(axis=-1, ddof=1)
    return np.where(np.abs(mean) > CLEAR * deviation, np.sign(mean), 0).astype(int)


def verdict(effects):
    """Return whether a claim is seen, from the `effect` in each setting, which is 1 where the claim holds."""
    holds = np.ravel(effects) > 0
    if holds.all():
        return SEEN
    return DEPENDS if holds.any() else NOT_SEEN


def best(losses):
    """Return for every setting the index of the learning rate with the least loss (or error).

    The axes of ``losses`` end with those of the rates and the seeds, over which the mean is taken. A rate
    with which training diverges from any seed, so that the loss is NaN, is taken only if there is no other.
    """
    means = np.mean(losses, axis=-1)
    return np.where(np.isnan(means), np.inf, means).argmin(axis=-1)


def at(values, chosen):
    """Return what was measured at the chosen learning rates, without the axis of the rates.

    ``chosen`` is from `best`; in ``values``, the axis of the rates follows those of ``chosen``.
    """
    axis = chosen.ndim
    index = chosen.reshape(chosen.shape + (1,) * (values.ndim - axis))
    return np.take_along_axis(values, index, axis).squeeze(axis)


def percent(values):
    """Return the mean over the seeds as text, such as ``95.1 %``."""
    return f"{100 * np.mean(values):.1f} %"


def spread(values, digits=1):
    """Return mean and standard deviation over the seeds as text, such as ``5.4 ± 0.5``."""
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1):.{digits}f}"


def percent_spread(values):
    """Return mean and standard deviation over the seeds as text, such as ``95.1 ± 0.3 %``."""
    return f"{spread(100 * np.asarray(values))} %"


def listed(texts):
    """Join texts as in a sentence: ``a, b and c``."""
    *first, last = texts
    return f"{', '.join(first)} and {last}" if first else last
