"""Folders of images: which files are which, and where labels come from."""

import os
import unicodedata
from pathlib import Path

import pytest
import torchvision
from PIL import Image

from eagleray.config.registry import find
from eagleray.config.sections import DataSettings
from eagleray.contracts.dataset import Dataset
from eagleray.contracts.errors import ConfigError
from eagleray.data.description import described
from eagleray.data.images import load_data


def source(**config) -> Dataset:
    declaration = find("data", "folder")
    return declaration.load()("folder", declaration.Config(**config))


def write_images(folder: Path, *names: str, size: tuple[int, int] = (8, 8)) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (number, 2 * number, 3 * number)).save(folder / name)


def laid_out(root: Path, **config) -> dict[str, tuple[list[str], list[int] | None]]:
    """Part -> file names relative to root, labels."""
    parts = source(root=root, **config).parts()
    return {
        name: (
            [os.path.relpath(path, root) for path in part.images],
            None if part.labels is None else part.labels.tolist(),
        )
        for name, part in parts.items()
    }


def test_a_flat_folder_has_no_labels(tmp_path):
    write_images(tmp_path, "b.png", "a.jpg", ".hidden.png", ".thumbs/c.png")
    assert laid_out(tmp_path) == {"train": (["a.jpg", "b.png"], None)}
    assert source(root=tmp_path).class_names() is None


def test_sub_folders_are_classes(tmp_path):
    write_images(tmp_path, "dog/1.png", "cat/2.png", "cat/1.png")
    assert laid_out(tmp_path) == {"train": (["cat/1.png", "cat/2.png", "dog/1.png"], [0, 0, 1])}
    assert source(root=tmp_path).class_names() == ("cat", "dog")
    assert laid_out(tmp_path, labels="none")["train"][1] is None


def test_labels_agree_with_torchvisions_image_folder(tmp_path):
    write_images(tmp_path, "b/x.png", "B/x.png", "a b/y.png", "ä/z.png", "b/sub/deep.png")
    reference = torchvision.datasets.ImageFolder(tmp_path)
    files, labels = laid_out(tmp_path, labels="folders")["train"]
    assert labels is not None
    expected = {os.path.relpath(path, tmp_path): label for path, label in reference.samples}
    assert dict(zip(files, labels, strict=True)) == expected
    assert source(root=tmp_path, labels="folders").class_names() == tuple(reference.classes)


def test_deep_and_lone_folders_are_no_classes(tmp_path):
    write_images(tmp_path / "nested", "2021/may/1.png", "2022/june/2.png")
    write_images(tmp_path / "lone", "only/1.png", "only/2.png")
    assert laid_out(tmp_path / "nested")["train"][1] is None
    assert laid_out(tmp_path / "lone")["train"][1] is None
    assert laid_out(tmp_path / "nested", labels="folders")["train"][1] == [0, 1]
    with pytest.raises(ConfigError, match=r"fewer than two sub-folders.*data\.labels=none"):
        laid_out(tmp_path / "lone", labels="folders")


def test_images_at_different_depths_are_for_the_user_to_decide(tmp_path):
    write_images(tmp_path, "loose.png", "cat/1.png", "dog/2.png")
    with pytest.raises(ConfigError, match=r"different depths.*data\.labels=folders.*data\.labels=none"):
        laid_out(tmp_path)
    assert laid_out(tmp_path, labels="folders")["train"][1] == [0, 1, -1]  # cat/1, dog/2, loose
    (tmp_path / "loose.png").rename(tmp_path / "README.md")  # no image by its name: says nothing of the layout
    assert laid_out(tmp_path)["train"][1] == [0, 1]


@pytest.mark.parametrize("test", ["test", "val", "Validation"])
def test_train_and_test_folders_are_parts(tmp_path, test):
    write_images(tmp_path, "train/cat/1.png", "train/dog/2.png", f"{test}/dog/3.png", "notes/4.png")
    assert laid_out(tmp_path) == {
        "train": (["train/cat/1.png", "train/dog/2.png"], [0, 1]),
        "test": ([f"{test}/dog/3.png"], [1]),
    }


