"""Settings for glibc's allocator: keep freed memory.

By default it returns large tensors to the system, and the next step has to map their pages again. That takes up to
half of a layer's time on a CPU and two thirds of the optimiser's.
"""

import ctypes

NO_MAPPING = (-4, 0)  # M_MMAP_MAX
NO_TRIMMING = (-1, 2**31 - 1)  # M_TRIM_THRESHOLD, bytes


def keep_freed_memory() -> bool:
    """Make this process keep freed memory for its next tensors; return whether the C library can do that."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc; on Windows CDLL takes no None
        return False
    return all(mallopt(*option) for option in (NO_MAPPING, NO_TRIMMING))
