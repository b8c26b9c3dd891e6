"""Memory given back to the system early, and Python's garbage collector kept out of the way."""

from __future__ import annotations

import ctypes
import gc
import mmap
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_MADV_PAGEOUT = 21  # Linux


def page_out(tensor: torch.Tensor) -> None:
    """Drop the pages of the mapped file that `tensor` was read from; they can be read again.

    Where the system has no such call, nothing happens.
    """
    madvise = getattr(ctypes.CDLL(None), "madvise", None)
    begin = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    length = tensor.data_ptr() + tensor.nbytes - begin
    if madvise is not None and length > 0:
        madvise(ctypes.c_void_p(begin), ctypes.c_size_t(length), _MADV_PAGEOUT)


def collect() -> None:
    """Free what nothing refers to, and make the C library return freed memory to the system."""
    gc.collect()
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


@contextmanager
def collecting_on_demand() -> Iterator[None]:
    """Let only `collect` collect inside, and only what was made inside.

    Tracing makes millions of objects that live to its end, and torch and diffusers as many when
    they are imported. The collector would walk through all of them again and again.
    """
    was_enabled = gc.isenabled()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()