def test_validation_beside_test_and_unlabelled_are_parts_too(tmp_path):
    names = ("train/cat/1.png", "train/dog/2.png", "val/cat/3.png", "test/dog/4.png", "unlabelled/5.png")
    write_images(tmp_path, *names)
    parts = laid_out(tmp_path)
    assert {part: labels for part, (_, labels) in parts.items()} == {
        "train": [0, 1],
        "validation": [0],
        "test": [1],
        "unlabelled": [-1],
    }


def test_train_may_be_a_class(tmp_path):
    write_images(tmp_path, "car/1.png", "plane/2.png", "train/3.png")
    assert laid_out(tmp_path)["train"][1] == [0, 1, 2]


def test_a_test_image_of_no_known_class_is_refused(tmp_path):
    write_images(tmp_path, "train/cat/1.png", "train/dog/2.png", "test/emu/3.png")
    with pytest.raises(ConfigError, match=r"test/emu/3\.png is in none of the class folders"):
        laid_out(tmp_path)


def test_folders_that_are_not_there_or_empty(tmp_path):
    (tmp_path / "empty" / "inside").mkdir(parents=True)
    (tmp_path / "file").touch()
    for name, said in (("gone", "does not exist"), ("file", "is not a folder"), ("empty", "contains no images")):
        with pytest.raises(ConfigError, match=rf"{tmp_path / name} {said}"):
            laid_out(tmp_path / name)


def test_links_are_followed(tmp_path):
    write_images(tmp_path / "elsewhere", "1.png")
    write_images(tmp_path / "root", "cat/2.png")
    (tmp_path / "root" / "dog").symlink_to(tmp_path / "elsewhere")
    assert laid_out(tmp_path / "root") == {"train": (["cat/2.png", "dog/1.png"], [0, 1])}


# --- what must not be read wrongly -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["unlabelled", "Unlabeled"])
@pytest.mark.parametrize("below", ["", "site/day/"])
def test_a_folder_of_unlabelled_images_beside_classes_is_no_class(tmp_path, name, below):
    write_images(tmp_path, f"cat/{below}1.png", f"dog/{below}2.png", f"{name}/3.png", f"{name}/more/4.png")
    files, labels = laid_out(tmp_path)["train"]
    assert dict(zip(files, labels or (), strict=True)) == {
        f"cat/{below}1.png": 0,
        f"dog/{below}2.png": 1,
        f"{name}/3.png": -1,
        f"{name}/more/4.png": -1,
    }
    assert source(root=tmp_path).class_names() == ("cat", "dog")
    assert laid_out(tmp_path, labels="none")["train"][1] is None
    assert source(root=tmp_path, labels="folders").class_names() == ("cat", "dog")


def test_the_same_in_a_folder_called_train(tmp_path):
    write_images(tmp_path, "train/cat/1.png", "train/dog/2.png", "train/unlabelled/3.png", "test/dog/4.png")
    assert laid_out(tmp_path)["train"][1] == [0, 1, -1]


def test_loose_and_unlabelled_images_have_no_classes(tmp_path):
    write_images(tmp_path, "1.png", "unlabelled/2.png")
    assert laid_out(tmp_path) == {"train": (["1.png", "unlabelled/2.png"], None)}


@pytest.mark.parametrize("name", ["test", "val", "Valid", "validation", "testing"])
def test_a_part_beside_classes_is_a_part_if_it_has_the_same_folders(tmp_path, name):
    write_images(tmp_path, "cat/1.png", "dog/2.png", f"{name}/cat/3.png", f"{name}/dog/4.png")
    assert laid_out(tmp_path) == {
        "train": (["cat/1.png", "dog/2.png"], [0, 1]),
        "test": ([f"{name}/cat/3.png", f"{name}/dog/4.png"], [0, 1]),
    }


