"""Name the machine and the versions a measurement was made with: a time without them means nothing."""

from __future__ import annotations

import datetime
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("numpy", "numba", "torch", "jax", "scikit-learn")


def describe(threads: int | None = None) -> dict[str, str]:
    """Return the processor, its caches, the system, the versions and the date, as label and text."""
    return {
        "Processor": _processor(),
        "Cores": str(os.cpu_count()) + (f", of which {threads} used by every library" if threads else ""),
        "Caches": _caches(),
        "Memory": _memory(),
        "System": platform.platform(),
        "Versions": ", ".join([f"Python {platform.python_version()}", *_versions()]),
        "Date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def short() -> str:
    """Return the processor and the date, for the foot of a figure."""
    return f"{_processor()}, {datetime.datetime.now(datetime.UTC):%Y-%m-%d}"


def _versions() -> list[str]:
    found = []
    for package in ("numbabn", *PACKAGES):
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
    total = next((line.split()[1] for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), None)
    return f"{int(total) / 2**20:.0f} GiB" if total else "unknown"
