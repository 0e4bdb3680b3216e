"""Names the GPU and the versions."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from numba import cuda

PACKAGES = (
    "numbabn", "numpy", "numba", "numba-cuda", "cuda-bindings",
    "cupy", "cupy-cuda13x", "cupy-cuda12x", "torch", "triton",
)  # fmt: skip


def l2_bytes() -> int:
    """Return the size of the device's L2 cache."""
    return int(cuda.get_current_device().L2_CACHE_SIZE)


def facts() -> Iterator[dict[str, Any]]:
    """Return label and text of all that a measurement depends on."""
    device = cuda.get_current_device()
    name = device.name.decode() if isinstance(device.name, bytes) else str(device.name)
    free, total = cuda.current_context().get_memory_info()
    found = {
        "GPU": f"{name}, compute capability {'.'.join(map(str, device.compute_capability))}",
        "Multiprocessors": str(device.MULTIPROCESSOR_COUNT),
        "L2 cache": f"{l2_bytes() / 2**20:.0f} MiB",
        "GPU memory": f"{total / 2**30:.0f} GiB, of which {free / 2**30:.0f} GiB were free",
        "Driver": _driver(),
        "Versions": ", ".join([f"Python {platform.python_version()}", *_versions()]),
        "System": platform.platform(),
        "Date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    for label, text in found.items():
        yield {"kind": "fact", "label": label, "text": text}
    yield {"kind": "device", "multiprocessors": int(device.MULTIPROCESSOR_COUNT), "l2_bytes": l2_bytes()}


def _driver() -> str:
    if shutil.which("nvidia-smi") is None:
        return "unknown"
    query = "--query-gpu=driver_version,clocks.max.sm,clocks.max.memory,power.limit"
    done = subprocess.run(
        ["nvidia-smi", query, "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    return done.stdout.strip() or "unknown"


def _versions() -> Iterator[str]:
    for package in PACKAGES:
        try:
            yield f"{package} {version(package)}"
        except PackageNotFoundError:
            continue