@pytest.mark.parametrize("name", ["test", "val", "Valid", "validation"])
@pytest.mark.parametrize("others", [["cat/1.png", "dog/2.png"], ["1.png"], ["2021/may/1.png", "2022/may/2.png"]])
def test_any_other_part_beside_training_images_is_for_the_user_to_decide(tmp_path, name, others):
    write_images(tmp_path, *others, f"{name}/3.png")
    said = rf"{tmp_path / name} would be trained on: .* a folder `train` .*data\.labels=folders.*data\.labels=none"
    with pytest.raises(ConfigError, match=said):
        laid_out(tmp_path)
    assert laid_out(tmp_path, labels="none")["train"][1] is None
    if len(others) > 1:
        assert name in (source(root=tmp_path, labels="folders").class_names() or ())


@pytest.mark.parametrize("name", ["unknown", "Unsorted", "unclassified"])
def test_a_folder_that_may_be_a_class_is_for_the_user_to_decide(tmp_path, name):
    write_images(tmp_path, "cat/1.png", "dog/2.png", f"{name}/3.png")
    with pytest.raises(ConfigError, match=rf"{name} is beside class folders: .*`unlabelled`.*data\.labels=folders"):
        laid_out(tmp_path)
    assert set(source(root=tmp_path, labels="folders").class_names() or ()) == {"cat", "dog", name}


def test_two_folders_of_one_part_are_refused(tmp_path):
    write_images(tmp_path, "train/cat/1.png", "train/dog/2.png", "val/cat/3.png", "valid/cat/4.png")
    with pytest.raises(ConfigError, match=r"val and .*valid are the same part: move"):
        laid_out(tmp_path)


def test_deep_folders_are_classes_where_test_has_the_same(tmp_path):
    write_images(tmp_path, "train/cat/a/1.png", "train/dog/b/c/2.png", "test/dog/b/3.png")
    assert laid_out(tmp_path) == {
        "train": (["train/cat/a/1.png", "train/dog/b/c/2.png"], [0, 1]),
        "test": (["test/dog/b/3.png"], [1]),
    }


def test_deep_folders_that_may_be_classes_are_told(tmp_path):
    write_images(tmp_path, "cat/site/may/1.png", "dog/site/may/2.png")
    assert source(root=tmp_path).class_names() is None
    assert source(root=tmp_path).notes() == ["data.labels=folders would take cat, dog as classes"]
    assert source(root=tmp_path, labels="folders").notes() == source(root=tmp_path, labels="none").notes() == []


def test_what_lies_beside_the_parts_is_told(tmp_path):
    write_images(tmp_path, "train/cat/1.png", "train/dog/2.png", "test/dog/3.png", "notes/4.png", "loose.png")
    (tmp_path / "README.md").touch()
    assert source(root=tmp_path).notes() == ["not read, because beside train: notes, loose.png"]


def test_train_alone_is_the_part_where_it_alone_has_sub_folders(tmp_path):
    write_images(tmp_path, "train/cat/1.png", "train/dog/2.png", "notes/4.png")
    assert laid_out(tmp_path) == {"train": (["train/cat/1.png", "train/dog/2.png"], [0, 1])}


# --- files that are no images ----------------------------------------------------------------------------------

STRAYS = ["Thumbs.db", "README.txt", "labels.csv", ".DS_Store", "desktop.ini", "paper.pdf", "model.h5", "film.mpg"]


def test_files_not_named_like_images_are_left_out_and_counted(tmp_path):
    write_images(tmp_path, "cat/1.png", "dog/2.JPG", "dog/ä b.Png")
    for number, name in enumerate(STRAYS):
        (tmp_path / ("cat", "dog", ".")[number % 3] / name).write_text("no image")
    assert laid_out(tmp_path) == {"train": (["cat/1.png", "dog/2.JPG", "dog/ä b.Png"], [0, 1, 1])}
    (note,) = source(root=tmp_path).notes()
    assert note.startswith("8 files left out, hidden or not named like images (")
    assert "and 3 more)" in note


