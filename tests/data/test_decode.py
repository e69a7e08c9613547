"""Every kind of picture becomes the pixels that a viewer shows; what is damaged is refused by its name."""

import os

import numpy as np
import pytest
from pictures import encoded, smooth, write
from PIL import Image

from bitnas.data import decode
from bitnas.files import CorruptFileError


def whole(height, width):
    return 0, 0, height, width


def read(path, size, channels=3, choose=whole):
    return decode.pixels(os.fsencode(path), size, channels, choose)


def test_pixels_of_the_wanted_size_are_taken_as_they_are(tmp_path):
    picture = smooth(32, 32)
    assert np.array_equal(read(write(tmp_path / "a.png", picture), 32), picture)


def test_a_box_is_cut_out_and_resized(tmp_path):
    picture = smooth(60, 90)
    path = write(tmp_path / "a.png", picture)
    found = read(path, 20, choose=lambda height, width: (10, 30, 40, 40))
    oracle = Image.fromarray(picture[10:50, 30:70]).resize((20, 20), Image.Resampling.BILINEAR)
    assert np.abs(found.astype(int) - np.asarray(oracle).astype(int)).max() <= 1
    assert np.array_equal(read(path, 20, choose=lambda h, w: (3, 5, 20, 20)), picture[3:23, 5:25])


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_a_rotation_in_exif_is_carried_out(tmp_path, value, kind):
    upright = smooth(96, 64)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    image = Image.fromarray(upright)
    stored = image.transpose(undo[value]) if value in undo else image
    exif = Image.Exif()
    exif[0x0112] = value
    stored.save(tmp_path / "a.png", kind, exif=exif)
    asked = []

    def choose(height, width):
        asked.append((height, width))
        return 16, 0, 64, 64

    found = read(tmp_path / "a.png", 64, choose=choose)
    assert asked == [(96, 64)]
    assert np.abs(found.astype(int) - upright[16:80].astype(int)).max() <= (8 if kind == "JPEG" else 0)
    assert decode.facts(os.fsencode(tmp_path / "a.png"), whole=True)[2:] == (96, 64)


def grey(height=24, width=24):
    return smooth(height, width)[:, :, 0]


def modes():
    colour, level = smooth(24, 24), grey()
    alpha = np.zeros((24, 24, 1), np.uint8)
    alpha[:, :12] = 255
    on_white = colour.copy()
    on_white[:, 12:] = 255
    three = np.repeat(level[:, :, None], 3, 2)
    paletted = Image.fromarray(colour).quantize(16)
    keyed = paletted.copy()
    keyed.info["transparency"] = paletted.getpixel((0, 0))
    hole = np.asarray(paletted) == paletted.getpixel((0, 0))
    keyed_shown = np.where(hole[:, :, None], 255, np.asarray(paletted.convert("RGB")))
    bits = Image.fromarray(level > level.mean())
    yield "grey", Image.fromarray(level), "PNG", three
    yield "16-bit", Image.fromarray((level.astype(np.uint16) << 8) + 77), "PNG", three
    yield "16-bit TIFF", Image.fromarray((level.astype(np.uint16) << 8) + 77), "TIFF", three
    yield "16-bit PGM", Image.fromarray((level.astype(np.uint16) << 8) + 77), "PPM", three
    yield "palette", paletted, "PNG", np.asarray(paletted.convert("RGB"))
    yield "palette with a hole", keyed, "PNG", keyed_shown
    yield "alpha", Image.fromarray(np.concatenate([colour, alpha], 2)), "PNG", on_white
    yield "grey alpha", Image.fromarray(np.concatenate([three[:, :, :1], alpha], 2)), "PNG", None
    yield "1 bit", bits, "PNG", np.asarray(bits.convert("RGB"))
    yield "cmyk", Image.fromarray(colour).convert("CMYK"), "JPEG", colour
    yield "grey JPEG", Image.fromarray(level), "JPEG", three
    yield "animation", Image.fromarray(level), "GIF", None
    yield "lossless", Image.fromarray(colour), "WEBP", None
    yield "bitmap", Image.fromarray(colour), "BMP", colour


