"""The statistics of batch normalisation alone."""

from numbabn.arrays import native
from numbabn.norms._call import Call
from numbabn.norms._types import A


def moments(x: A, *, axis: int = 1) -> tuple[int, A, A]:
    r"""Count, mean and sum of squared deviations per channel.

    .. math:: \mu_c = \frac1n \sum x, \qquad M_{2,c} = \sum (x - \mu_c)^2

    over all axes but ``axis``; the variance is ``m2 / count``, or ``m2 / (count - 1)`` unbiased.

    Parameters
    ----------
    x : array of float16, bfloat16, float32 or float64, rank >= 2
        Any memory layout; C channels on ``axis``.
    axis : int, default 1
        Channel axis.

    Returns
    -------
    count : int
        Values per channel.
    mean, m2 : array of float64, shape (C,)
        NaN and 0 where there are no values.

    Raises
    ------
    TypeError
        If x is not an array of such a dtype.
    ValueError
        If x has rank below 2, or no such axis.

    Notes
    -----
    Everything is summed in float64 about values of the data, and chunks are merged with the formula of Chan,
    Golub and LeVeque (1979), "Updating formulae and a pairwise algorithm for computing sample variances",
    so that no offset of the data costs accuracy. The result has the same bits for any number of threads.

    Examples
    --------
    >>> import numpy as np, numbabn as nbn
    >>> count, mean, m2 = nbn.moments(np.array([[1.0, 10.0], [3.0, 30.0]]))
    >>> count, mean, m2 / count
    (2, array([ 2., 20.]), array([  1., 100.]))
    """
    count, pair = Call(x, axis).moments()
    mean, m2 = pair
    return count, native(mean), native(m2)