def test_where_no_file_is_named_like_an_image_those_without_an_ending_are_read(tmp_path):
    write_images(tmp_path, "1.png", "2.png")
    for name in ("1", "2"):
        (tmp_path / f"{name}.png").rename(tmp_path / name)
    (tmp_path / ".DS_Store").touch()
    (tmp_path / "notes.txt").touch()
    assert laid_out(tmp_path) == {"train": (["1", "2"], None)}


def test_text_files_are_no_images_even_where_there_are_no_others(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ConfigError, match=r"contains no images: notes\.txt is not named like one"):
        laid_out(tmp_path)


def test_a_link_that_leads_back_is_not_followed(tmp_path):
    write_images(tmp_path, "cat/1.png", "dog/2.png")
    (tmp_path / "dog" / "again").symlink_to(tmp_path)
    assert laid_out(tmp_path) == {"train": (["cat/1.png", "dog/2.png"], [0, 1])}


def test_each_folder_is_read_once_however_it_is_linked(tmp_path):
    write_images(tmp_path / "elsewhere", "3.png")
    write_images(tmp_path / "root", "train/cat/1.png", "train/dog/2.png", "test/cat/4.png", "test/dog/5.png")
    train = tmp_path / "root" / "train"
    (train / "dog" / "first").symlink_to(tmp_path / "elsewhere")
    (train / "dog" / "second").symlink_to(tmp_path / "elsewhere")
    (train / "cat" / "other").symlink_to(train / "dog")
    (train / "a_cat").symlink_to(train / "cat")  # before the folder itself in the alphabet
    (tmp_path / "elsewhere" / "round").symlink_to(train)
    dataset = source(root=tmp_path / "root", labels="folders")
    assert laid_out(tmp_path / "root", labels="folders")["train"] == (
        ["train/cat/1.png", "train/dog/2.png", "train/dog/first/3.png"],
        [0, 1, 1],
    )
    assert "4 links not followed, to folders that are read already (a_cat, other, round, second)" in dataset.notes()


def test_test_images_are_not_trained_on_by_a_link(tmp_path):
    write_images(tmp_path, "cat/1.png", "dog/2.png", "test/cat/3.png", "test/dog/4.png")
    (tmp_path / "cat" / "more").symlink_to(tmp_path / "test")
    assert laid_out(tmp_path)["train"] == (["cat/1.png", "dog/2.png"], [0, 1])


# --- labels from a file ----------------------------------------------------------------------------------------


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    write_images(tmp_path / "images", "1.png", "2.JPG", "sub/3.png", "4 a.png", unicodedata.normalize("NFD", "5ä.png"))
    return tmp_path / "images"


def labelled(root: Path, text: str | bytes, place: str = "labels.csv") -> dict[str, str]:
    """The labels that a file gives, by image."""
    file = root / place
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    dataset = source(root=root, labels=str(file))
    part, names = dataset.parts()["train"], dataset.class_names()
    assert names is not None
    assert part.labels is not None
    return {
        os.path.relpath(path, root): names[label]
        for path, label in zip(part.images, part.labels, strict=True)
        if label >= 0
    }


TWO = {"1.png": "cat", "2.JPG": "dog"}
WRITTEN = {
    "a header": "path,label\n1.png,cat\n2.JPG,dog\n",
    "another order, other columns": "id,Label,note,Path\n0,cat,x,1.png\n1,dog,y,2.JPG\n",
    "other names": "filename,class\n1.png,cat\n2.JPG,dog\n",
    "names of no meaning": "bild;art\n1.png;cat\n2.JPG;dog",
    "no header": "1.png,cat\n2.JPG,dog\n",
    "no header, labels first": "cat,1.png\ndog,2.JPG\n",
    "Excel": b"\xef\xbb\xbfpath;label\r\n1.png;cat\r\n2.JPG;dog\r\n",
    "Excel's Unicode text": "path\tlabel\r\n1.png\tcat\r\n2.JPG\tdog\r\n".encode("utf-16"),
    "spaces and empty lines": "path, label\n\n 1.png , cat \n\n2.JPG, dog\n",
    "quotes": '"path","label"\n"1.png","cat"\n"2.JPG","dog"\n',
    "the same line twice": "path,label\n1.png,cat\n2.JPG,dog\n1.png,cat\n",
    "some without a label": "path,label\n1.png,cat\n2.JPG,dog\nsub/3.png,\n",
}


