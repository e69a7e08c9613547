"""One image file to the uint8 pixels that are wanted of it: any kind of picture, and no more work than that takes.

A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that still has twice the pixels wanted, and only the part that is
wanted is resized. The format is told from the contents, whatever the name says, and only formats that Pillow decodes by
itself are tried: some of its others start programs.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from bitnas.data import places
from bitnas.files import CorruptFileError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF")
MOST_PIXELS = 64_000_000  # a bomb of some kilobytes may unpack to gigabytes; a camera gives up to this
_GAP = 2  # pixels that the reduced JPEG has at least for one that is wanted, in each direction
_ORIENTATION = 0x0112  # EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = [turn for value, turn in _TURNS.items() if value >= 5]
_MODES = {1: "L", 3: "RGB"}

Box = tuple[float, float, float, float]  # top, left, height, width in pixels of the upright image


class Facts(NamedTuple):
    """What a file holds: its format, Pillow's mode, and the size of the upright image in pixels."""

    format: str
    mode: str
    height: int
    width: int


def pixels(path: bytes, size: int, channels: int, choose: Callable[[int, int], Box]) -> np.ndarray:
    """The part of an image that `choose(height, width)` wants, as uint8 `[size, size, channels]`.

    Grey becomes three equal channels and colour one of luma, as asked for. Transparent parts are shown on white, 16-bit
    grey keeps its upper 8 bits, an EXIF rotation is carried out, and of an animation the first picture counts.

    Raises CorruptFileError, which names the file, if it is damaged, cut short, of another format or too large.
    """
    with _opened(path) as (image, turn):
        width, height = image.size[::-1] if turn in _SIDEWAYS else image.size
        top, left, h, w = choose(height, width)
        if image.format == "JPEG":
            wanted = (max(1, round(_GAP * size * width / w)), max(1, round(_GAP * size * height / h)))
            image.draft("L" if channels == 1 else image.mode, wanted[::-1] if turn in _SIDEWAYS else wanted)
        image = _plain(image, path)
        if turn is not None:
            image = image.transpose(turn)
        rows, columns = image.height / height, image.width / width
        box = (left * columns, top * rows, min((left + w) * columns, image.width), min((top + h) * rows, image.height))
        if box != (0, 0, *image.size) or image.size != (size, size):
            image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
        made = np.asarray(image if image.mode == _MODES[channels] else image.convert(_MODES[channels]))
        return made.reshape(size, size, channels)


def facts(path: bytes, *, whole: bool) -> Facts:
    """Format, mode and size; with `whole` every pixel is decoded as well, so that what is cut short is found."""
    with _opened(path) as (image, turn):
        width, height = image.size[::-1] if turn in _SIDEWAYS else image.size
        found = Facts(str(image.format), image.mode, height, width)
        if whole:
            _plain(image, path)
        return found


def looks_like_image(path: bytes) -> bool:
    """Whether a file begins as one of the formats does. False if it cannot be read."""
    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except OSError:
        return False
    starts = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"GIF8", b"II*\0", b"MM\0*")
    netpbm = head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace()
    return head.startswith(starts) or netpbm or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


@contextlib.contextmanager
def _opened(path: bytes) -> Iterator[tuple[Image.Image, Image.Transpose | None]]:
    """The image, not decoded yet, and what makes it upright."""
    try:
        with open(path, "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise CorruptFileError(places.shown(path), "is not a file")
            if found.st_size == 0:
                raise CorruptFileError(places.shown(path), "is empty (0 bytes)")
            with Image.open(file, formats=FORMATS) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise CorruptFileError(
                        places.shown(path),
                        f"has {image.width}x{image.height} pixels, more than the {MOST_PIXELS:,} that are decoded; "
                        "make it smaller",
                    )
                # Pillow turns a TIFF by itself.
                yield image, None if image.format == "TIFF" else _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except CorruptFileError:
        raise
    except Image.UnidentifiedImageError:
        wanted = ", ".join(FORMATS)
        raise CorruptFileError(places.shown(path), f"is not an image, or is damaged; wanted one of {wanted}") from None
    except Image.DecompressionBombError:
        raise CorruptFileError(places.shown(path), f"has more than {MOST_PIXELS:,} pixels; make it smaller") from None
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise CorruptFileError(places.shown(path), f"cannot be opened ({error.strerror})") from None
    except MemoryError:
        raise
    except Exception as error:  # damaged contents reach Pillow's decoders, which raise nearly anything
        raise CorruptFileError(places.shown(path), f"cannot be decoded ({_first_line(error)})") from error


def _plain(image: Image.Image, path: bytes) -> Image.Image:
    """The decoded image as `L` or `RGB`."""
    image.load()
    mode = image.mode
    if mode == "I" and image.format not in ("PNG", "PPM"):  # of these two, Pillow gives 16 bits as 32
        raise CorruptFileError(
            places.shown(path), "has grey levels of more than 16 bits, or signed ones; convert it to 8 or 16 bits"
        )
    if mode in ("L", "RGB"):
        if "transparency" not in image.info:
            return image
        mode = "keyed"
    if mode in ("I", "I;16", "I;16B", "I;16L", "I;16N"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if mode == "F":
        raise CorruptFileError(places.shown(path), "has grey levels in floating point; convert it to 8 or 16 bits")
    if mode in ("RGBA", "LA", "PA", "RGBa", "La", "keyed") or "transparency" in image.info:
        layer = image.convert("RGBA")
        ground = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(ground, layer).convert("RGB")
    return image.convert("L" if mode == "1" else "RGB")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
