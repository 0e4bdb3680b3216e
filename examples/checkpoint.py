"""Files that keep what a run needs to go on, and that are whole or not there, whenever it was killed.

A checkpoint of training is one .npz file without pickle. It has the arrays of the network and of its
optimiser, and as JSON the state of the random numbers, the history, and the options of the run.
"""

import json
import os
from contextlib import contextmanager

import numpy as np
from minimal_nn import part_of

REMEDY = "delete it to start anew, or give another --checkpoint"


@contextmanager
def replacing(path):
    """Open a temporary file for a context, which takes the place of the file at this path in the end."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())  # the content is on the disk before the name is
    temporary.replace(path)


def save(path, options, run):
    """Write the checkpoint of a run, which has a ``net``, an ``sgd``, an ``rng`` and a ``history``.

    The network and its optimiser offer ``state_dict`` and ``load_state_dict``; the history is a list that
    JSON can hold. ``options`` is a dictionary of what a run that goes on must have in common.
    """
    facts = {"options": options, "random": run.rng.bit_generator.state, "history": run.history}
    arrays = {
        f"{part}.{name}": value
        for part, owner in _owners(run).items()
        for name, value in owner.state_dict().items()
    }
    with replacing(path) as file:
        np.savez(file, facts=json.dumps(facts), **arrays)


def restore(path, options, run):
    """Bring a new run to where the checkpoint was written; exit if it is broken or of other options."""
    facts, arrays = _read(path)
    try:
        found, random, history = (facts[name] for name in ("options", "random", "history"))
        _check(path, options, found)
        for part, owner in _owners(run).items():
            owner.load_state_dict(part_of(arrays, f"{part}."))
        run.rng.bit_generator.state = random
    except (KeyError, TypeError, ValueError) as error:
        raise SystemExit(f"{path} is no checkpoint of this network ({error}); {REMEDY}") from error
    run.history[:] = history


def _owners(run):
    """Return who has arrays in a checkpoint, by the first part of their names there."""
    return {"net": run.net, "velocity": run.sgd}


def _read(path):
    """Return the facts and the arrays in a file."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = dict(file)
        return json.loads(str(arrays.pop("facts"))), arrays
    except Exception as error:  # a broken file can raise almost any exception
        raise SystemExit(f"{path} is no checkpoint, or broken ({error}); {REMEDY}") from error


def _check(path, options, found):
    """Exit if a checkpoint has other options than these."""
    other = [name for name in options if found[name] != options[name]]
    if other:
        there, here = (
            " ".join(f"--{name.replace('_', '-')} {these[name]}" for name in other)
            for these in (found, options)
        )
        raise SystemExit(f"{path} is the checkpoint of a run with {there}, and this one has {here}; {REMEDY}")
