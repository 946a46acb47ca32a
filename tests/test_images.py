"""Image files as pixels: every format, upright, in 8 bits; what is broken is named; crops cost what they show."""

import io
import os
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from preresnet.data import crops, images
from preresnet.data.order import generator
from preresnet.recipe import PaperPhotographs
from preresnet.spec import UserError

SPEC = PaperPhotographs(
    name="folder",
    image_size=224,
    augment="scale",
    shorter_side=(256, 480),
    test_crops=(224,),
    test_sides=(256,),
)


def ramp(width: int = 64, height: int = 48) -> np.ndarray:
    """(h, w, 3) uint8, dark at the upper left, of different colours along x and y."""
    x, y = np.meshgrid(np.linspace(20, 220, width), np.linspace(20, 220, height))
    return np.stack([x, y, (x + y) / 2], 2).round().astype(np.uint8)


COLOUR = Image.fromarray(ramp())
GREY = COLOUR.convert("L")
UPPER = np.asarray(GREY).astype(np.uint16) * 257  # the same grey with 16 bits


def saved(folder: Path, name: str, image: Image.Image, **options: Any) -> Path:
    image.save(folder / name, **options)
    return folder / name


def with_alpha(image: Image.Image) -> Image.Image:
    image = image.copy()
    image.putalpha(Image.fromarray(np.tile(np.arange(64, dtype=np.uint8) * 4, (48, 1))))
    return image


@pytest.mark.parametrize(
    ("name", "image", "expected", "tolerance"),
    [
        ("x.png", COLOUR, COLOUR, 0),
        ("x.tif", COLOUR, COLOUR, 0),
        ("x.webp", COLOUR, COLOUR, 12),
        ("x.jpg", COLOUR.convert("CMYK"), COLOUR, 12),
        ("x.tif", COLOUR.convert("YCbCr"), COLOUR, 3),
        ("x.jp2", COLOUR, COLOUR, 12),
        ("x.tga", COLOUR, COLOUR, 0),
        ("x.png", with_alpha(COLOUR), COLOUR, 0),
        ("x.png", with_alpha(GREY), GREY, 0),
        ("x.tif", Image.fromarray(UPPER), GREY, 0),
        ("x.png", Image.fromarray(UPPER), GREY, 0),
        ("x.pgm", Image.fromarray(UPPER.astype(np.int32)), GREY, 0),
        ("x.jp2", Image.fromarray(UPPER), GREY, 2),
        ("x.png", Image.fromarray(np.asarray(GREY) > 99), None, 0),
    ],
    ids=lambda value: value if isinstance(value, str) else value.mode if isinstance(value, Image.Image) else "",
)
def test_every_kind_of_pixel_has_its_brightness(
    tmp_path: Path, name: str, image: Image.Image, expected: Image.Image | None, tolerance: int
) -> None:
    found = images.open_image(saved(tmp_path, name, image))
    assert found.mode == "RGB"
    difference = np.asarray(found).astype(int) - np.asarray((expected or image).convert("RGB"))
    assert abs(difference).max() <= tolerance
    assert images.open_image(tmp_path / name, mode="L").mode == "L"


def test_sixteen_bits_a_channel_of_a_colour_image(tmp_path: Path) -> None:
    """Pillow writes none, so the file is made here: a PNG of 16-bit RGB."""
    rows = ramp().astype(">u2") * 257
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", 64, 48, 16, 2, 0, 0, 0)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    (tmp_path / "x.png").write_bytes(png)
    assert np.array_equal(np.asarray(images.open_image(tmp_path / "x.png")), ramp())


