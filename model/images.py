"""Image files -> pixels of a network's shape; nothing is decoded before format and size are known."""

import io
import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from model.errors import ImageError
from model.image_guards import guarded

warnings.filterwarnings("ignore", module=r"PIL\.")  # of oddities in headers that decode well

# Not TIFF: its library writes what it thinks of damaged files to stderr, past any log.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")
MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})
GREY_MODES = frozenset({"1", "L", "LA"})
MAX_PIXELS = 16_777_216


class ImageSizeError(ImageError):
    """An image of another size than the network's, where none is resized."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFormat:
    """What a network takes: shape (channels, height, width), and whether other sizes are resized to it."""

    shape: tuple[int, int, int]
    resize: bool = False

    @property
    def mode(self) -> str:
        """Pillow's mode for the number of channels: L for one, RGB for three."""
        return "L" if self.shape[0] == 1 else "RGB"


def decode_pixels(
    data: bytes, image_format: ImageFormat, *, max_pixels: int = MAX_PIXELS
) -> UInt8[np.ndarray, "c h w"]:
    """Decode one image file to uint8 of the network's shape.

    EXIF orientation (of a PNG that of its eXIf chunk) is applied, colours are converted to the network's
    channels and transparency is dropped. Another size than the network's is resized (shorter side, then
    centre crop) where the format says so, and refused where it does not.

    Raises ImageError: not an image of an allowed format, truncated, more than max_pixels pixels or, of a
    JPEG, more than MAX_SCANS scans (both checked before decoding), grey of more than 8 bits (of colour the
    upper 8 are kept), or (ImageSizeError) a size that does not fit.
    """
    try:
        return _decode(data, image_format, max_pixels)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"not an image of an allowed format ({', '.join(FORMATS)})") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(f"image has more than {max_pixels} pixels, the limit") from None
    except Exception as error:  # Pillow raises whatever the damaged byte leads to
        raise ImageError(f"image file is truncated or damaged: {error}") from None


def native_format(data: bytes) -> ImageFormat:
    """The shape that an image file has by itself, orientation applied; its pixels are not decoded.

    Raises ImageError: not an image of an allowed format.
    """
    try:
        with Image.open(io.BytesIO(guarded(data)), formats=FORMATS) as image:
            width, height = image.size
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
            channels = 1 if image.mode in GREY_MODES else 3
    except Exception as error:
        raise ImageError(f"not an image of an allowed format ({', '.join(FORMATS)}): {error}") from None
    return ImageFormat(shape=(channels, width, height) if turned else (channels, height, width))


def _decode(data: bytes, image_format: ImageFormat, max_pixels: int) -> UInt8[np.ndarray, "c h w"]:
    with Image.open(io.BytesIO(guarded(data)), formats=FORMATS) as image:
        _check_header(image, image_format, max_pixels)
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return _to_array(_fit(image, image_format), image_format)


def _check_header(image: Image.Image, image_format: ImageFormat, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(f"image has {width} x {height} pixels; the limit is {max_pixels} pixels")
    if image.mode not in MODES:
        raise ImageError(f"image mode {image.mode!r} is not supported; send 8 bits a channel, grey or colour")
    if not image_format.resize and {width, height} != set(image_format.shape[1:]):
        raise _wrong_size(image, image_format)


def _fit(image: Image.Image, image_format: ImageFormat) -> Image.Image:
    _, height, width = image_format.shape
    if image.size == (width, height):
        return image
    if not image_format.resize:
        raise _wrong_size(image, image_format)
    return ImageOps.fit(image.convert(image_format.mode), (width, height), Image.Resampling.BILINEAR)


def _wrong_size(image: Image.Image, image_format: ImageFormat) -> ImageSizeError:
    _, height, width = image_format.shape
    return ImageSizeError(
        f"image is {image.size[0]} x {image.size[1]} pixels; this model takes {width} x {height} (width x height)"
    )


def _to_array(image: Image.Image, image_format: ImageFormat) -> UInt8[np.ndarray, "c h w"]:
    channels, height, width = image_format.shape
    if image.mode != image_format.mode:  # else it would be copied
        image = image.convert(image_format.mode)
    pixels = np.frombuffer(bytearray(image.tobytes()), dtype=np.uint8).reshape(height, width, channels)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))