@pytest.mark.parametrize(("image", "kind", "wanted"), [pytest.param(*rest, id=name) for name, *rest in modes()])
def test_every_mode(tmp_path, image, kind, wanted):
    image.save(tmp_path / "any.jpg", kind)  # the name does not say what it is
    found = read(tmp_path / "any.jpg", 24)
    assert (found.shape, found.dtype) == ((24, 24, 3), np.uint8)
    if wanted is not None:
        assert np.abs(found.astype(int) - wanted.astype(int)).max() <= (6 if kind == "JPEG" else 0)
    level = read(tmp_path / "any.jpg", 24, channels=1)
    assert level.shape == (24, 24, 1)
    luma = found.astype(float) @ [0.299, 0.587, 0.114]
    assert np.abs(level[:, :, 0] - luma).max() <= 2


def test_one_pixel_and_a_line(tmp_path):
    assert (read(write(tmp_path / "a.png", np.full((1, 1, 3), 7, np.uint8)), 8) == 7).all()
    assert (read(write(tmp_path / "b.jpg", np.full((1, 900), 200, np.uint8), "JPEG"), 8) == 200).all()


def test_a_large_jpeg_is_decoded_small_and_looks_the_same(tmp_path, monkeypatch):
    picture = smooth(1600, 2000)
    path = write(tmp_path / "a.jpg", picture, "JPEG", quality=95)
    sizes = []
    plain = decode._plain
    monkeypatch.setattr(decode, "_plain", lambda image, *rest: sizes.append(image.size) or plain(image, *rest))

    def middle(height, width):
        return 100, 300, 1400, 1400

    found = read(path, 100, choose=middle)
    assert sizes == [(500, 400)]  # a quarter: an eighth has less than twice the pixels
    oracle = Image.fromarray(picture[100:1500, 300:1700]).resize((100, 100), Image.Resampling.BILINEAR)
    assert np.abs(found.astype(int) - np.asarray(oracle).astype(int)).max() <= 3
    read(path, 100, choose=lambda height, width: (100, 300, 150, 150))
    assert sizes[1] == (2000, 1600)  # a small part needs every pixel


JPEG, PNG = encoded(smooth(64, 64)), encoded(smooth(64, 64), "PNG")


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (b"", "is empty (0 bytes)"),
        (b"not an image", "is not an image, or is damaged"),
        (JPEG[:-200], "cannot be decoded (image file is truncated"),
        (JPEG[:100], "cannot be decoded|is not an image"),
        (PNG[:-30], "cannot be decoded"),
        (PNG[:60] + bytes(40) + PNG[100:], "cannot be decoded"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image"),
        (encoded(np.full((64, 64), 0.5, np.float32), "TIFF"), "floating point"),
        (encoded(np.full((8, 8), 70_000, np.int32), "TIFF"), "more than 16 bits"),
        (encoded(np.full((8, 8), 200, np.int32), "TIFF"), "more than 16 bits"),  # not black, either
    ],
)
def test_damaged_files_are_named(tmp_path, blob, message):
    (tmp_path / "bad one.jpg").write_bytes(blob)
    with pytest.raises(CorruptFileError, match=f"bad one.jpg: .*{message.replace('(', '[(]').replace(')', '[)]')}"):
        read(tmp_path / "bad one.jpg", 16)
    with pytest.raises(CorruptFileError):
        decode.facts(os.fsencode(tmp_path / "bad one.jpg"), whole=True)


def test_bombs_folders_and_missing_files(tmp_path):
    bomb = encoded(np.zeros((1, 1), np.uint8), "BMP")
    wide = bytearray(bomb)
    wide[18:26] = (9000).to_bytes(4, "little") * 2
    (tmp_path / "bomb.bmp").write_bytes(wide)
    with pytest.raises(CorruptFileError, match=r"bomb\.bmp: has 9000x9000 pixels, more than the 64,000,000"):
        read(tmp_path / "bomb.bmp", 16)
    wide[18:26] = (60000).to_bytes(4, "little") * 2
    (tmp_path / "bomb.bmp").write_bytes(wide)
    with pytest.raises(CorruptFileError, match="pixels"):
        read(tmp_path / "bomb.bmp", 16)
    (tmp_path / "folder.jpg").mkdir()
    for name in ("folder.jpg", "none.jpg"):
        with pytest.raises(CorruptFileError, match=f"{name}: cannot be opened"):
            read(tmp_path / name, 16)
