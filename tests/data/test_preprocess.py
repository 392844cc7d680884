"""Tests of the preprocessing. Evidence: boxes and pixels by hand, and Keys' cubic in four lines of numpy."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from workbench.data.pixels import Preprocess
from workbench.data.preprocess import center_box, crop, random_box, squash, train_pixels, whole
from workbench.errors import WorkbenchError


def gradient(width, height):
    """Make an image whose red grows by 1 per column and whose green grows by 1 per row."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([columns, rows, 0 * rows], axis=-1).astype(np.uint8))


def test_the_normalisation_equals_a_calculation_by_hand():
    white = Image.new("RGB", (50, 50), (255, 255, 255))
    out = Preprocess("squash", 16, 16).made(white)
    expected = torch.tensor([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])
    torch.testing.assert_close(out[:, 3, 4], expected)
    assert out.shape == (3, 16, 16) and out.dtype == torch.float32


def test_squash_ignores_the_aspect_ratio_and_cuts_off_sixteen_pixels():
    size = 32  # the resized image is 64 x 64, so an image of 128 x 64 shrinks in width only, two to one
    squashed = squash(gradient(128, 64), size)
    middle = squashed[8:24, 8:24]
    rows, columns = np.arange(8, 24) + 16, np.arange(8, 24) + 16
    np.testing.assert_allclose(
        middle[..., 0], np.broadcast_to(2 * columns + 0.5, (16, 16)), atol=1e-2
    )  # between two columns
    np.testing.assert_allclose(middle[..., 1], np.broadcast_to(rows[:, None], (16, 16)), atol=1e-2)


@pytest.mark.parametrize(
    ("width", "height", "size", "box"),
    [
        (500, 400, 224, (75, 25, 425, 375)),  # 400 / 256 * 224 = 350; (500 - 350 + 1) // 2 = 75
        (256, 256, 224, (16, 16, 240, 240)),
        (301, 257, 224, (39, 17, 263, 241)),  # 257 / 256 * 224 = 224.9, so 224. Left and top get the odd pixel
    ],
)
def test_the_centre_box_equals_a_calculation_by_hand(width, height, size, box):
    assert center_box(width, height, size) == box


def test_crop_keeps_the_aspect_ratio():
    cropped = crop(gradient(200, 128), 96)  # the box has 96 px, columns 52 to 147, rows 16 to 111
    np.testing.assert_allclose(cropped[5:-5, 5:-5, 0], np.broadcast_to(np.arange(57, 143), (86, 86)), atol=1e-3)
    np.testing.assert_allclose(
        cropped[5:-5, 5:-5, 1], np.broadcast_to(np.arange(21, 107)[:, None], (86, 86)), atol=1e-3
    )


def keys(x):
    """Evaluate Keys' cubic with a = -1/2."""
    x = abs(x)
    return 1.5 * x**3 - 2.5 * x**2 + 1 if x < 1 else -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def test_resizing_is_keys_cubic_and_is_not_clamped():
    step = np.zeros((8, 8, 3), np.uint8)
    step[:, 4:] = 255
    resized = squash(Image.fromarray(step), 32)[10, :, 0]  # 8 px become 64 px, of which columns 16 to 47 remain
    centres = (np.arange(64) + 0.5) / 8 - 0.5
    line = step[0, :, 0].astype(float)
    literal = []
    for centre in centres:
        taps = [i for i in range(math.floor(centre) - 1, math.floor(centre) + 3) if 0 <= i < 8]
        weights = [keys(i - centre) for i in taps]
        literal.append(sum(w * line[i] for w, i in zip(weights, taps, strict=True)) / sum(weights))
    np.testing.assert_allclose(resized, literal[16:48], atol=0.01)
    assert resized.min() < -5 and resized.max() > 260


@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500), (40, 400), (33, 33)])
def test_random_boxes_keep_to_the_range_of_area_and_aspect_ratio(width, height):
    generator = torch.Generator().manual_seed(0)
    centre = center_box(width, height, 224)
    areas = []
    for _ in range(300):
        box = random_box(width, height, 224, generator)
        left, top, right, bottom = box
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        if box == centre:
            continue
        w, h = right - left, bottom - top
        areas.append(w * h / (width * height))
        assert 0.1 <= areas[-1] <= 1  # a crop keeps a tenth of the image, so 8 % never occurs
        assert 3 / 4 - 1.5 / h <= w / h <= 4 / 3 + 1.5 / h
    if min(width, height) > 100:
        assert min(areas) < 0.15 and max(areas) > 0.6


def test_an_image_too_long_for_any_box_gives_its_centre():
    generator = torch.Generator().manual_seed(0)
    assert random_box(3000, 10, 224, generator) == center_box(3000, 10, 224)


def test_train_crops_depend_on_the_generator_alone_and_half_are_mirrored():
    image = gradient(200, 200)
    first, again = (train_pixels(image, 32, torch.Generator().manual_seed(5)) for _ in range(2))
    assert np.array_equal(first, again)
    mirrored = sum(
        bool(c[16, 0, 0] > c[16, -1, 0])
        for c in (train_pixels(image, 32, torch.Generator().manual_seed(s)) for s in range(200))
    )
    assert 70 < mirrored < 130


@pytest.mark.parametrize("style", ["squash", "crop", "whole", "fit"])
def test_images_of_other_modes_are_read_as_rgb(style):
    for mode in ("L", "RGBA", "P", "CMYK"):
        assert Preprocess(style, 16, 16).made(Image.new(mode, (40, 30))).shape == (3, 16, 16)


@pytest.mark.parametrize(
    ("style", "size", "words"),
    [
        ("squish", (16, 16), "'squish'.*'squash'"),
        ("crop", (0, 0), r"`image_size`.*\b0x0\b"),
        ("fit", (10**9, 8), r"`image_size`.*1000000000x8"),
        ("whole", (16, 24), "'whole'.*16x24.*'fit'"),
    ],
)
def test_unknown_styles_and_impossible_sizes_are_refused(style, size, words):
    with pytest.raises(WorkbenchError, match=words):
        Preprocess(style, *size)


def test_networks_for_small_images_see_the_whole_image():
    image = gradient(32, 32)
    np.testing.assert_allclose(whole(image, 32), np.asarray(image, float), atol=1e-3)
    from workbench.models.zoo import MODELS

    assert {row.eval_style for row in MODELS.values() if row.test_size <= 32} == {"whole"}
