"""What kind of failure an exception is, for the record of the run that it ended."""

import torch

# The CPU allocator raises a plain RuntimeError: c10/core/impl/alloc_cpu.cpp has its name in the text.
CPU_ALLOCATOR = "DefaultCPUAllocator"


def cause_of(error: Exception | str) -> str | None:
    """One of `hyperp.record.CAUSES`; None for words, which do not say."""
    if isinstance(error, str):
        return None
    memory = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return "out_of_memory" if memory or CPU_ALLOCATOR in str(error) else "raised"
