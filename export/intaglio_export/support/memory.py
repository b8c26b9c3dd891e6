"""Gives memory back to the system early. Where it has no such call, nothing happens."""

from __future__ import annotations

import ctypes
import gc
import mmap

import torch

_MADV_PAGEOUT = 21  # Linux


def page_out(tensor: torch.Tensor) -> None:
    """Let go of the pages of a mapped file that `tensor` was read from; they can be read again."""
    madvise = getattr(ctypes.CDLL(None), "madvise", None)
    begin = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    length = tensor.data_ptr() + tensor.nbytes - begin
    if madvise is not None and length > 0:
        madvise(ctypes.c_void_p(begin), ctypes.c_size_t(length), _MADV_PAGEOUT)


def collect() -> None:
    """Free what nothing refers to. The C library keeps freed memory for itself until told."""
    gc.collect()
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)
