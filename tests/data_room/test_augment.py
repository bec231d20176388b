"""Augmentation: off by default, the same for the same numbers, and each setting does what it says and no more."""

import numpy as np
import pytest
from PIL import Image

from altclip_jax.data.augment import Augmentation, generator_for

ALL = Augmentation(
    crop_scale=(0.5, 1),
    shift=0.1,
    scale=(0.9, 1.1),
    stretch=(0.9, 1.1),
    rotation=20,
    flip=0.5,
    brightness=0.3,
    contrast=0.3,
    saturation=0.3,
    grey=0.2,
    background=0.5,
)
SIZE = (24, 24)


@pytest.fixture(scope="module")
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)).resize((80, 60))


@pytest.fixture(scope="module")
def emoji():
    """A red square in the middle of nothing."""
    pixels = np.zeros((40, 40, 4), np.uint8)
    pixels[10:30, 10:30] = (255, 0, 0, 255)
    return Image.fromarray(pixels)


def changed(augmentation, image, *numbers, background=None):
    result = augmentation(image, generator_for(0, *numbers), SIZE, background)
    assert result.mode == "RGB"
    return np.asarray(result)


def test_nothing_changes_by_default(image):
    assert Augmentation().is_off
    assert Augmentation(crop_ratio=(1, 1)).is_off
    assert not ALL.is_off
    assert np.array_equal(changed(Augmentation(), image, 1), np.asarray(image))


def test_a_picture_changes_alike_for_the_same_numbers_and_otherwise_for_others(image, emoji):
    for picture in (image, emoji):
        results = [changed(ALL, picture, step, row) for step in range(3) for row in range(3)]
        again = [changed(ALL, picture, step, row) for step in range(3) for row in range(3)]
        assert all(map(np.array_equal, results, again))
        assert len({result.tobytes() for result in results}) == 9


def test_chance_stays_what_it_was_when_runs_were_begun():
    drawn = generator_for(1, 2, 3).random(2).tolist()
    assert drawn == [0.1758724733959237, 0.6826678202411077]


def test_a_setting_leaves_the_chance_of_the_others_as_it_was(image):
    flips = [not np.array_equal(changed(Augmentation(flip=0.5), image, row), np.asarray(image)) for row in range(40)]
    assert 10 < sum(flips) < 30
    both = Augmentation(flip=0.5, shift=0.2, grey=0.5, background=0.5)
    unflipped = Augmentation(shift=0.2, grey=0.5, background=0.5)
    for row, flip in enumerate(flips):
        plain = changed(unflipped, image, row)
        assert np.array_equal(changed(both, image, row), plain[:, ::-1] if flip else plain)


def test_a_crop_is_a_part_of_the_picture_in_its_share_and_ratio():
    # a picture whose colours are its places
    width, height = 200, 100
    columns, rows = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    places = Image.fromarray(np.stack([columns, rows, 0 * rows], -1).astype(np.uint8))
    crop = Augmentation(crop_scale=(0.2, 0.5), crop_ratio=(0.5, 2))
    areas, ratios = [], []
    for row in range(60):
        result = changed(crop, places, row).astype(float)
        assert result.shape == (24, 24, 3)
        across = (result[:, -1, 0] - result[:, 0, 0]).mean() / 255 * 24 / 23
        along = (result[-1, :, 1] - result[0, :, 1]).mean() / 255 * 24 / 23
        areas.append(across * along)
        ratios.append(across / along)
    assert 0.18 < min(areas) < 0.25
    assert 0.45 < max(areas) < 0.54
    assert 0.45 < min(ratios) < 0.7
    assert 1.4 < max(ratios) < 2.2