def test_a_palette_with_transparent_entries_keeps_its_colours(tmp_path: Path) -> None:
    image = COLOUR.quantize(16)
    saved(tmp_path, "x.png", image, transparency=bytes(range(16)))
    assert np.array_equal(np.asarray(images.open_image(tmp_path / "x.png")), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("name", ["x.gif", "x.webp", "x.tif", "x.png"])
def test_of_several_pictures_in_a_file_the_first_is_read(tmp_path: Path, name: str) -> None:
    frames = [Image.new("RGB", (40, 30), colour) for colour in ((200, 0, 0), (0, 200, 0), (0, 0, 200))]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    assert np.asarray(images.open_image(tmp_path / name)).mean((0, 1)) == pytest.approx([200, 0, 0], abs=4)


@pytest.mark.parametrize("mode", ["F", "I"])
@pytest.mark.parametrize("scale", [1 / 255, 1, 257, 1e6])
def test_pixels_without_a_known_white_are_refused_by_name(tmp_path: Path, mode: str, scale: float) -> None:
    kind = np.float32 if mode == "F" else np.int32
    path = saved(tmp_path, "x.tiff", Image.fromarray((np.asarray(GREY).astype(float) * scale).astype(kind)))
    with pytest.raises(UserError, match=r"x\.tiff: cannot be read as an image .*save it with 8 or 16 bits"):
        images.open_image(path)


def exif(*tags: tuple[int, int, int, bytes], extra: bytes = b"") -> bytes:
    """A JPEG of 64x48 with these EXIF tags: number, type, count, value or place."""
    buffer = io.BytesIO()
    COLOUR.save(buffer, "JPEG", quality=95)
    jpeg = buffer.getvalue()
    content = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(tags))
    content += b"".join(struct.pack("<HHI", tag, kind, count) + value for tag, kind, count, value in tags)
    content += b"\0\0\0\0" + extra
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content + jpeg[2:]


TURNED = (0x112, 3, 1, struct.pack("<HH", 6, 0))


