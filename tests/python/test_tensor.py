"""Tensors share their memory with NumPy and torch, both ways."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import intaglio
from intaglio import _core, _tensor

DTYPES = [np.float32, np.int64, np.uint8]


def address(array: np.ndarray[Any, Any]) -> int:
    return int(array.__array_interface__["data"][0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_numpy_there_and_back_is_the_same_memory(dtype: type) -> None:
    array = np.arange(24).astype(dtype).reshape(2, 3, 4)
    back = _tensor.to_numpy(_tensor.from_array(array))
    assert address(back) == address(array)
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, array)
    array[1, 2, 3] = 7
    assert back[1, 2, 3] == 7


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.uint8])
def test_torch_there_and_back_is_the_same_memory(dtype: torch.dtype) -> None:
    tensor = torch.arange(6).to(dtype).reshape(2, 3)
    back = torch.from_dlpack(_tensor.to_numpy(_tensor.from_array(tensor)))
    assert back.data_ptr() == tensor.data_ptr()
    assert torch.equal(back, tensor)


def test_what_the_library_made_reaches_torch_without_a_copy() -> None:
    noise = _core.draw_noise([2, 3], [5])
    assert torch.from_dlpack(noise).data_ptr() == address(noise)


class Exporter:
    """An array of another library, which has DLPack and nothing else."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


def test_any_object_with_dlpack_will_do() -> None:
    array = np.ones((3, 2), np.float32)
    assert address(_tensor.to_numpy(_tensor.from_array(Exporter(array)))) == address(array)


def test_read_only_arrays_are_taken() -> None:
    array = np.ones(4, np.float32)
    array.flags.writeable = False
    assert address(_tensor.to_numpy(_tensor.from_array(array))) == address(array)


def test_shapes_without_elements_or_axes() -> None:
    for shape in [(), (0,), (2, 0, 3)]:
        assert _tensor.to_numpy(_tensor.from_array(np.zeros(shape, np.float32))).shape == shape


def test_the_array_lives_as_long_as_the_tensor() -> None:
    array = np.ones(8, np.float32)
    alive = weakref.ref(array)
    capsule: Any = _tensor.from_array(array)
    del array
    gc.collect()
    assert alive() is not None
    view = _tensor.to_numpy(capsule)
    del capsule
    gc.collect()
    assert alive() is not None
    del view
    gc.collect()
    assert alive() is None


def test_memory_of_the_library_outlives_what_made_it() -> None:
    generator = _core.Generator(3)
    noise = generator.randn([1000])
    expected = noise.copy()
    del generator
    gc.collect()
    np.testing.assert_array_equal(noise, expected)


WRONG: list[Any] = [
    np.zeros(3, np.float64),
    np.zeros(3, np.float16),
    np.zeros((4, 4), np.float32)[:, ::2],
    np.zeros((2, 3), np.float32).T,
    torch.zeros(3, dtype=torch.bfloat16),
    [1.0, 2.0],
    "text",
    None,
]


@pytest.mark.parametrize("array", WRONG, ids=lambda a: type(a).__name__)
def test_nothing_is_converted_behind_the_back(array: Any) -> None:
    with pytest.raises(TypeError):
        _tensor.from_array(array)


@pytest.mark.parametrize("array", WRONG[:-1], ids=lambda a: type(a).__name__)
def test_the_api_says_what_it_needs(array: Any, tmp_path: Path) -> None:
    with pytest.raises(intaglio.InputError, match=r"float32, int64 or uint8 in C order"):
        _core.save_npy(tmp_path / "x.npy", array)
    assert not list(tmp_path.iterdir())


def test_a_capsule_of_something_else_is_refused() -> None:
    import datetime

    datetime.datetime.now()
    with pytest.raises((ValueError, TypeError)):
        _tensor.to_numpy(datetime.datetime_CAPI)  # type: ignore[attr-defined]


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_npy_files_are_numpys(dtype: type, tmp_path: Path) -> None:
    array = np.arange(12).astype(dtype).reshape(3, 4)
    _core.save_npy(tmp_path / "ours.npy", array)
    np.testing.assert_array_equal(np.load(tmp_path / "ours.npy"), array)
    np.save(tmp_path / "theirs.npy", array)
    np.testing.assert_array_equal(_core.load_npy(tmp_path / "theirs.npy"), array)
