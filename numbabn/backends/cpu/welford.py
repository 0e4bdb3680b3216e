"""Merging moments of chunks, in float64: once per chunk of a channel, with Chan's formula."""

from numbabn.backends import arithmetic
from numbabn.backends.cpu.jit import helper, small_kernel

merge_means = helper(arithmetic.merge_means)


@helper
def moments_of_sums(n, shift, s, q):
    """Return (mean, m2) of n values with sum s and sum of squares q about ``shift``.

    Cancellation in m2 = q - s*s/n costs eps * (1 + (shift - mean)**2 / var): harmless while the shift is a
    value of the data and n a few thousand, since (shift - mean)**2 <= n * var then.
    """
    m2 = q - s * (s / n)
    if m2 < 0.0:  # by rounding; not max(), which would turn a NaN into 0
        m2 = 0.0
    return shift + s / n, m2


@helper
def merge_sums(count, mean, m2, n, shift, s, q):
    """Merge n values with sum s and sum of squares q about ``shift`` into (count, mean, m2)."""
    mean_b, m2_b = moments_of_sums(n, shift, s, q)
    total, mean, between = merge_means(count, mean, n, mean_b)
    return total, mean, m2 + m2_b + between


@small_kernel
def merge_chunks(count, pair):
    """``merge_all``, to be called from Python."""
    merge_all(count, pair)


@helper
def merge_all(count, pair):
    """Merge the chunks of count[chunks] and (mean, m2), pair[2, chunks, channels], into chunk 0, in order.

    Return how many values all chunks have.
    """
    mean, m2 = pair[0], pair[1]
    total = count[0]
    for k in range(1, len(count)):
        more = count[k]
        for c in range(mean.shape[1]):
            _, mean[0, c], between = merge_means(total, mean[0, c], more, mean[k, c])
            m2[0, c] += m2[k, c] + between
        total += more
    return total
