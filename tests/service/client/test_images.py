"""What callers call images, and the requests that it is split into."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from service.client import InputError
from service.client.images import Entry, File, Tensor, Unsendable, entries
from service.client.parts import FilePart, Part, TensorPart, split


def pixels(mode: str, content: bytes) -> bytes:
    with Image.open(io.BytesIO(content)) as image:
        return image.convert(mode).tobytes()


def test_files_are_sent_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"one")
    found = list(entries([str(tmp_path / "a.png"), tmp_path / "a.png", b"two"]))
    assert found == [
        File(0, str(tmp_path / "a.png"), b"one"),
        File(1, str(tmp_path / "a.png"), b"one"),
        File(2, "images[2]", b"two"),
    ]


@pytest.mark.parametrize("path", ["missing.png", ".", "a\0b", "\ud800"])
def test_a_file_that_cannot_be_read_fails_in_its_place(path: str) -> None:
    first, failed, last = entries([b"one", path, b"two"])
    assert isinstance(failed, Unsendable)
    assert (first.position, failed.position, last.position) == (0, 1, 2)
    assert failed.failed.error.field == path
    assert failed.failed.error.detail.startswith("cannot be read: ")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_pillow_images_become_png_without_loss(mode: str) -> None:
    grey = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6) * 10)
    image = grey.convert(mode)
    (entry,) = entries(image)
    assert isinstance(entry, File)
    with Image.open(io.BytesIO(entry.content)) as again:
        assert again.format == "PNG"
        assert again.size == (6, 4)
        assert again.convert(image.mode).tobytes() == image.tobytes()


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "RGBX", "PA"])
def test_colours_that_png_lacks_become_rgb(mode: str) -> None:
    image = Image.new("RGB", (2, 3), (200, 100, 50)).convert(mode)
    (entry,) = entries(image)
    assert isinstance(entry, File)
    assert pixels("RGB", entry.content) == image.convert("RGB").tobytes()


@pytest.mark.parametrize("mode", ["I", "F", "LAB"])
def test_other_modes_fail_in_their_place(mode: str) -> None:
    good, bad = entries([Image.new("L", (2, 3)), Image.new(mode, (2, 3))])
    assert isinstance(good, File)
    assert isinstance(bad, Unsendable)
    assert bad.failed.error.detail == f"image mode {mode!r} is not supported; send 8 bits a channel, grey or colour"


def test_a_pillow_image_whose_file_is_cut_short_fails_in_its_place() -> None:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, "PNG")
    with Image.open(io.BytesIO(buffer.getvalue()[:200])) as image:
        (failed,) = entries(image)
    assert isinstance(failed, Unsendable)
    assert failed.failed.error.detail.startswith("image is empty, closed, truncated or damaged: ")


def broken_png() -> Image.Image:
    """Its second chunk of pixels has a name that is none."""
    buffer = io.BytesIO()
    Image.effect_noise((400, 400), 50).save(buffer, "PNG")
    start = buffer.getvalue().index(b"IDAT", buffer.getvalue().index(b"IDAT") + 4)
    return Image.open(io.BytesIO(buffer.getvalue()[:start] + bytes(4) + buffer.getvalue()[start + 4 :]))


def closed() -> Image.Image:
    image = Image.new("L", (2, 3))
    image.close()
    return image


@pytest.mark.parametrize("make", [broken_png, closed, lambda: Image.new("L", (0, 0))])
def test_a_pillow_image_that_gives_no_pixels_fails_in_its_place(make: Callable[[], Image.Image]) -> None:
    with make() as image:
        first, failed, last = entries([b"one", image, b"two"])
    assert isinstance(failed, Unsendable)
    assert (first.position, failed.position, last.position) == (0, 1, 2)


def test_a_pillow_image_is_sent_upright() -> None:
    image = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    with Image.open(buffer) as turned:
        (entry,) = entries(turned)
    assert isinstance(entry, File)
    assert pixels("L", entry.content) == np.rot90(np.arange(6, dtype=np.uint8).reshape(2, 3), -1).tobytes()


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64, ">f4"])
def test_arrays_keep_their_values(dtype: str | type) -> None:
    batch = np.linspace(0, 1, 2 * 3 * 4 * 5).reshape(2, 3, 4, 5).astype(dtype)
    found = [*entries(batch), *entries(list(batch)), *entries(batch[0])]
    assert [entry.position for entry in found] == [0, 1, 0, 1, 0]
    for entry, expected in zip(found, [*batch, *batch, batch[0]], strict=True):
        assert isinstance(entry, Tensor)
        assert entry.content.dtype == (np.uint8 if dtype is np.uint8 else np.float32)
        np.testing.assert_array_equal(entry.content, expected.astype(np.float32))


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (np.nan, "must be finite"),
        (np.inf, "must be finite"),
        (1e300, "must be finite"),
        (-0.5, "the least is -0.5"),
        (1 + 2**-23, "values must lie in [0, 1]; the greatest is 1.0000001"),
        (255, "divide by 255, or send uint8; the greatest is 255"),
    ],
)
def test_a_bad_array_fails_in_its_place(value: float, told: str) -> None:
    batch = np.zeros((3, 1, 2, 2))
    batch[1, 0, 1, 1] = value
    good, bad, other = entries(batch)
    assert isinstance(good, Tensor)
    assert isinstance(other, Tensor)
    assert isinstance(bad, Unsendable)
    assert bad.failed.error.field == "images[1]"
    assert told in bad.failed.error.detail


@pytest.mark.parametrize(
    "images",
    [5, None, {"a": 1}, [5], [[b"nested"]], np.zeros((2, 2)), np.zeros((0, 1, 2, 2)), np.zeros((1, 2, 2), int)],
)
def test_what_is_no_image_is_told(images: object) -> None:
    with pytest.raises(InputError, match=r"an image is|an array of images"):
        list(entries(images))  # type: ignore[arg-type]


sendable = st.one_of(
    st.integers(1, 12).map(lambda size: b"x" * size),
    st.sampled_from([(np.uint8, 2), (np.float32, 2), (np.float32, 3)]).map(
        lambda form: np.zeros((1, form[1], form[1]), form[0])
    ),
    st.just("missing.png"),
)


@given(images=st.lists(sendable, max_size=30), max_instances=st.integers(1, 5), max_bytes=st.integers(1, 40))
def test_every_image_is_sent_once_within_the_limits(images: list[object], max_instances: int, max_bytes: int) -> None:
    parts = list(split(entries(images), max_instances=max_instances, max_bytes=max_bytes))  # type: ignore[arg-type]
    seen: list[int] = []
    for part in parts:
        inside = members(part)
        seen += [entry.position for entry in inside]
        assert 1 <= len(inside) <= max_instances
        sizes = [size(entry) for entry in inside]
        assert len(sizes) == 1 or sum(sizes) <= max_bytes
        if isinstance(part, TensorPart):
            assert part.stacked().shape == (len(inside), *part.shape)
    assert sorted(seen) == list(range(len(images)))
    assert all(members(part) == sorted(members(part), key=lambda entry: entry.position) for part in parts)


def members(part: Part | Unsendable) -> list[Entry]:
    if isinstance(part, Unsendable):
        return [part]
    return [*(part.files if isinstance(part, FilePart) else part.tensors)]


def size(entry: Entry) -> int:
    if isinstance(entry, Unsendable):
        return 0
    return len(entry.content) if isinstance(entry, File) else entry.content.nbytes


def test_files_are_read_no_further_ahead_than_they_are_sent() -> None:
    taken = []

    def images():  # type: ignore[no-untyped-def]
        for number in range(10):
            taken.append(number)
            yield b"image"

    parts = split(entries(images()), max_instances=2, max_bytes=1000)
    next(parts)
    assert taken == [0, 1]
