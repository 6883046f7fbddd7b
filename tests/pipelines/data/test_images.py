"""Pictures of every format become one upright RGB array, or say why they cannot."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.data import images
from pipelines.data.images import BadImage, check, load


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=form, **options)
    return stream.getvalue()


def pixel(data: bytes, x: int = 0, y: int = 0) -> list[int]:
    check(data)
    return load(data).payload[y, x].tolist()


def test_a_file_and_its_bytes_are_the_same_media(tmp_path: Path) -> None:
    data = encoded(Image.new("RGB", (8, 6), "red"))
    (tmp_path / "a.png").write_bytes(data)
    media = load(data)
    assert media.payload.shape == (6, 8, 3)
    assert load(tmp_path / "a.png").digest == media.digest


def test_the_content_counts_not_the_name(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(Image.new("RGB", (8, 8), "white"), "JPEG"))
    assert load(tmp_path / "a.png").payload.min() == 255


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 100, [100, 100, 100]),
        ("1", 1, [255, 255, 255]),
        ("LA", (100, 255), [100, 100, 100]),
        ("RGBA", (0, 0, 255, 255), [0, 0, 255]),
        ("RGBA", (0, 0, 0, 0), [255, 255, 255]),  # transparent lies on white
        ("I;16", 257 * 100, [100, 100, 100]),  # 16-bit grey is scaled, not clipped
    ],
)
def test_modes_become_rgb(mode: str, colour: object, expected: list[int]) -> None:
    assert pixel(encoded(Image.new(mode, (8, 8), colour))) == expected  # pyright: ignore[reportArgumentType]


def test_cmyk_becomes_rgb() -> None:
    red, green, blue = pixel(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100))
    assert red > 200 and green < 60 and blue < 60


def test_a_palette_with_a_transparent_colour_lies_on_white() -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    assert pixel(encoded(image)) == [255, 0, 0]
    assert pixel(encoded(image, transparency=1)) == [255, 255, 255]


def test_exif_turns_the_picture_upright() -> None:
    """Orientation 6: the stored rows are columns; the stored top left is shown at the top right."""
    image = Image.new("RGB", (8, 4), "black")
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = load(encoded(image, exif=exif)).payload
    assert upright.shape == (8, 4, 3)
    assert upright[0, 3].tolist() == [255, 255, 255]


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    assert pixel(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])) == [255, 0, 0]


def bomb(width: int, height: int) -> bytes:
    """A PNG that is only a header: it says how large it is."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (b"IHDR" + header, b"IDAT" + zlib.compress(b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(10_000, 10_000), (40_000, 40_000)])
def test_a_bomb_is_refused_before_it_is_decoded(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_decode", lambda image: pytest.fail("it was decoded"))
    for use in (check, load):
        with pytest.raises(BadImage) as caught:
            use(bomb(*size))
        assert "40,000,000 pixels" in caught.value.expected


@pytest.mark.parametrize("size", [(1, 1), (3, 64), (2000, 8)])
def test_sizes_that_image_processors_cannot_take(size: tuple[int, int]) -> None:
    with pytest.raises(BadImage) as caught:
        check(encoded(Image.new("RGB", size)))
    assert f"{size[0]} x {size[1]}" in caught.value.got


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_a_truncated_picture_is_found_by_the_check_as_well(form: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), form)
    check(data)
    for use in (check, load):
        with pytest.raises(BadImage):
            use(data[: len(data) // 2])


@pytest.mark.parametrize(
    "data",
    [b"", b"\x00" * 100, b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"SIMPLE  =                    T"],
)
def test_other_bytes_are_no_picture(data: bytes) -> None:
    with pytest.raises(BadImage, match="not a picture"):
        load(data)


def test_floating_point_grey_is_refused() -> None:
    with pytest.raises(BadImage, match="floating-point"):
        load(encoded(Image.new("F", (8, 8), 0.5), "TIFF"))


def test_a_folder_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match="Is a directory"):
        load(tmp_path)
