"""The drawn letters: always the same, readable, and told by nothing but their shape."""

import hashlib
from functools import cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, features
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from eagleray.config.registry import find
from eagleray.config.sections import DataSettings
from eagleray.contracts.dataset import Part
from eagleray.data.images import load_data
from eagleray.datasets import letters
from eagleray.datasets.letters import FONTS, LETTERS, SIDE, drawn

KNOWN_FONTS = (
    "58df182d3e392f7c6456379a25082f3e5ded2227b4538adf5c54567468470711"  # of the files that matplotlib 3.11 brings
)
KNOWN_FREETYPE = "2.14.3"
KNOWN_LETTERS = "80b97cbc12ef96d230f1b28b8e05ce76db455099b303410c925455d32769661c"


@cache
def part() -> Part:
    declaration = find("data", "letters")
    return declaration.load()("letters", declaration.Config()).parts()["train"]


def font_file(name: str) -> Path:
    return Path(mpl.get_data_path(), "fonts", "ttf", f"{name}.ttf")


def digest(*contents: bytes) -> str:
    return hashlib.sha256(b"".join(contents)).hexdigest()


def shrunk(glyph: np.ndarray) -> np.ndarray:
    """Fit a glyph into 16x16, so that only its shape counts."""
    rows, columns = np.flatnonzero(glyph.max(1) > 80), np.flatnonzero(glyph.max(0) > 80)
    cut = glyph[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.uint8)
    return np.asarray(Image.fromarray(cut).resize((16, 16), Image.Resampling.BILINEAR), np.float64).ravel()


def likeness(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one, other)[0, 1])


@pytest.mark.slow
def test_the_letters_are_the_same_everywhere():
    fonts = digest(*(font_file(name).read_bytes() for name in FONTS))
    if (fonts, features.version("freetype2")) != (KNOWN_FONTS, KNOWN_FREETYPE):
        pytest.skip("other fonts or another FreeType draw other pixels")
    assert digest(np.ascontiguousarray(part().images).tobytes()) == KNOWN_LETTERS


def test_each_letter_is_a_function_of_its_number():
    images, labels = part().images, part().labels
    assert isinstance(images, np.ndarray)
    assert labels is not None
    assert (images.shape, images.dtype) == ((3000, 3, SIDE, SIDE), np.uint8)
    assert np.bincount(labels).tolist() == [300] * 10
    letters._glyph.cache_clear()
    np.random.seed(1)
    for number in (2999, 7, 0):
        np.testing.assert_array_equal(drawn(number, LETTERS[labels[number]]), images[number])


def test_each_glyph_is_what_matplotlib_draws():
    """matplotlib's own renderer draws all letters in all fonts; ours look like theirs, and like no other letter."""
    cell, size = 48, 28
    figure = Figure((len(LETTERS) * cell / 72, len(FONTS) * cell / 72), dpi=72)
    canvas = FigureCanvasAgg(figure)
    for row, name in enumerate(FONTS):
        for column, letter in enumerate(LETTERS):
            place = (column + 0.5) / len(LETTERS), 1 - (row + 0.5) / len(FONTS)
            figure.text(*place, letter, ha="center", va="center", size=size, font=font_file(name))
    canvas.draw()
    theirs = 255 - np.asarray(canvas.buffer_rgba())[:, :, 0]
    for row, name in enumerate(FONTS):
        cells = np.split(theirs[row * cell : (row + 1) * cell], len(LETTERS), axis=1)
        shapes = [shrunk(each) for each in cells]
        for column, letter in enumerate(LETTERS):
            alike = [likeness(shrunk(letters._glyph(name, size, letter)), shape) for shape in shapes]
            assert int(np.argmax(alike)) == column, (name, letter)
            assert alike[column] > 0.7, (name, letter)


def test_a_mirrored_b_is_a_d():
    for name in FONTS[:4]:
        shapes = {letter: letters._glyph(name, 24, letter) for letter in LETTERS}
        mirrored = {letter: likeness(shrunk(shapes["b"][:, ::-1]), shrunk(shape)) for letter, shape in shapes.items()}
        assert max(mirrored, key=mirrored.__getitem__) in "dq"


def found(image: np.ndarray) -> np.ndarray:
    """Find a letter in its image: what is far from the plane of colours that most pixels lie on, [SIDE, SIDE]."""
    down, across = np.mgrid[:SIDE, :SIDE].reshape(2, -1) / SIDE
    planes, colours = np.stack([np.ones(SIDE**2), down, across], 1), image.reshape(3, -1).T.astype(np.float64)
    distance = np.zeros(SIDE**2)
    for _ in range(5):
        near = distance <= np.quantile(distance, 0.7)
        fit = np.linalg.lstsq(planes[near], colours[near], rcond=None)[0]
        distance = np.abs(colours - planes @ fit).sum(1)
    return (255 * distance / distance.max()).reshape(SIDE, SIDE)


@pytest.mark.slow
def test_letters_are_readable_and_only_by_their_shape():
    images, labels = np.asarray(part().images), part().labels
    assert labels is not None
    assert 115 < images.mean() < 140
    assert 60 < images.std() < 85
    shapes = np.stack([shrunk(found(image)) for image in images]) / 255
    colours = np.concatenate([images.mean((2, 3)), images[:, :, ::31, ::31].reshape(len(images), -1)], 1)
    read = LogisticRegression(max_iter=300, C=0.1).fit(shapes[:2400], labels[:2400]).score(shapes[2400:], labels[2400:])
    guessed = LogisticRegression(max_iter=300).fit(colours[:2400] / 255, labels[:2400])
    pixels = images.reshape(len(images), -1)[:, ::4].astype(np.float32)
    nearest = KNeighborsClassifier(5).fit(pixels[:2400], labels[:2400]).score(pixels[2400:], labels[2400:])
    assert read > 0.85
    assert guessed.score(colours[2400:] / 255, labels[2400:]) < 0.15
    assert nearest < 0.2


@pytest.mark.slow
def test_other_versions_are_drawn_again(tmp_path, monkeypatch):
    declaration, settings = find("data", "letters"), DataSettings(cache=tmp_path)
    data = load_data("letters", declaration.Config(), settings, 0)
    assert (data.info.channels, data.info.image_size, data.class_names) == (3, SIDE, tuple(LETTERS))
    kept = sorted(tmp_path.glob("*.bin"))
    monkeypatch.setattr(letters, "drawn", None)
    load_data("letters", declaration.Config(), settings, 1)
    assert sorted(tmp_path.glob("*.bin")) == kept
    monkeypatch.setattr(letters, "version", lambda _: "4.0")
    with pytest.raises(TypeError, match="not callable"):
        load_data("letters", declaration.Config(), settings, 0)
