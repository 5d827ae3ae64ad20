import hashlib
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from model.image_tensors import decode_image
from model.images import ImageFormat
from service.decoding import Limits, decode_file
from service.quarantine.files import NPY, PNG, picture_of, read_image, write_image
from tests.service.quarantine.conftest import noise

SHAPES = st.tuples(st.sampled_from([1, 2, 3, 5]), st.integers(1, 9), st.integers(1, 9))


@given(arrays.arrays(np.uint8, SHAPES))
def test_levels_come_back_to_the_bit(levels):
    image = np.divide(levels, 255, dtype=np.float32)
    file = write_image(image)
    assert file.media_type == (PNG if len(levels) in (1, 3) else NPY)
    np.testing.assert_array_equal(read_image(file.content, file.media_type), image)


@given(arrays.arrays(np.float32, SHAPES, elements=st.floats(0, 1, width=32)))
def test_any_floats_come_back_to_the_bit(image):
    file = write_image(image)
    np.testing.assert_array_equal(read_image(file.content, file.media_type), image)


def test_floats_beside_a_level_are_not_rounded():
    image = noise(1)
    image[0, 0, 0] = np.nextafter(np.float32(0.5), np.float32(1))
    assert write_image(image).media_type == NPY


def test_the_digest_is_that_of_the_file():
    file = write_image(noise(1))
    assert file.digest == hashlib.sha256(file.content).hexdigest()
    assert write_image(noise(2)).digest != file.digest


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_nothing_of_a_file_but_its_pixels_is_kept(mode):
    channels = len(mode)
    picture = Image.fromarray(np.full((8, 8, 3), 77, np.uint8)).convert(mode)
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", exif=exif)
    image_format = ImageFormat(shape=(channels, 8, 8))
    limits = Limits(image_format=image_format, max_pixels=64, max_instances=1, max_body_bytes=4096)
    file = write_image(decode_file("body", buffer.getvalue(), limits).images[0])
    assert b"taken at home" in buffer.getvalue()
    assert b"taken at home" not in file.content
    with Image.open(io.BytesIO(file.content)) as written:
        assert not written.getexif()
    assert decode_image(file.content, image_format, max_pixels=64).eq(77).all()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_there_is_a_picture_of_everything(channels):
    file = write_image(np.full((channels, 4, 6), 0.3, np.float32))
    with Image.open(io.BytesIO(picture_of(file.content, file.media_type))) as picture:
        assert (picture.format, picture.size) == ("PNG", (6, 4))
        assert set(np.asarray(picture).flat) == {round(0.3 * 255)}