@pytest.mark.parametrize("text", WRITTEN.values(), ids=WRITTEN)
def test_label_files_are_read_as_people_write_them(flat, text):
    assert labelled(flat, text) == TWO


def test_paths_may_be_relative_or_absolute_and_of_any_spelling(flat):
    more = {unicodedata.normalize("NFD", "5ä.png"): "dog", "sub/3.png": "cat", "4 a.png": "dog"}
    text = f"path,label\n./1.png,cat\n{flat}/2.JPG,dog\nsub\\3.png,cat\n4 a.png,dog\n5ä.png,dog\n"
    assert labelled(flat, text) == {**TWO, **more}
    assert labelled(flat, text, place="../labels.csv") == {**TWO, **more}  # relative to data.root
    assert labelled(flat, "images/1.png,cat\nimages/2.JPG,dog\n", place="../labels.csv") == TWO  # to its own folder
    (flat.parent / "link").symlink_to(flat)
    assert labelled(flat.parent / "link", text) == {**TWO, **more}


def test_a_label_file_that_has_an_odd_comma_in_a_name_and_another_separator(flat):
    write_images(flat, "6, b.png")
    assert labelled(flat, "6, b.png;cat\n2.JPG;dog\n") == {"6, b.png": "cat", "2.JPG": "dog"}


REFUSED = {
    "": r"labels\.csv is empty",
    "path\n1.png\n": r"has one column: separate path and label by a comma",
    "path,label\n": r"gives the training images no class: at least two",
    "a,b,c\n1.png,cat,0\n": r"has the columns a, b, c: call the two that count `path` and `label`",
    "path,label\n1.png,cat\n2.JPG,cat\n": r"gives the training images one class, 'cat': at least two",
    "path,label\n1.png,\n2.JPG,\n": r"no class: at least two",
    "path,label\n1.png,cat\n2.JPG,dog\n./1.png,dog\n": r"1\.png two labels, 'cat' in line 2 and 'dog' in line 4",
    "path,label\n1.png,cat\n2.JPG,dog\n7.png,dog\n": r"names what is no image below .*7\.png \(line 4\)",
    "x/1.png,cat\nx/2.png,dog\n": r"names what is no image below data\.root=.*x/1\.png \(line 1\), x/2\.png \(line 2\)",
    "path,label\n1.png,cat,black\n2.JPG,dog\n": r"line 2 of .* has 3 columns, and line 1 has 2: put texts",
    "path,label\n1.png,cat\n,dog\n": r"line 3 of .* has the label 'dog' and no path",
    b"path,label\n1.png,k\xe4fer\n": r"is not text in UTF-8: save it as `CSV UTF-8`",
}


@pytest.mark.parametrize("text", REFUSED, ids=range(len(REFUSED)))
def test_wrong_label_files_are_refused_with_a_remedy(flat, text):
    with pytest.raises(ConfigError, match=REFUSED[text]) as error:
        labelled(flat, text)
    assert "\n" not in str(error.value)


def test_a_label_file_that_is_not_there_or_misspelt(flat):
    with pytest.raises(ConfigError, match=r"data\.labels=.*gone\.csv cannot be read: No such file"):
        source(root=flat, labels=str(flat / "gone.csv")).class_names()
    (flat / "folder.csv").mkdir()
    with pytest.raises(ConfigError, match=r"cannot be read: it is no regular file"):
        source(root=flat, labels=str(flat / "folder.csv")).class_names()
    with pytest.raises(
        ValueError, match=r"'folder' is not one of auto, folders, none or a file .*did you mean folders"
    ):
        source(root=flat, labels="folder")


