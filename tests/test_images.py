import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from nprcnn.data.images import as_image, read_image, save_image
from nprcnn.errors import DataError

RGB = np.random.RandomState(0).randint(0, 256, (5, 7, 3)).astype(np.uint8)


def stored(tmp_path, image, name="x.png", **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


def test_rgb_is_read_as_it_is(tmp_path):
    image = read_image(str(stored(tmp_path, Image.fromarray(RGB))))
    np.testing.assert_array_equal(image, RGB)
    assert image.dtype == np.uint8 and image.flags.writeable and image.flags.c_contiguous


def test_grey_and_one_bit(tmp_path):
    grey = RGB[:, :, 0]
    np.testing.assert_array_equal(read_image(stored(tmp_path, Image.fromarray(grey))), np.stack([grey] * 3, axis=2))
    bit = Image.fromarray(grey > 128)
    assert bit.mode == "1"
    np.testing.assert_array_equal(read_image(stored(tmp_path, bit))[:, :, 1], (grey > 128) * np.uint8(255))


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_16_bit_grey_is_scaled(tmp_path, name):
    values = np.array([[0, 128, 129, 257], [32768, 65535, 65406, 1000]], np.uint16)
    image = read_image(stored(tmp_path, Image.fromarray(values), name))
    np.testing.assert_array_equal(image[:, :, 0], np.rint(values / 257))  # 65535 = 255 * 257
    assert image.shape == (2, 4, 3) and (image[:, :, :1] == image).all()


def test_transparency_lies_over_white(tmp_path):
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0] = [(200, 0, 0, 0), (200, 0, 0, 255), (200, 0, 0, 128)]
    image = read_image(stored(tmp_path, Image.fromarray(rgba)))
    np.testing.assert_array_equal(image[0, 0], (255, 255, 255))
    np.testing.assert_array_equal(image[0, 1], (200, 0, 0))
    expected = np.array([200, 0, 0]) * 128 / 255 + 255 * 127 / 255
    assert np.abs(image[0, 2] - expected).max() <= 1  # 8-bit rounding

    both = Image.merge("LA", [Image.fromarray(rgba[:, :, k]) for k in (0, 3)])
    image = read_image(stored(tmp_path, both))
    np.testing.assert_array_equal(image[0, :2], [(255, 255, 255), (200, 200, 200)])


def test_palette_with_and_without_transparency(tmp_path):
    image = Image.frombytes("P", (3, 1), bytes([0, 1, 2]))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    np.testing.assert_array_equal(read_image(stored(tmp_path, image))[0], [(10, 20, 30), (40, 50, 60), (70, 80, 90)])
    path = stored(tmp_path, image, transparency=1)
    np.testing.assert_array_equal(read_image(path)[0], [(10, 20, 30), (255, 255, 255), (70, 80, 90)])


def test_cmyk(tmp_path):
    cmyk = Image.new("CMYK", (16, 16), (255, 0, 0, 0))  # cyan ink
    image = read_image(stored(tmp_path, cmyk, "x.tif"))
    np.testing.assert_array_equal(image[0, 0], (0, 255, 255))
    image = read_image(stored(tmp_path, cmyk, "x.jpg", quality=100))
    assert np.abs(image[8, 8].astype(int) - (0, 255, 255)).max() < 6  # JPEG's loss


@pytest.mark.parametrize("orientation, turn", [
    (1, lambda a: a), (2, np.fliplr), (3, lambda a: np.rot90(a, 2)), (4, np.flipud),
    (5, lambda a: a.transpose(1, 0, 2)), (6, lambda a: np.rot90(a, -1)), (7, lambda a: np.rot90(a, 2).transpose(1, 0, 2)),
    (8, np.rot90)])
def test_exif_rotation_is_applied(tmp_path, orientation, turn):
    image = Image.fromarray(RGB)
    exif = image.getexif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(read_image(stored(tmp_path, image, exif=exif)), turn(RGB))


def test_paths_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="missing.png is not there"):
        read_image(tmp_path / "missing.png")
    with pytest.raises(DataError, match="is a folder"):
        read_image(tmp_path)
    empty = tmp_path / "empty.png"
    empty.write_bytes(b"")
    with pytest.raises(DataError, match="empty.png.*0 bytes"):
        read_image(empty)
    text = tmp_path / "notes.jpg"
    text.write_text("no picture")
    with pytest.raises(DataError, match="notes.jpg is not an image"):
        read_image(text)


