"""Describe the machine and the software of a measurement, because a time means nothing without them."""

from __future__ import annotations

import datetime
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("numpy", "numba", "torch", "jax", "onednn-cpu-gomp", "scikit-learn")
GPU_PACKAGES = (
    "numpy", "numba", "numba-cuda", "cuda-bindings", "cupy", "cupy-cuda13x", "cupy-cuda12x",
    "torch", "triton",
)  # fmt: skip


def describe(threads: int | None = None) -> dict[str, str]:
    """Return what processor, caches, memory and software there are, as a text by label."""
    return {
        "Processor": _processor(),
        "Cores": str(os.cpu_count()) + (f", of which {threads} used by every library" if threads else ""),
        "Caches": _caches(),
        "Memory": _memory(),
        **_software(PACKAGES),
    }


def describe_gpu() -> dict[str, str]:
    """Return what GPU, cache, memory, driver and software there are, as a text by label."""
    from numba import cuda

    device = cuda.get_current_device()
    name = device.name.decode() if isinstance(device.name, bytes) else str(device.name)
    free, total = cuda.current_context().get_memory_info()
    return {
        "GPU": f"{name}, compute capability {'.'.join(map(str, device.compute_capability))}",
        "Multiprocessors": str(device.MULTIPROCESSOR_COUNT),
        "L2 cache": f"{device.L2_CACHE_SIZE / 2**20:.0f} MiB",
        "GPU memory": f"{total / 2**30:.0f} GiB, of which {free / 2**30:.0f} GiB were free",
        "Driver": _driver(),
        **_software(GPU_PACKAGES),
    }


def _software(packages: Iterable[str]) -> dict[str, str]:
    return {
        "System": platform.platform(),
        "Versions": ", ".join([f"Python {platform.python_version()}", *_versions(packages)]),
        "Date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _driver() -> str:
    """Return the version of the GPU's driver, the highest clocks and the power limit, as one text."""
    if shutil.which("nvidia-smi") is None:
        return "unknown"
    query = "--query-gpu=driver_version,clocks.max.sm,clocks.max.memory,power.limit"
    command = ["nvidia-smi", query, "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return done.stdout.strip() or "unknown"


def _versions(packages: Iterable[str]) -> list[str]:
    found = []
    for package in ("numbabn", *packages):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return found


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _processor() -> str:
    fields = dict(
        tuple(part.strip() for part in line.split(":", 1)) for line in _lines("/proc/cpuinfo") if ":" in line
    )
    name = fields.get("model name") or platform.processor() or platform.machine()
    family = f" (family {fields['cpu family']}, model {fields['model']})" if "cpu family" in fields else ""
    widest = next((flag for flag in ("avx512f", "avx2") if flag in fields.get("flags", "").split()), "")
    return name + family + (f", {widest}" if widest else "")


def _caches() -> str:
    found = []
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind, level, size, shared = (
            (folder / entry).read_text().strip() for entry in ("type", "level", "size", "shared_cpu_list")
        )
        if kind != "Instruction":
            found.append(f"L{level} {size}" + (f" shared by cores {shared}" if shared != "0" else ""))
    return ", ".join(found) or "unknown"


def _memory() -> str:
    total = _meminfo("MemTotal")
    return f"{total / 2**30:.0f} GiB" if total else "unknown"


def available_memory() -> int | None:
    """Return how many bytes programs can take without swapping, or None where Linux does not tell."""
    return _meminfo("MemAvailable")


def _meminfo(field: str) -> int | None:
    found = (line.split()[1] for line in _lines("/proc/meminfo") if line.startswith(f"{field}:"))
    kibibytes = next(found, None)
    return None if kibibytes is None else 1024 * int(kibibytes)