def test_a_label_file_labels_test_images_too_and_unlabelled_ones(tmp_path):
    write_images(tmp_path, "train/1.png", "train/2.png", "train/3.png", "test/4.png", "test/5.png", "unlabelled/6.png")
    file = tmp_path / "labels.csv"
    file.write_text("path,label\ntrain/1.png,cat\ntrain/2.png,dog\ntest/5.png,dog\nunlabelled/6.png,cat\n")
    parts = laid_out(tmp_path, labels=str(file))
    assert {part: labels for part, (_, labels) in parts.items()} == {
        "train": [0, 1, -1],
        "test": [-1, 1],
        "unlabelled": [0],
    }
    data = load_data("folder", source(root=tmp_path, labels=str(file)).config, DataSettings(validation=0), 0)
    assert (data.train.labels.tolist(), data.test.labels.tolist()) == ([0, 1, -1, 0], [-1, 1])
    for line, said in (
        ("", r"no label for an image in .*test: add some"),
        ("test/4.png,emu", r"4\.png the label 'emu'"),
    ):
        file.write_text(f"train/1.png,cat\ntrain/2.png,dog\n{line}")
        with pytest.raises(ConfigError, match=said):
            laid_out(tmp_path, labels=str(file))


def test_with_a_label_file_a_test_folder_beside_images_is_for_the_user_to_decide(flat):
    write_images(flat, "test/9.png")
    with pytest.raises(ConfigError, match=r"test would be trained on"):
        labelled(flat, "1.png,cat\n2.JPG,dog\n")


def test_a_changed_label_file_is_read_again(flat):
    for label in ("dog", "emu"):
        (flat / "labels.csv").write_text(f"path,label\n1.png,cat\n2.JPG,{label}\n")
        data = load_data("folder", source(root=flat, labels=str(flat / "labels.csv")).config, DataSettings(), 0)
        assert data.class_names == ("cat", label)


# --- what is told of it ----------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def told(root: Path, view: int | None = None, shared: dict | None = None, **config) -> str:
    return described(load_data("folder", source(root=root, **config).config, DataSettings(**(shared or {})), 0), view)


def test_one_line_tells_what_was_read(tmp_path):
    write_images(tmp_path, *(f"cat/{i}.png" for i in range(10)), *(f"dog/{i}.png" for i in range(20)))
    write_images(tmp_path, *(f"unlabelled/{i}.png" for i in range(5)), size=(30, 10))
    (tmp_path / "Thumbs.db").touch()
    (tmp_path / "cat/0.png").write_text("damaged")
    assert told(tmp_path, bad_images="skip") == (
        "34 images, 2 classes (cat 9, dog 20); train 25 (5 unlabelled), validation 3, test 6; stored at sides of 8 to "
        "30, views of 8x8 pixels, RGB; 1 damaged file left out (data.bad_images=skip); 1 file left out, "
        "hidden or not named like images (Thumbs.db)"
    )


def test_one_line_tells_what_is_not_used_and_what_the_run_asks_for(tmp_path):
    write_images(tmp_path, *(f"{i}.png" for i in range(10)))
    assert told(tmp_path, view=6, channels="grey", shared={"limit": 4, "validation": 0}) == (
        "6 of 10 images (data.limit), no classes; train 4, test 2; stored at 8x8, views of 6x6 pixels, grey"
    )


def test_many_classes_are_counted_not_listed(tmp_path):
    write_images(tmp_path, *(f"{number:02}/{i}.png" for number in range(20) for i in range(2 + number % 2)))
    assert "50 images, 20 classes (2 to 3 labelled images each);" in told(tmp_path)
