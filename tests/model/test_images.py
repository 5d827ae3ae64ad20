import io
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from model.errors import ImageError
from model.image_guards import MAX_SCANS
from model.image_tensors import decode_image
from model.images import FORMATS, ImageFormat, ImageSizeError, native_format

GREY = ImageFormat(shape=(1, 6, 8))
COLOUR = ImageFormat(shape=(3, 6, 8))
RESIZED = ImageFormat(shape=(3, 6, 8), resize=True)


def picture(mode: str = "RGB", size: tuple[int, int] = (8, 6)) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, *, bit_depth: int = 8, colour: int = 0, pixels: bytes = b"") -> bytes:
    """A PNG put together by hand, whose header may claim anything."""
    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "BMP"])
def test_lossless_formats_keep_every_pixel(kind: str) -> None:
    image = picture()
    decoded = decode_image(encode(image, kind), COLOUR)
    assert decoded.dtype == torch.uint8
    assert torch.equal(decoded, torch.from_numpy(np.array(image)).permute(2, 0, 1))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("image_format", [GREY, COLOUR], ids=["grey", "colour"])
def test_every_format_becomes_the_network_s_shape(kind: str, image_format: ImageFormat) -> None:
    assert decode_image(encode(picture(), kind), image_format).shape == image_format.shape


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("image_format", [GREY, COLOUR], ids=["grey", "colour"])
def test_every_mode_is_converted_as_pillow_does(mode: str, image_format: ImageFormat) -> None:
    image = picture(mode)
    expected = np.array(image.convert(image_format.mode), dtype=np.uint8).reshape(6, 8, -1)
    decoded = decode_image(encode(image), image_format)
    assert torch.equal(decoded, torch.from_numpy(expected).permute(2, 0, 1))


UNPACKS = zlib.compress(bytes(PngImagePlugin.MAX_TEXT_CHUNK + 1))  # to more than Pillow would unpack without an error
NOTES = [
    chunk(b"tEXt", b"Comment\0of ordinary size"),
    chunk(b"zTXt", b"a\0\0" + UNPACKS),
    chunk(b"iTXt", b"a\0\1\0\0\0" + UNPACKS),
    chunk(b"iCCP", b"a\0\0" + UNPACKS),
]


@pytest.mark.parametrize("note", NOTES, ids=["tEXt", "zTXt", "iTXt", "iCCP"])
def test_texts_and_profiles_of_a_png_are_never_unpacked(note: bytes) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    data = encode(picture("L"), exif=exif)
    before, behind = data.index(b"IDAT") - 4, data.index(b"IEND") - 4
    with_notes = data[:before] + note + data[before:behind] + note + data[behind:]
    assert native_format(with_notes) == GREY
    assert torch.equal(decode_image(with_notes, GREY), decode_image(data, GREY))


def test_a_jpeg_of_more_scans_than_any_encoder_writes_is_refused() -> None:
    data = encode(picture("L"), "JPEG", progressive=True)
    end = len(data) - 2
    scan = data[data.rindex(b"\xff\xda") : end]
    most = MAX_SCANS - data.count(b"\xff\xda")
    kept = (
        data[:2] + b"\xff\xe5\0\x08" + b"\xff\xda" * 3 + data[2:]
    )  # what looks like scans inside of another segment
    assert decode_image(kept[:-2] + scan * most + kept[-2:], GREY).shape == GREY.shape
    with pytest.raises(ImageError, match="JPEG has more than 100 scans, the limit"):
        decode_image(data[:end] + scan * (most + 1) + data[end:], GREY)


def test_a_cmyk_jpeg_is_decoded() -> None:
    assert decode_image(encode(picture("CMYK"), "JPEG"), COLOUR).shape == (3, 6, 8)


def test_transparency_is_dropped_not_painted() -> None:
    image = Image.new("RGBA", (8, 6), (200, 100, 50, 0))
    assert decode_image(encode(image), COLOUR)[:, 0, 0].tolist() == [200, 100, 50]


@pytest.mark.parametrize("kind", ["GIF", "PNG"])
def test_the_first_frame_of_an_animation_is_taken(kind: str) -> None:
    frames = [Image.new("L", (8, 6), value) for value in (10, 200)]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    assert decode_image(data, GREY).unique().tolist() == [10]


TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.T,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].T,
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", TURNS)
def test_exif_orientation_is_applied(orientation: int) -> None:
    stored = np.arange(48, dtype=np.uint8).reshape(6, 8)
    expected = TURNS[orientation](stored)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(stored), "PNG", exif=exif)
    image_format = ImageFormat(shape=(1, *expected.shape))
    assert native_format(data) == image_format
    assert torch.equal(decode_image(data, image_format)[0], torch.from_numpy(expected.copy()))


def test_an_image_that_its_orientation_turns_to_the_wrong_size_is_refused() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with pytest.raises(ImageSizeError, match="6 x 8 pixels; this model takes 8 x 6"):
        decode_image(encode(picture("L"), "JPEG", exif=exif), GREY)


