"""Figures that need a fresh process: time of the import, peak memory."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ALL_NAMES = "[getattr(nnc, name) for name in nnc.__all__]"  # what is imported on first use is imported now

IMPORT = f"""
import time, torch
start = time.perf_counter()
import nnc
{ALL_NAMES}
print(time.perf_counter() - start)
"""

# VmHWM is the peak of this process alone; ru_maxrss starts at the memory of the parent that forked it and hides what stays below.
PEAK = f"""
import resource, sys
import torch, nnc
{ALL_NAMES}

def peak():
    try:
        with open("/proc/self/status") as file:
            return next(1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

before = peak()
nnc.compress(sys.argv[1], sys.argv[2], step=float(sys.argv[3]), threads=int(sys.argv[4]), overwrite=True)
print(peak() - before)
"""


def import_seconds() -> float:
    """Wall clock of `import nnc` and of everything that its names import, after `import torch`."""
    return float(_run(IMPORT))


def measure_peak(weights: Path, destination: Path, step: float, threads: int = 2) -> int:
    """Bytes of memory that `compress` takes at most beyond what the imports took."""
    return int(_run(PEAK, str(weights), str(destination), str(step), str(threads)))


def _run(code: str, *arguments: str) -> str:
    return subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True).stdout
