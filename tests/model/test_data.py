from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model.config import DataConfig
from model.data import load_splits, unseen_classes
from model.errors import DataError, ImageError
from model.image_files import image_files
from model.image_set import ImageSet, join, to_unit
from model.image_tensors import read_image
from model.images import ImageFormat


def write_images(
    folder: Path, count: int, *, size: tuple[int, int] = (8, 10), mode: str = "RGB", seed: int = 0
) -> None:
    """PNG files of random pixels; size is (width, height)."""
    generator = np.random.default_rng([seed, *folder.name.encode()])
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        pixels = generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(folder / f"{seed}-{index}.png")


def image_folder(root: Path, **changes: object) -> DataConfig:
    return DataConfig(**{"name": "image-folder", "directory": str(root), "calibration_fraction": 0.25, **changes})


def fingerprints(*sets: ImageSet) -> list[set[int]]:
    return [set(images.fingerprints().tolist()) for images in sets]


def shares(images: ImageSet) -> torch.Tensor:
    return torch.bincount(images.labels, minlength=len(images.class_names)) / len(images)


def test_digits_are_parted_into_three_disjoint_sets() -> None:
    splits = load_splits(DataConfig(name="digits", calibration_fraction=0.2))
    assert splits.image_format == ImageFormat(shape=(1, 8, 8))
    assert splits.train.class_names == tuple("0123456789")
    assert len(splits.train) + len(splits.calibration) + len(splits.test) == 1797
    train, calibration, test = fingerprints(splits.train, splits.calibration, splits.test)
    assert not train & calibration
    assert not train & test
    assert not calibration & test


def test_digits_fill_the_range() -> None:
    images = load_splits(DataConfig(name="digits")).train.images
    assert (images.dtype, int(images.min()), int(images.max())) == (torch.uint8, 0, 255)


@pytest.mark.parametrize("num_images", [100, 1346, 1347, 5000])
def test_so_many_images_are_taken_of_each_class_alike(num_images: int) -> None:
    whole = load_splits(DataConfig(name="digits", calibration_fraction=0.2))
    splits = load_splits(DataConfig(name="digits", calibration_fraction=0.2, num_images=num_images))
    taken = join(splits.train, splits.calibration)
    assert abs(len(taken) - min(num_images, 1348)) <= 5  # each class rounds
    assert float((shares(taken) - shares(join(whole.train, whole.calibration))).abs().max()) < 0.01


def test_too_few_images_for_every_class_are_refused() -> None:
    with pytest.raises(DataError, match=r"data\.num_images: 4 of 134\d images leave class '\d' without any"):
        load_splits(DataConfig(name="digits", num_images=4))


@pytest.mark.parametrize("left_out", [tuple("0123456789"), tuple("012345678")])
def test_two_classes_at_least_must_be_left(left_out: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match=r"data\.left_out leaves [01] classes; a classifier needs at least 2"):
        load_splits(DataConfig(name="digits", left_out=left_out))


def test_a_stray_image_beside_the_class_folders_decides_nothing(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        write_images(tmp_path / name, 8, mode="RGB")
    Image.new("L", (70, 50)).save(tmp_path / "PREVIEW.png")
    assert load_splits(image_folder(tmp_path)).image_format.shape[0] == 3


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_every_class_gives_the_same_share(fraction: float) -> None:
    splits = load_splits(DataConfig(name="digits", calibration_fraction=fraction))
    whole = torch.bincount(join(splits.train, splits.calibration).labels)
    held = torch.bincount(splits.calibration.labels)
    assert torch.equal(held, (whole * fraction).round().long())


def test_the_split_follows_its_seed_alone() -> None:
    def digests(seed: int) -> list[str]:
        splits = load_splits(DataConfig(name="digits", split_seed=seed))
        return [splits.train.digest(), splits.calibration.digest(), splits.test.digest()]

    first, again, other = digests(0), digests(0), digests(1)
    assert first == again
    assert first[:2] != other[:2]
    assert first[2] == other[2]  # the test set is never touched


def test_a_digest_tells_pixels_labels_and_shape_apart() -> None:
    pixels, labels = torch.zeros(2, 1, 2, 8, dtype=torch.uint8), torch.tensor([0, 1])
    changed = pixels.clone()
    changed[1, 0, 1, 7] = 1
    sets = [
        ImageSet(images=pixels, labels=labels, class_names=("a", "b")),
        ImageSet(images=changed, labels=labels, class_names=("a", "b")),
        ImageSet(images=pixels, labels=labels.flip(0), class_names=("a", "b")),
        ImageSet(images=pixels.view(2, 1, 4, 4), labels=labels, class_names=("a", "b")),
    ]
    assert len({images.digest() for images in sets}) == 4


def test_fingerprints_follow_the_pixels_alone() -> None:
    images = load_splits(DataConfig(name="digits")).test
    order = torch.arange(len(images)).flip(0)
    assert torch.equal(images.select(order).fingerprints(), images.fingerprints().flip(0))


def test_to_unit_is_division_by_255() -> None:
    assert to_unit(
        torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3)
    ).flatten().tolist() == pytest.approx([0.0, 0.2, 1.0])