def test_a_wrong_size_is_refused_with_both_sizes() -> None:
    with pytest.raises(ImageSizeError, match=r"image is 9 x 7 pixels; this model takes 8 x 6 \(width x height\)"):
        decode_image(encode(picture(size=(9, 7))), COLOUR)


@pytest.mark.parametrize("size", [(16, 12), (5, 3), (40, 6), (6, 40), (1, 1)])
def test_other_sizes_are_resized_where_the_format_says_so(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (10, 20, 30))
    decoded = decode_image(encode(image), RESIZED)
    assert decoded.shape == (3, 6, 8)
    assert torch.equal(decoded, torch.tensor([10, 20, 30], dtype=torch.uint8).view(3, 1, 1).expand(3, 6, 8))


def test_resizing_crops_the_centre() -> None:
    wide = np.zeros((6, 24), dtype=np.uint8)
    wide[:, 8:16] = 255
    assert decode_image(encode(Image.fromarray(wide)), ImageFormat(shape=(1, 6, 8), resize=True)).min() == 255


@pytest.mark.parametrize("kind", FORMATS)
def test_a_truncated_file_is_refused(kind: str) -> None:
    """Cut anywhere, a file is refused; formats that end in padding may lose the very end and still be whole."""
    whole = encode(picture(), kind)
    expected = decode_image(whole, COLOUR)
    for length in range(len(whole) - 30):
        with pytest.raises(ImageError, match=r"truncated or damaged|not an image"):
            decode_image(whole[:length], COLOUR)
    for length in range(len(whole) - 30, len(whole)):
        with suppress(ImageError):
            assert torch.equal(decode_image(whole[:length], COLOUR), expected)


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"\x00" * 1000, b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"GIF89a"]
)
def test_what_is_not_an_image_is_refused_with_the_formats(data: bytes) -> None:
    with pytest.raises(ImageError, match=r"PNG, JPEG, BMP, GIF, WEBP"):
        decode_image(data, GREY)


@pytest.mark.parametrize("kind", ["PPM", "ICO", "PCX", "TGA", "TIFF"])
def test_formats_outside_the_list_are_refused(kind: str) -> None:
    with pytest.raises(ImageError, match="allowed format"):
        decode_image(encode(picture(size=(16, 16)), kind), ImageFormat(shape=(3, 16, 16)))


@pytest.mark.parametrize("side", [5_000, 10_000, 60_000])
def test_a_huge_image_is_refused_by_its_header_alone(side: int) -> None:
    """The pixels are garbage: had they been looked at, the message would be of damage."""
    with pytest.raises(ImageError, match=r"16777216 pixels"):
        decode_image(png(side, side, pixels=b"garbage"), RESIZED)


def test_the_pixel_limit_is_exact() -> None:
    data = encode(picture())
    assert decode_image(data, COLOUR, max_pixels=48).shape == (3, 6, 8)
    with pytest.raises(ImageError, match="8 x 6 pixels; the limit is 47 pixels"):
        decode_image(data, COLOUR, max_pixels=47)


def test_grey_of_more_than_eight_bits_is_refused() -> None:
    image = Image.fromarray(np.arange(48, dtype=np.uint16).reshape(6, 8))
    with pytest.raises(ImageError, match="8 bits a channel"):
        decode_image(encode(image, "PNG"), GREY)


def test_colour_of_sixteen_bits_keeps_its_upper_eight() -> None:
    rows = (b"\x00" + struct.pack(">3H", 0x1234, 0x8000, 0xFFFF) * 8) * 6
    decoded = decode_image(png(8, 6, bit_depth=16, colour=2, pixels=rows), COLOUR)
    assert decoded[:, 3, 3].tolist() == [0x12, 0x80, 0xFF]


@given(st.binary(max_size=300))
def test_random_bytes_are_an_image_error(data: bytes) -> None:
    with pytest.raises(ImageError):
        decode_image(data, GREY)


@settings(max_examples=150)
@given(st.sampled_from(FORMATS), st.data())
def test_a_damaged_file_is_an_image_of_the_right_shape_or_an_image_error(kind: str, data: st.DataObject) -> None:
    content = bytearray(ENCODED[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    for image_format in (COLOUR, RESIZED):
        try:
            decoded = decode_image(bytes(content), image_format)
        except ImageError:
            continue
        assert decoded.shape == (3, 6, 8)
        assert decoded.dtype == torch.uint8


@settings(max_examples=150)
@given(st.sampled_from(FORMATS), st.data())
def test_the_native_format_of_a_damaged_file_is_a_format_or_an_image_error(kind: str, data: st.DataObject) -> None:
    content = bytearray(ENCODED[kind])
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with suppress(ImageError):
        assert native_format(bytes(content)).shape[0] in (1, 3)


ENCODED = {kind: encode(picture(), kind) for kind in FORMATS}