@pytest.mark.parametrize(
    ("content", "size"),
    [
        (exif(TURNED), (48, 64)),
        (exif(TURNED, (0x11A, 10, 1, struct.pack("<I", 38)), extra=struct.pack("<ii", -1, 0)), (48, 64)),
        (exif(TURNED, (0x10F, 2, 9, struct.pack("<I", 1 << 30))), (48, 64)),  # a name that lies beyond the file
        (exif(TURNED, (0x8769, 4, 1, struct.pack("<I", 5))), (48, 64)),  # a directory inside the header
        (exif(TURNED, (0x8825, 2, 4, b"abcd")), (48, 64)),  # text for the place of a directory
        (exif((0x112, 2, 4, b"six\0")), (64, 48)),
        (exif((0x112, 3, 0, b"\0\0\0\0")), (64, 48)),
        (exif((0x112, 3, 1, struct.pack("<HH", 77, 0))), (64, 48)),
        (exif(TURNED).replace(b"Exif\0\0II*\0", b"Exif\0\0IX*\0"), (64, 48)),
        (exif(TURNED).replace(b"II*\0\x08\0\0\0\x01\0", b"II*\0\x08\0\0\0\xff\xff"), (48, 64)),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about what it skips
def test_a_damaged_tag_does_not_cost_the_picture(tmp_path: Path, content: bytes, size: tuple[int, int]) -> None:
    (tmp_path / "x.jpg").write_bytes(content)
    found = images.open_image(tmp_path / "x.jpg")
    assert found.size == size
    pixels = np.asarray(found).astype(int)
    if size == (48, 64):  # red rose along x before the turn, and does along y after it
        pixels = np.rot90(pixels)
    assert abs(pixels - ramp()).max() < 12


def png_of(width: int, height: int) -> bytes:
    content = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + content + struct.pack(">I", zlib.crc32(content))


def broken_files(folder: Path) -> dict[str, Path]:
    """Files and others that no image can be read from, by what is wrong."""
    buffer = io.BytesIO()
    COLOUR.save(buffer, "PNG")
    png = buffer.getvalue()
    made: dict[str, bytes] = {
        "empty.png": b"",
        "text.jpg": b"<!doctype html><title>404</title>",
        "cut.png": png[: len(png) // 3],
        "cut.jpg": exif(TURNED)[:900],
        "stripe.png": png[:60] + b"\0" * 40 + png[100:],
        "huge.png": png_of(200_000, 200_000),
        "absurd.png": png_of(2**31 - 1, 2**31 - 1),
        "postscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n",
        "document.png": b"%PDF-1.4",
    }
    for name, kind in (
        ("x.gif", "GIF"),
        ("x.tif", "TIFF"),
        ("x.bmp", "BMP"),
        ("x.webp", "WEBP"),
        ("x.jp2", "JPEG2000"),
    ):
        buffer = io.BytesIO()
        COLOUR.save(buffer, kind)
        made[f"cut{name[1:]}"] = buffer.getvalue()[: len(buffer.getvalue()) // 2]
    for name, content in made.items():
        (folder / name).write_bytes(content)
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.png")
    (folder / "link.png").symlink_to("nowhere.png")
    (folder / "loop.png").symlink_to("loop.png")
    names = [*made, "folder.jpg", "pipe.png", "link.png", "loop.png", "absent.png", "n" * 300 + ".png"]
    return {name: folder / name for name in names}


def test_what_cannot_be_read_is_named_and_nothing_hangs(tmp_path: Path) -> None:
    for name, path in broken_files(tmp_path).items():
        with pytest.raises(UserError, match=r"cannot be read as an image \(.+\)") as caught:
            images.open_image(path)
        assert name in str(caught.value)
        assert str(caught.value).count(name) == 1


@pytest.mark.parametrize(
    "error", [MemoryError(), KeyError(3), OverflowError("x"), zlib.error("x"), EOFError(), AssertionError()]
)
def test_whatever_pillow_raises_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(_: Image.Image) -> None:
        raise error

    path = saved(tmp_path, "x.tif", COLOUR)
    monkeypatch.setattr(Image.Image, "load", fail)
    monkeypatch.setattr("PIL.TiffImagePlugin.TiffImageFile.load", fail)
    with pytest.raises(UserError, match=r"x\.tif: cannot be read as an image \(.+\)"):
        images.open_image(path)


def test_no_other_program_is_started_for_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow hands PostScript to Ghostscript, whatever the name of the file."""
    (tmp_path / "x.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    started = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *given, **_: started.append(given))
    with pytest.raises(UserError, match=r"x\.jpg"):
        images.open_image(tmp_path / "x.jpg")
    assert not started


def test_a_jpeg_is_never_decoded_smaller_than_asked(tmp_path: Path) -> None:
    path = saved(tmp_path, "x.jpg", Image.new("RGB", (1001, 767)))
    sizes = {least: images.open_image(path, least).size for least in (95, 96, 255, 256, 383, 384, 767, 900)}
    assert all(min(size) >= min(least, 767) for least, size in sizes.items())
    assert (sizes[95], sizes[96], sizes[383], sizes[384]) == ((126, 96), (251, 192), (501, 384), (1001, 767))


def test_the_crop_of_a_large_jpeg_is_as_sharp_as_that_of_its_pixels(tmp_path: Path) -> None:
    """Stripes too fine for a side of 256: a file decoded for that side and enlarged to 480 would have lost them."""
    stripes = np.zeros((512, 512, 3), dtype=np.uint8)
    stripes[:, (np.arange(512) // 2) % 2 == 1] = 255
    path = saved(tmp_path, "x.jpg", Image.fromarray(stripes), quality=95, subsampling=0)
    spec = replace(SPEC, shorter_side=(256, 480))
    seen = 0
    for step in range(12):
        side = crops.shorter_side(spec, generator(0, "augment", step))
        made = crops.PaperCrops(spec).read(path, generator(0, "augment", step))
        whole = crops.augmented(Image.open(path).convert("RGB"), spec, generator(0, "augment", step))
        if side is not None and side > 400:
            seen += 1
            assert float(made.double().std(correction=0)) == pytest.approx(
                np.asarray(whole).astype(float).std(), rel=0.05
            )
    assert seen >= 2


def test_crops_are_those_of_the_whole_image_resized() -> None:
    """Only what is shown is computed; a pixel may differ by one step of 255, seldom."""
    photo = Image.fromarray(np.random.RandomState(0).randint(0, 256, (375, 500, 3), dtype=np.uint8))
    for side, left, top in ((256, 0, 0), (300, 176, 76), (480, 416, 256), (375, 10, 20), (431, 1, 207)):
        resized = crops._resized(photo, side)
        whole = photo.resize(resized, Image.Resampling.BICUBIC).crop((left, top, left + 224, top + 224))
        difference = abs(np.asarray(crops._cut(photo, resized, left, top, 224)).astype(int) - np.asarray(whole))
        assert difference.max() <= 2
        assert (difference > 0).mean() < 0.01


STRIPS = """
import resource, sys
import numpy as np, torch
from PIL import Image
import preresnet
from preresnet.data import crops
named = [preresnet.recipe(name).data for name in ("imagenet/resnet50-preact", "imagenet/resnet200-preact-aspect")]
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20),) * 2)
for size in ((2_000, 1), (1, 2_000), (10_000, 1), (1, 1), (30_000, 3)):
    image = Image.new("RGB", size, (10, 200, 30))
    for data in named:
        assert crops.augmented(image, data, torch.Generator().manual_seed(0)).size == (224, 224)
    assert (np.asarray(crops.centre(image, 256, 224)) == (10, 200, 30)).all()
"""


def test_a_strip_takes_no_more_memory_than_a_photograph() -> None:
    """In a process of its own that may take 300 MB beyond what it starts with; a strip resized whole takes 2,000."""
    done = subprocess.run([sys.executable, "-c", STRIPS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