def test_a_folder_with_train_and_test_keeps_its_test_set(tmp_path: Path) -> None:
    for name, count in (("cat", 8), ("dog", 12)):
        write_images(tmp_path / "train" / name, count)
        write_images(tmp_path / "test" / name, 3, seed=1)
    splits = load_splits(image_folder(tmp_path))
    assert splits.train.class_names == ("cat", "dog")
    assert splits.image_format == ImageFormat(shape=(3, 10, 8))
    assert torch.bincount(splits.train.labels).tolist() == [6, 9]
    assert torch.bincount(splits.calibration.labels).tolist() == [2, 3]
    assert torch.bincount(splits.test.labels).tolist() == [3, 3]
    first = np.array(Image.open(tmp_path / "test" / "cat" / "1-0.png"))
    assert torch.equal(splits.test.images[0], torch.from_numpy(first).permute(2, 0, 1))


def test_a_folder_without_a_test_set_gives_about_a_fifth_of_each_class(tmp_path: Path) -> None:
    write_images(tmp_path / "cat", 200, mode="L")
    write_images(tmp_path / "dog", 400, mode="L")
    splits = load_splits(image_folder(tmp_path))
    assert splits.image_format == ImageFormat(shape=(1, 10, 8))
    num_cats, num_dogs = torch.bincount(splits.test.labels).tolist()
    assert (num_cats, num_dogs) == (pytest.approx(40, abs=17), pytest.approx(80, abs=24))  # three deviations
    train, calibration, test = fingerprints(splits.train, splits.calibration, splits.test)
    assert len(train) + len(calibration) + len(test) == len(train | calibration | test) == 600
    other = load_splits(image_folder(tmp_path, split_seed=1)).test
    assert fingerprints(other)[0] != test


