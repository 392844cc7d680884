"""Tests of RandAugment. Evidence: the sixteen operations against pixels by hand and Pillow, published magnitudes."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from workbench.data.randaugment import GRAY, LAYERS, OPERATIONS, rand_augment
from workbench.errors import WorkbenchError


class Draws:
    """A generator that returns the given signs and places. A random() below 1/2 means plus."""

    def __init__(self, sign=1, places=(0, 0)):
        self.sign, self.places = sign, list(places)

    def random(self):
        return 0.1 if self.sign > 0 else 0.9

    def integers(self, _n):
        return self.places.pop(0)


def picture(size=(20, 16)):
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def pixels(image):
    return np.asarray(image).astype(int)


def apply(name, level, image=None, **draws):
    return pixels(OPERATIONS[name](image or picture(), level / 10, Draws(**draws)))


def test_four_of_sixteen_operations_are_applied():
    assert len(OPERATIONS) == 16 and LAYERS == 4


def test_pointwise_operations_equal_a_calculation_by_hand():
    x = pixels(picture())
    assert np.array_equal(apply("Invert", 5), 255 - x)
    assert np.array_equal(apply("Solarize", 5), np.where(x < 128, x, 255 - x))  # int(256 * 0.5)
    assert np.array_equal(apply("Solarize", 15), x)  # the threshold 384 changes nothing
    assert np.array_equal(apply("SolarizeAdd", 5), np.where(x < 128, np.minimum(255, x + 55), x))
    assert np.array_equal(apply("Posterize", 15), x & 0b11111100)  # keeps 6 bits
    assert np.array_equal(apply("Posterize", 5), x & 0b11000000)  # keeps 2 bits
    assert not apply("Posterize", 2).any()  # keeps no bit


@pytest.mark.parametrize("name", ["Color", "Contrast", "Brightness", "Sharpness"])
@pytest.mark.parametrize(("level", "factor"), [(5, 1.0), (10, 1.9), (15, 2.8)])
def test_enhancements_equal_pillows_at_the_published_factors(name, level, factor):
    expected = getattr(ImageEnhance, name)(picture()).enhance(factor)
    assert np.array_equal(apply(name, level), pixels(expected))


def test_whole_image_operations_equal_pillows():
    assert np.array_equal(apply("AutoContrast", 5), pixels(ImageOps.autocontrast(picture())))
    assert np.array_equal(apply("Equalize", 5), pixels(ImageOps.equalize(picture())))


def test_translations_equal_a_calculation_by_hand():
    image, x = picture((120, 110)), pixels(picture((120, 110)))
    right = apply("TranslateX", 5, image, sign=1)  # by 50 px: column 50 moves to column 0
    assert np.array_equal(right[:, :70], x[:, 50:]) and (right[:, 70:] == GRAY).all()
    left = apply("TranslateX", 5, image, sign=-1)
    assert np.array_equal(left[:, 50:], x[:, :70]) and (left[:, :50] == GRAY).all()
    up = apply("TranslateY", 10, image, sign=1)
    assert np.array_equal(up[:10], x[100:]) and (up[10:] == GRAY).all()


def test_shears_equal_a_calculation_by_hand():
    image, x = picture((60, 20)), pixels(picture((60, 20)))
    sheared = apply("ShearX", 10, image, sign=1)  # row r moves by 0.3 r
    assert np.array_equal(sheared[0], x[0])
    assert np.array_equal(sheared[10, :50], x[10, 3:53])  # at the pixel's centre 10.5 * 0.3 = 3.15
    down = apply("ShearY", 10, image, sign=-1)
    assert np.array_equal(down[3:, 10], x[:17, 10])  # column 10 moves down by 3.15


def test_rotation_turns_by_three_degrees_per_level():
    image = Image.new("RGB", (101, 101))
    image.putpixel((90, 50), (255, 255, 255))
    for sign in (1, -1):
        white_pixels = np.argwhere(apply("Rotate", 10, image, sign=sign)[..., 0] == 255)
        angle = np.degrees(np.arctan2(50 - white_pixels[0][0], white_pixels[0][1] - 50))
        assert angle == pytest.approx(30 * sign, abs=1.5)


def test_cutout_equals_a_calculation_by_hand():
    x = pixels(picture((100, 90)))
    cut = apply("Cutout", 5, picture((100, 90)), places=(30, 40))  # pad 20: columns 10..49, rows 20..59
    expected = x.copy()
    expected[20:60, 10:50] = GRAY
    assert np.array_equal(cut, expected)
    corner = apply("Cutout", 5, picture((100, 90)), places=(0, 89))
    assert (corner[69:, :20] == GRAY).all() and np.array_equal(corner[:69], x[:69])


def test_equal_seeds_give_equal_images_and_all_operations_occur():
    a, b = (rand_augment(picture(), 10, np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(pixels(a), pixels(b)) and a.size == (20, 16) and a.mode == "RGB"
    drawn = []
    before = dict(OPERATIONS)
    try:
        for name, operation in before.items():
            OPERATIONS[name] = lambda image, share, rng, n=name, o=operation: (drawn.append(n), o(image, share, rng))[1]
        for seed in range(100):
            rand_augment(picture(), 10, np.random.default_rng(seed))
    finally:
        OPERATIONS.update(before)
    assert set(drawn) == set(before) and len(drawn) == 400


def test_levels_and_layers_out_of_range_are_refused():
    for level, layers in ((-1, 4), (31, 4), (5, -1)):
        with pytest.raises(WorkbenchError, match=rf"`level`.*`layers`.*{level} and {layers}\b"):
            rand_augment(picture(), level, np.random.default_rng(0), layers)