@pytest.mark.parametrize("name", ["cut.png", "cut.jpg", "cut.gif", "cut.bmp", "cut.tif"])
def test_truncated_files(tmp_path, name):
    noise = np.random.RandomState(1).randint(0, 256, (64, 64, 3)).astype(np.uint8)
    path = stored(tmp_path, Image.fromarray(noise), name)
    data = path.read_bytes()
    path.write_bytes(data[:len(data) * 2 // 3])
    with pytest.raises(DataError, match=name):
        read_image(path)


@pytest.mark.parametrize("position", [20, 60, 100, 200])
def test_damaged_bytes(tmp_path, position):
    path = stored(tmp_path, Image.fromarray(RGB), "bad.png")
    data = bytearray(path.read_bytes())
    data[min(position, len(data) - 20)] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DataError, match="bad.png"):
        read_image(path)


@pytest.mark.parametrize("side", [10_000, 60_000])  # above Pillow's limit for a warning; above that for an error
def test_decompression_bombs(tmp_path, side):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
                     + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
    with pytest.raises(DataError, match="bomb.png is too large"):
        read_image(path)


def test_kinds_without_a_look_in_rgb(tmp_path):
    path = stored(tmp_path, Image.fromarray(np.ones((3, 3), np.float32)), "depth.tif")
    with pytest.raises(DataError, match="depth.tif.*32-bit floats"):
        read_image(path)
    path = stored(tmp_path, Image.fromarray(np.full((3, 3), 70_000, np.int32)), "counts.tif")
    with pytest.raises(DataError, match="counts.tif.*70000"):
        read_image(path)


def test_save_and_read_back(tmp_path):
    save_image(tmp_path / "a.png", RGB)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), RGB)
    save_image(tmp_path / "b.png", RGB / 255)
    np.testing.assert_array_equal(read_image(tmp_path / "b.png"), RGB)
    assert sorted(os.listdir(tmp_path)) == ["a.png", "b.png"]


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    save_image(tmp_path / "a.png", RGB)

    def fail(self, file, **options):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(DataError, match="a.png cannot be written .*No space"):
        save_image(tmp_path / "a.png", 255 - RGB)
    monkeypatch.undo()
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), RGB)
    assert os.listdir(tmp_path) == ["a.png"]


def test_paths_that_cannot_be_written(tmp_path):
    with pytest.raises(DataError, match="check that its folder exists"):
        save_image(tmp_path / "no" / "a.png", RGB)
    with pytest.raises(DataError, match="suffix '.xyz'"):
        save_image(tmp_path / "a.xyz", RGB)
    with pytest.raises(DataError, match="is a folder"):
        (tmp_path / "d.png").mkdir()
        save_image(tmp_path / "d.png", RGB)


def test_images_in_memory_pass_unchanged():
    for image in (RGB, RGB / 255, (RGB / 255).astype(np.float32), RGB[::-1, ::2], np.zeros((1, 1, 3)), np.ones((1, 1, 3))):
        assert as_image(image) is image


@pytest.mark.parametrize("image, message", [
    (RGB[:, :, 0], r"\(5, 7\).*np.stack"),
    (np.zeros((5, 7, 4), np.uint8), r"\(5, 7, 4\).*alpha"),
    (np.zeros((3, 5, 7), np.uint8), r"\(3, 5, 7\).*channels come first"),
    (np.zeros((1, 5, 7, 3), np.uint8), r"\(1, 5, 7, 3\)"),
    (np.zeros((0, 7, 3), np.uint8), "no pixels"),
    (np.zeros((5, 0, 3), np.uint8), "no pixels"),
    (RGB.astype(np.int64), "type int64"),
    (RGB > 3, "type bool"),
    (RGB.astype(np.float32), "divide it by 255"),
    (RGB / -255, "values from -"),
    ([[[0, 0, 0]]], "is a list"),
    (None, "is a NoneType"),
    ("photo.jpg", "path 'photo.jpg'.*read_image"),
])
def test_bad_images_in_memory(image, message):
    with pytest.raises(DataError, match="image 3.*" + message):
        as_image(image, "image 3")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_located(value):
    image = RGB / 255
    image[2, 4, 1] = value
    with pytest.raises(DataError, match=f"{value} at row 2, column 4"):
        as_image(image)