def test_images_that_are_added_to_a_folder_move_none_between_the_sets(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        write_images(tmp_path / name, 30)
    before = load_splits(image_folder(tmp_path))
    write_images(tmp_path / "cat", 30, seed=5)
    after = load_splits(image_folder(tmp_path))
    learned, tested = fingerprints(join(before.train, before.calibration), before.test)
    still_learned, still_tested = fingerprints(join(after.train, after.calibration), after.test)
    assert learned <= still_learned
    assert tested <= still_tested
    assert len(still_learned) > len(learned)


@pytest.mark.parametrize("seed", range(20))
def test_every_class_is_tested_and_learned_however_few_images_it_has(tmp_path: Path, seed: int) -> None:
    """And an image that is there twice is on one side."""
    for name in ("cat", "dog"):
        write_images(tmp_path / name, 8)
    (tmp_path / "dog" / "double.png").write_bytes((tmp_path / "dog" / "0-0.png").read_bytes())
    splits = load_splits(image_folder(tmp_path, split_seed=seed, calibration_fraction=0.5))
    learned, tested = fingerprints(join(splits.train, splits.calibration), splits.test)
    assert not learned & tested
    assert set(splits.test.labels.tolist()) == {0, 1}


@pytest.mark.parametrize("name", ["val", "Validation"])
def test_the_folders_of_splits_are_no_classes(tmp_path: Path, name: str) -> None:
    for part in ("train", name):
        for kind in ("cat", "dog"):
            write_images(tmp_path / part / kind, 10)
    with pytest.raises(DataError, match=rf"has .*{name}.*: an image folder has train/ and test/, so rename"):
        load_splits(image_folder(tmp_path))


def test_one_grey_picture_among_photographs_takes_no_colour_away(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        write_images(tmp_path / name, 10)
    first = tmp_path / "cat" / "0-0.png"
    Image.open(first).convert("L").save(first)
    assert load_splits(image_folder(tmp_path)).image_format.shape == (3, 10, 8)


def test_hidden_files_and_folders_are_not_data(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        write_images(tmp_path / name, 10)
    write_images(tmp_path / ".thumbnails", 2, size=(4, 4))
    (tmp_path / "cat" / "._0-0.png").write_bytes(b"a Mac was here")
    splits = load_splits(image_folder(tmp_path))
    assert splits.train.class_names == ("cat", "dog")
    assert len(splits.train) + len(splits.calibration) + len(splits.test) == 20


def test_mixed_sizes_need_an_image_size(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        write_images(tmp_path / name, 10)
    write_images(tmp_path / "dog", 1, size=(30, 20), seed=9)
    said = r"dog/9-0\.png: image is 30 x 20 pixels, but .*cat/0-0\.png is 8 x 10; set data\.image_size to resize"
    with pytest.raises(DataError, match=said):
        load_splits(image_folder(tmp_path))
    splits = load_splits(image_folder(tmp_path, image_size=16))
    assert splits.image_format == ImageFormat(shape=(3, 16, 16), resize=True)


def test_a_model_s_own_format_decides_how_a_folder_is_read(tmp_path: Path) -> None:
    """Files of two sizes and a configuration of a third: resized where the model resizes, else held against it."""
    for name, size in (("cat", (8, 10)), ("dog", (30, 20))):
        write_images(tmp_path / name, 10, size=size)
    config, shape = image_folder(tmp_path, image_size=16, num_channels=3), (1, 12, 9)
    assert load_splits(config, ImageFormat(shape=shape, resize=True)).test.images.shape[1:] == shape
    with pytest.raises(DataError, match=r"0-0\.png: image is 8 x 10 pixels; this model takes 9 x 12 [^;]*$"):
        load_splits(config, ImageFormat(shape=shape))


def test_a_data_set_of_another_shape_than_the_model_s_is_refused() -> None:
    with pytest.raises(DataError, match=r"digits has images of shape \(1, 8, 8\); the model takes \(1, 9, 8\)"):
        load_splits(DataConfig(name="digits"), ImageFormat(shape=(1, 9, 8), resize=True))


@pytest.mark.parametrize("num_channels", [1, 3])
def test_the_channels_can_be_chosen(tmp_path: Path, num_channels: int) -> None:
    for name, mode in (("cat", "L"), ("dog", "RGB")):
        write_images(tmp_path / name, 10, mode=mode)
    splits = load_splits(image_folder(tmp_path, num_channels=num_channels))
    assert splits.train.images.shape[1:] == (num_channels, 10, 8)


def test_a_first_image_that_is_stored_turned_sets_its_upright_shape(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for index in range(10):
            Image.new("L", (8, 10), index).save(tmp_path / name / f"{index}.png", exif=exif)
    assert load_splits(image_folder(tmp_path)).image_format.shape == (1, 8, 10)


def _mismatching(root: Path) -> None:
    for name in ("train/cat", "train/dog", "test/cat", "test/cow"):
        write_images(root / name, 5)


def _one_class(root: Path) -> None:
    write_images(root / "cat", 5)


def _empty_class(root: Path) -> None:
    write_images(root / "cat", 10)
    (root / "dog").mkdir()


def _no_images(root: Path) -> None:
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        (root / name / "notes.txt").write_text("nothing")


def _too_few(root: Path) -> None:
    for name in ("cat", "dog"):
        write_images(root / name, 1)


def _unreadable(root: Path) -> None:
    for name in ("cat", "dog"):
        write_images(root / name, 10)
    (root / "dog" / "broken.png").write_bytes(b"not a picture")


def _unreadable_first(root: Path) -> None:
    _unreadable(root)
    (root / "cat" / "0-0.png").write_bytes(b"not a picture")


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (_mismatching, ["train/ has classes cat, dog; test/ has cat, cow"]),
        (_one_class, ["1 class folders", "at least 2"]),
        (_empty_class, ["dog holds no image files"]),
        (_no_images, ["holds no image files", ".png"]),
        (_too_few, ["class 'cat' has 1 images", "too few"]),
        (_unreadable, ["broken.png", "not an image of an allowed format"]),
        (_unreadable_first, ["0-0.png", "not an image of an allowed format"]),
    ],
)
def test_a_folder_that_cannot_be_learned_from_is_refused(tmp_path: Path, build: object, said: Sequence[str]) -> None:
    assert callable(build)
    build(tmp_path)
    with pytest.raises(DataError) as caught:
        load_splits(image_folder(tmp_path))
    assert all(part in str(caught.value) for part in said), str(caught.value)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere is not a folder; an image folder has one folder a class"):
        load_splits(image_folder(tmp_path / "nowhere"))


def test_no_directory_at_all_says_where_to_set_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LGM_DATA_DIR", raising=False)
    with pytest.raises(DataError, match=r"Set LGM_DATA_DIR or data\.directory"):
        load_splits(DataConfig(name="mnist"))


def test_the_environment_leads_to_the_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        write_images(tmp_path / name, 10)
    monkeypatch.setenv("LGM_DATA_DIR", str(tmp_path))
    found = load_splits(DataConfig(name="image-folder", calibration_fraction=0.25))
    assert found.test.digest() == load_splits(image_folder(tmp_path)).test.digest()


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "cifar100"])
def test_a_missing_set_says_what_to_do(tmp_path: Path, name: str) -> None:
    advice = r"point LGM_DATA_DIR or data\.directory at it.*data\.download=true"
    with pytest.raises(DataError, match=rf"{name} is not complete in .*{advice}"):
        load_splits(DataConfig(name=name, directory=str(tmp_path)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content", [b"", b"\x00\x00\x08\x03", b"\x00\x00\x08\x03" + b"\x00\x00\xea\x60" * 3, b"junk" * 9]
)
def test_damaged_mnist_files_are_a_data_error(tmp_path: Path, content: bytes) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (raw / f"{part}-{kind}-ubyte").write_bytes(content)
    with pytest.raises(DataError, match="mnist is not complete"):
        load_splits(DataConfig(name="mnist", directory=str(tmp_path)))


def test_a_single_file_is_named_when_it_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"none\.png cannot be read: No such file"):
        read_image(tmp_path / "none.png", ImageFormat(shape=(1, 8, 8)))


def test_image_files_are_found_below_and_in_order(tmp_path: Path) -> None:
    for name in ("b.png", "a/z.JPG", "a/notes.txt", "a/.hidden.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert image_files(tmp_path) == [tmp_path / "a" / "z.JPG", tmp_path / "b.png"]


def test_linked_folders_are_searched_once_and_links_to_nothing_found(tmp_path: Path) -> None:
    for name in ("elsewhere/c.png", "images/a.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    images = tmp_path / "images"
    for name, target in (
        ("linked", "elsewhere"),
        ("again", "images"),
        ("lost.png", "nowhere"),
        ("twice", "elsewhere"),
    ):
        (images / name).symlink_to(tmp_path / target)
    assert image_files(images) == [images / "a.png", images / "linked" / "c.png", images / "lost.png"]


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("os.scandir", refuse)  # root, whom tests may run as, may read everything
    with pytest.raises(DataError, match=rf"^{tmp_path} cannot be read: Permission denied"):
        image_files(tmp_path)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "first", "last"), [("mnist", "0", "9"), ("fashion-mnist", "T-shirt/top", "Ankle boot")]
)
def test_the_real_sets_are_whole(data_directory: Path, name: str, first: str, last: str) -> None:
    splits = load_splits(DataConfig(name=name, directory=str(data_directory)))
    assert len(splits.train) + len(splits.calibration) == 60_000
    assert len(splits.calibration) == pytest.approx(6_000, abs=5)
    assert len(splits.test) == 10_000
    assert splits.image_format == ImageFormat(shape=(1, 28, 28))
    assert len(splits.train.class_names) == 10
    assert (splits.train.class_names[0], splits.train.class_names[-1]) == (first, last)
    assert torch.allclose(shares(splits.train), shares(splits.calibration), atol=1e-3)


def test_fewer_images_are_drawn_of_each_class_alike() -> None:
    whole = load_splits(DataConfig(name="digits"))
    some = load_splits(DataConfig(name="digits", num_images=400))
    assert len(some.train) + len(some.calibration) == pytest.approx(400, abs=5)
    assert torch.allclose(shares(some.train), shares(whole.train), atol=0.01)
    assert some.test.digest() == whole.test.digest()
    train, calibration = fingerprints(some.train, some.calibration)
    (all_images,) = fingerprints(join(whole.train, whole.calibration))
    assert not train & calibration
    assert train | calibration <= all_images


def test_more_images_than_there_are_are_all_of_them() -> None:
    whole, more = load_splits(DataConfig(name="digits")), load_splits(DataConfig(name="digits", num_images=10**6))
    assert more.train.digest() == whole.train.digest()


def test_classes_left_out_are_in_no_split() -> None:
    config = DataConfig(name="digits", left_out=("0", "7"))
    splits, whole = load_splits(config), load_splits(DataConfig(name="digits"))
    assert splits.train.class_names == ("1", "2", "3", "4", "5", "6", "8", "9")
    unseen = unseen_classes(config)
    assert unseen.class_names == ("0", "7")
    for name in splits.test.class_names:
        rows = splits.test.labels == splits.test.class_names.index(name)
        assert torch.equal(splits.test.images[rows], whole.test.images[whole.test.labels == int(name)])
    for index, label in ((0, 0), (1, 7)):
        assert torch.equal(unseen.images[unseen.labels == index], whole.test.images[whole.test.labels == label])
    assert len(splits.test) + len(unseen) == len(whole.test)


def test_an_unknown_class_cannot_be_left_out() -> None:
    with pytest.raises(DataError, match=r"data\.left_out: there is no class 'ten'; there are 0, 1, 2"):
        load_splits(DataConfig(name="digits", left_out=("ten",)))
