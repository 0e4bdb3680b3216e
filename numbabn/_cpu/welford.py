"""Merging means and sums of squared deviations: Chan's formula, in float64, once per chunk of a channel."""

from numbabn._arrays import Array
from numbabn._cpu.jit import helper, small_kernel


@helper
def merge_sums(count, mean, m2, n, shift, s, q):
    """Merge n values with sum s and sum of squares q about ``shift`` into (count, mean, m2).

    Chan, Golub and LeVeque (1979), "Updating formulae and a pairwise algorithm for computing sample
    variances", eq. 2.1: with delta = mean_b - mean_a,

        mean = mean_a + delta * n_b / n,    m2 = m2_a + m2_b + delta**2 * n_a * n_b / n.

    Cancellation in m2_b = q - s*s/n costs eps * (1 + (shift - mean_b)**2 / var_b): harmless while the shift
    is a value of the data and n a few thousand, since (shift - mean_b)**2 <= n * var_b then.
    """
    merged = count + n
    weight = n / merged
    m2_b = q - s * (s / n)
    if m2_b < 0.0:  # by rounding; not max(), which would turn a NaN into 0
        m2_b = 0.0
    delta = shift + s / n - mean
    return merged, mean + delta * weight, m2 + m2_b + delta * delta * (count * weight)


@small_kernel
def merge_chunks(count, mean, m2):
    """Merge the chunks of count[chunks], mean[chunks, channels] and m2 into chunk 0, in order."""
    total = count[0]
    for k in range(1, len(count)):
        merged = total + count[k]
        weight = count[k] / merged
        for c in range(mean.shape[1]):
            delta = mean[k, c] - mean[0, c]
            mean[0, c] += delta * weight
            m2[0, c] += m2[k, c] + delta * delta * (total * weight)
        total = merged


def merged(
    count: int, mean: Array, m2: Array, more: int, more_mean: Array, more_m2: Array
) -> tuple[int, Array, Array]:
    """Return (count, mean, m2) of ``count`` values and ``more``: Chan, Golub and LeVeque (1979), eq. 2.1."""
    total = count + more
    delta = more_mean - mean
    weight = more / total
    return total, mean + delta * weight, m2 + more_m2 + delta * delta * (count * weight)