def test_rotation_scale_and_shift_are_about_the_middle(emoji):
    white = (255, 255, 255)

    def square(augmentation, row):
        result = changed(augmentation, emoji, row, background=white)
        rows, columns = np.nonzero(result[..., 1] < 128)
        return rows.mean() + 0.5, columns.mean() + 0.5, len(rows)

    for row in range(10):
        y, x, area = square(Augmentation(rotation=180), row)
        assert abs(y - 20) < 0.3
        assert abs(x - 20) < 0.3
        assert abs(area - 400) < 30
        y, x, area = square(Augmentation(scale=(1.5, 1.5)), row)
        assert (round(y, 1), round(x, 1), area) == (20, 20, 900)
        y, x, area = square(Augmentation(stretch=(0.5, 0.5)), row)
        assert (round(y, 1), round(x, 1), area) == (20, 20, 200)
    moved = [square(Augmentation(shift=0.2), row)[:2] for row in range(30)]
    offsets = np.array(moved) - 20
    assert np.abs(offsets).max() <= 8.5
    assert np.ptp(offsets, axis=0).min() > 8


def test_what_a_shift_uncovers_has_the_colour_around_the_picture(emoji):
    framed = Image.new("RGB", (40, 40), (10, 200, 30))
    framed.paste((0, 0, 0), (15, 15, 25, 25))
    shift = Augmentation(shift=0.2, rotation=90)
    corners = ([0, 0, -1, -1], [0, -1, 0, -1])
    for row in range(5):
        assert (changed(shift, framed, row)[corners] == (10, 200, 30)).all()
        assert (changed(shift, emoji, row, background=(1, 2, 3))[corners] == (1, 2, 3)).all()


def test_transparent_parts_show_a_random_colour_and_the_rest_does_not(emoji, image):
    behind = Augmentation(background=1)
    colours = {tuple(changed(behind, emoji, row)[0, 0].tolist()) for row in range(10)}
    assert len(colours) == 10
    assert (changed(behind, emoji, 0)[20, 20] == (255, 0, 0)).all()
    assert np.array_equal(changed(behind, image, 0), np.asarray(image))
    half = Augmentation(background=0.5)
    shown = [tuple(changed(half, emoji, row, background=(9, 9, 9))[0, 0].tolist()) for row in range(40)]
    assert 10 < shown.count((9, 9, 9)) < 30


def test_colours_change_within_their_limits(image):
    grey = changed(Augmentation(grey=1), image, 0)
    assert (grey == grey[..., :1]).all()
    plain = np.asarray(image).astype(float)
    factors = [changed(Augmentation(brightness=0.3), image, row).mean() / plain.mean() for row in range(40)]
    assert 0.69 < min(factors) < 0.8
    assert 1.1 < max(factors) < 1.31
    spreads = [changed(Augmentation(contrast=0.3), image, row).std() / plain.std() for row in range(40)]
    assert 0.69 < min(spreads) < 0.8
    assert 1.1 < max(spreads) < 1.31
    colours = [np.ptp(changed(Augmentation(saturation=0.5), image, row).astype(float), -1).mean() for row in range(40)]
    assert min(colours) < 0.7 * np.ptp(plain, -1).mean() < 1.2 * np.ptp(plain, -1).mean() < max(colours)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "La"])
def test_pictures_of_every_mode_are_taken(mode):
    gray = Image.new("L", (30, 20), 128)
    image = (
        Image.new("I;16", (30, 20)) if mode == "I;16" else gray.convert("LA" if mode == "La" else mode).convert(mode)
    )
    assert changed(ALL, image, 0).shape == (24, 24, 3)


def test_all_settings_out_of_range_are_named():
    with pytest.raises(ValueError, match="flip must be from 0 to 1") as caught:
        Augmentation(flip=2, rotation=-1, scale=(1.2, 0.8), crop_scale=(0, 2), shift="x")
    for name in ("rotation", "scale", "crop_scale", "shift"):
        assert f"{name} must be" in str(caught.value)
    assert "scale=(1.2, 0.8)" in str(caught.value)


def test_settings_may_come_from_a_file():
    assert Augmentation(scale=[0.9, 1.1]) == Augmentation(scale=(0.9, 1.1))
