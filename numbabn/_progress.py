"""A progress bar, which needs tqdm."""

from collections.abc import Iterable
from typing import Any


def bar(iterable: Iterable[Any], description: str, unit: str) -> Iterable[Any]:
    """Return the items unchanged, with a bar on standard error that counts them."""
    try:
        from tqdm.auto import tqdm
    except ImportError:
        raise ImportError(
            'progress=True needs tqdm: pip install "numbabn[progress]", or pass progress=False'
        ) from None
    counted: Iterable[Any] = tqdm(iterable, desc=description, unit=unit)
    return counted
