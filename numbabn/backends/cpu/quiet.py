"""Arithmetic of NumPy that neither warns nor raises, whatever the caller has told NumPy to do.

NumPy keeps its settings in a context variable. ``quiet().run(function, *arguments)`` calls a function in a
context where NaN, overflow and underflow are results like any other, as ``numpy.errstate(all="ignore")``
does, in 0.13 us in place of 0.8. Only functions of ours run there: they do not see the context variables of
the caller.
"""

import contextvars

import numpy as np

with np.errstate(all="ignore"):
    quiet = contextvars.copy_context().copy
