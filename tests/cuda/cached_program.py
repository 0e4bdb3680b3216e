"""Compile a kernel as at a launch, for a device that is not there; print how often it was found on disk.

Run by `test_caching`, in processes of their own: what is compiled once is not looked for again.
"""

import sys
from types import SimpleNamespace

from numba.cuda import codegen, dispatcher

from numbabn.backends.cuda import copies, launching

CAPABILITY = tuple(map(int, sys.argv[1].split(".")))

device = SimpleNamespace(compute_capability=CAPABILITY)
dispatcher.get_current_device = lambda: device
codegen.devices.get_context = lambda: SimpleNamespace(device=device)
dispatcher._Kernel.bind = lambda kernel: kernel._codelibrary.get_cubin(cc=CAPABILITY)

compiled = copies._fill.dispatcher()
kernel = compiled.compile(launching.signature((3, 0.5, (4096, 3))))
cubin = kernel._codelibrary.get_cubin(cc=CAPABILITY)
print(sum(compiled._cache_hits.values()), sum(compiled._cache_misses.values()), len(cubin.code))
