"""Tensors -> images: every form of the same numbers gives the same images, and whatever is wrong is named."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from model.images import ImageFormat
from service.errors import InvalidInputError
from service.inference_protocol.tensors import InputTensor, images_of

FORMAT = ImageFormat(shape=(2, 3, 4))
MOST = 5
HUGE = 2**63 - 1


def tensor(
    data: Any, *, shape: tuple[int, ...], datatype: str = "FP32", name: str = "images", position: int = 0
) -> InputTensor:
    return InputTensor(field=f"inputs[{position}]", name=name, datatype=datatype, shape=shape, data=data)


def good(num_images: int = 1, **changed: Any) -> InputTensor:
    return tensor(**{"data": bytes(num_images * 96), "shape": (num_images, 2, 3, 4), **changed})


def fault(*inputs: InputTensor) -> tuple[str, str]:
    with pytest.raises(InvalidInputError) as caught:
        images_of(inputs, FORMAT, max_instances=MOST)
    first = caught.value.faults[0]
    return first.field, first.detail


shapes = st.integers(1, MOST).map(lambda number: (number, *FORMAT.shape))
units = st.floats(0, 1, width=32)


@given(array=shapes.flatmap(lambda shape: arrays.arrays(np.float32, shape, elements=units)))
def test_floats_are_the_same_in_every_form(array):
    forms = [array.tobytes(), memoryview(array.tobytes()), array.ravel(), array.tolist(), array.ravel().tolist()]
    for data in forms:
        found = images_of([tensor(data, shape=array.shape)], FORMAT, max_instances=MOST)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, array)


@given(array=shapes.flatmap(lambda shape: arrays.arrays(np.uint8, shape)))
def test_bytes_are_the_same_in_every_form(array):
    expected = (array.astype(np.float64) / 255).astype(np.float32)
    forms = [array.tobytes(), array.ravel().astype(np.uint32), array.tolist(), array.ravel().tolist()]
    for data in forms:
        found = images_of([tensor(data, shape=array.shape, datatype="UINT8")], FORMAT, max_instances=MOST)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)


def test_floats_of_a_buffer_are_not_copied():
    buffer = bytes(96)
    found = images_of([good(data=buffer)], FORMAT, max_instances=MOST)
    assert np.shares_memory(found, np.frombuffer(buffer, np.float32))


def test_the_inputs_are_images_and_nothing_else():
    assert fault() == ("inputs", "no input given; this model takes 'images'")
    assert fault(good(name="image")) == ("inputs[0].name", "unknown input 'image'; this model takes 'images'")
    assert fault(good(), good(position=1)) == ("inputs[1].name", "'images' is given twice")
    assert fault(good(), good(position=1, name="mask"))[0] == "inputs[1].name"


@pytest.mark.parametrize("datatype", ["FP64", "FP16", "INT64", "BYTES", "fp32", "", "x" * 1000])
def test_other_datatypes_are_refused(datatype):
    field, detail = fault(good(datatype=datatype))
    assert field == "inputs[0].datatype"
    assert detail.endswith("is not taken; send FP32 or UINT8")
    assert len(detail) < 200


@pytest.mark.parametrize(
    ("shape", "detail"),
    [
        ((), "is []; this model takes [n, 2, 3, 4] with n from 1 to 5"),
        ((2, 3, 4), "is [2, 3, 4]; this model"),
        ((1, 24), "is [1, 24]; this model"),
        ((1, 3, 2, 4), "is [1, 3, 2, 4]; this model"),
        ((1, 2, 3, 4, 1), "is [1, 2, 3, 4, 1]; this model"),
        ((1, 2, -3, -4), "is [1, 2, -3, -4]; this model"),
        ((HUGE,) * 9, f"is {[HUGE] * 8}; this model"),
        ((0, 2, 3, 4), "0 images; this model takes"),
        ((-1, 2, 3, 4), "-1 images; this model takes"),
        ((6, 2, 3, 4), "6 images; this model takes [n, 2, 3, 4] with n from 1 to 5"),
        ((HUGE, 2, 3, 4), f"{HUGE} images; this model takes"),
        ((10**30, 2, 3, 4), f"{10**30} images; this model takes"),
    ],
)
@pytest.mark.parametrize("data", [bytes(96), [0.0] * 24], ids=["buffer", "list"])
def test_a_wrong_shape_is_refused_before_the_data_is_looked_at(shape, detail, data):
    field, found = fault(tensor(data, shape=shape))
    assert field == "inputs[0].shape"
    assert found.startswith(detail)


@pytest.mark.parametrize(
    ("data", "datatype", "detail"),
    [
        (bytes(95), "FP32", "95 bytes; FP32 of shape [1, 2, 3, 4] takes 96"),
        (bytes(97), "FP32", "97 bytes"),
        (b"", "FP32", "0 bytes"),
        (bytes(96), "UINT8", "96 bytes; UINT8 of shape [1, 2, 3, 4] takes 24"),
        (np.zeros(23, np.float32), "FP32", "23 elements; the shape [1, 2, 3, 4] takes 24"),
        ([], "FP32", "0 elements"),
        ([0.5] * 23, "FP32", "23 elements"),
        ([[0.5] * 24], "FP32", "axis 1 has not"),
        ([0.5, [0.5] * 23], "FP32", "2 elements"),
        (np.zeros((1, 2, 3, 5)).tolist(), "FP32", "axis 3 has not"),
        (np.zeros((1, 2, 3, 4, 1)).tolist(), "FP32", "element 0 is none of the numbers"),
        (np.zeros((2, 2, 3, 4)).tolist(), "FP32", "axis 0 has not"),
        ([[[[0.5] * 4] * 3, [[0.5] * 4] * 2 + ["abcd"]]], "FP32", "axis 3 has not"),
        ([[[[0.5] * 4] * 3, {"a": 1, "b": 2, "c": 3}]], "FP32", "axis 2 has not"),
        ([0.5] * 23 + ["0.5"], "FP32", "element 23 is none of the numbers that FP32 takes"),
        ([True] + [0.5] * 23, "FP32", "element 0 is none of the numbers"),
        ([0.5, None] + [0.5] * 22, "FP32", "element 1 is none of the numbers"),
        ([0.5] * 23 + [[0.5]], "FP32", "element 23 is none of the numbers"),
        ([0] * 23 + [10**400], "FP32", "values must lie in [0, 1]"),
        ([0] * 23 + [1.0], "UINT8", "element 23 is none of the whole numbers that UINT8 takes"),
        ([0] * 23 + [False], "UINT8", "element 23 is none of the whole numbers"),
    ],
)
def test_data_that_does_not_fit_its_shape_or_datatype(data, datatype, detail):
    field, found = fault(good(data=data, datatype=datatype))
    assert field == "inputs[0].data"
    assert detail in found


@pytest.mark.parametrize(
    ("value", "detail"),
    [
        (float("nan"), "must be finite"),
        (float("inf"), "must be finite"),
        (float("-inf"), "must be finite"),
        (-0.25, "values must lie in [0, 1]; the least is -0.25"),
        (1.5, "values must lie in [0, 1]; the greatest is 1.5"),
        (1 + 2**-23, "values must lie in [0, 1]; the greatest is 1.0000001"),
        (255, "values must lie in [0, 1]; divide by 255, or send UINT8; the greatest is 255"),
    ],
)
@pytest.mark.parametrize("form", ["buffer", "array", "list"])
def test_each_bad_image_is_named(value, detail, form):
    array = np.full((4, 2, 3, 4), 0.5, np.float32)
    array[1, 1, 2, 3] = array[3, 0, 0, 0] = value
    data = {"buffer": array.tobytes(), "array": array.ravel(), "list": array.tolist()}[form]
    with pytest.raises(InvalidInputError) as caught:
        images_of([tensor(data, shape=array.shape)], FORMAT, max_instances=MOST)
    assert [found.field for found in caught.value.faults] == ["images[1]", "images[3]"]
    assert all(detail in found.detail for found in caught.value.faults)


@pytest.mark.parametrize(("value", "detail"), [(256, "the greatest is 256"), (-1, "the least is -1")])
def test_numbers_that_are_no_bytes(value, detail):
    field, found = fault(good(data=[0] * 23 + [value], datatype="UINT8"))
    assert (field, "values must lie in [0, 255]" in found, detail in found) == ("images[0]", True, True)
    assert fault(good(data=np.full(24, 256, np.uint32), datatype="UINT8"))[0] == "images[0]"
