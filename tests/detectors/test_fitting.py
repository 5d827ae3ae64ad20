from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import beta

from detectors import CalibrationError, Screener
from detectors.evidence_batches import EvidenceBatches
from detectors.fitting import fit_screener, unused_test_images
from detectors.measuring import abnormal_images, foreign_images, measure, rate
from model.checkpoint import Checkpoint
from model.config import DataConfig
from model.data import Splits, load_splits
from model.errors import CheckpointError, DataError
from model.image_set import ImageSet, join
from model.images import ImageFormat
from model.network import Network

CPU = torch.device("cpu")
DIGITS = ImageFormat(shape=(1, 8, 8))
Fitted = tuple[Screener, Splits, ImageSet]


def fit(checkpoint: Checkpoint, data: DataConfig | None = None, false_alarm_rate: float = 0.05) -> Fitted:
    chosen = data or checkpoint.config.data
    return fit_screener(checkpoint, chosen, false_alarm_rate=false_alarm_rate, name="fitted", device=CPU)


def seen(images: ImageSet, checkpoint: Checkpoint) -> int:
    return int(torch.isin(images.fingerprints(), checkpoint.trained_images).sum())


def write_digits(root: Path, images: ImageSet) -> DataConfig:
    """The images as a folder of PNG files, one folder a class."""
    for index, (pixels, label) in enumerate(zip(images.images, images.labels, strict=True)):
        folder = root / images.class_names[int(label)]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[0].numpy()).save(folder / f"{index:05}.png")
    return DataConfig(name="image-folder", directory=str(root), calibration_fraction=0.5)


@pytest.fixture(scope="module")
def fitted(digits_checkpoint: Checkpoint) -> Fitted:
    return fit(digits_checkpoint)


def test_calibration_images_were_never_trained_on(fitted: Fitted, digits_checkpoint: Checkpoint) -> None:
    _, splits, calibration = fitted
    assert seen(calibration, digits_checkpoint) == 0
    assert seen(splits.train, digits_checkpoint) == len(splits.train)
    assert calibration.digest() == splits.calibration.digest()


def test_test_images_are_not_calibrated_on(fitted: Fitted) -> None:
    _, splits, calibration = fitted
    assert not bool(torch.isin(splits.test.fingerprints(), calibration.fingerprints()).any())


def test_another_split_calibrates_only_on_what_was_not_trained_on(
    fitted: Fitted, digits_checkpoint: Checkpoint
) -> None:
    """Of all images outside the test set those are left that the checkpoint held back itself, whatever the split."""
    other = replace(digits_checkpoint.config.data, split_seed=7, calibration_fraction=0.6)
    _, splits, calibration = fit(digits_checkpoint, other)
    assert seen(splits.calibration, digits_checkpoint) > 0
    assert seen(calibration, digits_checkpoint) == 0
    assert set(calibration.fingerprints().tolist()) == set(fitted[2].fingerprints().tolist())


def test_the_calibration_holds_the_scores_of_its_images(fitted: Fitted) -> None:
    screener, _, calibration = fitted
    verdicts = screener.screen(calibration.images.float() / 255)
    rows = screener.calibration.scores.split(len(screener.labels))
    for own, said in zip(rows, verdicts.evidence.values(), strict=False):
        finite = own[own.isfinite()]
        assert len(finite) == len(calibration)
        assert torch.allclose(finite.sort().values, said.score.sort().values, rtol=1e-4, atol=1e-4)


def test_the_verdict_is_calibrated_on_images_that_the_fusion_has_not_seen(fitted: Fitted) -> None:
    """Each of its scores is that of a calibration image, and a fifth of them, kept for the fusion, is missing."""
    screener, _, calibration = fitted
    assert sum(screener.calibration_sizes.values()) == len(calibration) - int(0.2 * len(calibration))
    suspicion = screener.screen(calibration.images.float() / 255).suspicion
    held = screener.calibration.scores[-len(screener.labels) :]
    held = held[held.isfinite()]
    nearest = (held.unsqueeze(1) - suspicion).abs().amin(1)
    assert float(nearest.max()) < 1e-3


def test_an_unfinished_checkpoint_is_refused(digits_checkpoint: Checkpoint) -> None:
    unfinished = replace(digits_checkpoint, epoch=2, test_accuracy=None)
    with pytest.raises(CheckpointError, match="stopped after epoch 2 of 6; run the same lgm train again"):
        fit(unfinished)


def test_images_of_another_shape_are_refused(digits_checkpoint: Checkpoint, tmp_path: Path) -> None:
    for name in digits_checkpoint.class_names:
        (tmp_path / name).mkdir()
        for index in range(10):
            pixels = np.random.default_rng(index).integers(0, 256, (9, 9), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{index}.png")
    data = DataConfig(name="image-folder", directory=str(tmp_path), calibration_fraction=0.5)
    with pytest.raises(DataError, match=r"0/0\.png: image is 9 x 9 pixels; this model takes 8 x 8 [^;]*$"):
        fit(digits_checkpoint, data)


def test_other_classes_are_refused(digits_checkpoint: Checkpoint, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for index in range(10):
            pixels = np.random.default_rng(index).integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{index}.png")
    data = DataConfig(name="image-folder", directory=str(tmp_path), calibration_fraction=0.5)
    with pytest.raises(DataError, match="has classes cat, dog; the checkpoint has 0, 1, 2"):
        fit(digits_checkpoint, data)


def test_test_images_that_were_trained_on_are_refused(digits_checkpoint: Checkpoint, tmp_path: Path) -> None:
    splits = load_splits(digits_checkpoint.config.data)
    data = write_digits(tmp_path, join(splits.train, splits.calibration))
    with pytest.raises(DataError, match=r"\d+ of the \d+ test images of image-folder were trained on"):
        fit(digits_checkpoint, data)


def test_fresh_images_in_a_folder_calibrate(digits_checkpoint: Checkpoint, tmp_path: Path) -> None:
    splits = load_splits(digits_checkpoint.config.data)
    data = write_digits(tmp_path, splits.calibration)
    screener, fresh, calibration = fit(digits_checkpoint, data, false_alarm_rate=0.1)
    assert len(calibration) == len(fresh.train) - len(fresh.train) // 2 + len(fresh.calibration)
    assert screener.false_alarm_rate == 0.1


def test_of_foreign_images_none_is_fitted_and_calibrated_on(
    digits_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted_on: list[ImageSet] = []

    def batches(network: Network, images: ImageSet, device: torch.device) -> EvidenceBatches:
        fitted_on.append(images)
        return EvidenceBatches(network, images, device)

    monkeypatch.setattr("detectors.fitting.EvidenceBatches", batches)
    data = write_digits(tmp_path, load_splits(digits_checkpoint.config.data).calibration)
    _, fresh, calibration = fit(digits_checkpoint, data, false_alarm_rate=0.1)
    assert fitted_on[1] is calibration
    fingerprints = torch.cat([fitted_on[0].fingerprints(), calibration.fingerprints()])
    assert len(fingerprints.unique()) == len(fingerprints) == len(fresh.train) + len(fresh.calibration)


def test_what_was_fitted_on_measures_nothing_though_it_lies_among_test_images(
    digits_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    splits = load_splits(digits_checkpoint.config.data)
    write_digits(tmp_path / "train", splits.calibration)
    write_digits(tmp_path / "test", join(splits.test, splits.calibration.select(torch.arange(30))))
    data = DataConfig(name="image-folder", directory=str(tmp_path), calibration_fraction=0.5)
    unused = unused_test_images(load_splits(data, DIGITS), digits_checkpoint)
    assert unused.fingerprints().sort().values.equal(splits.test.fingerprints().sort().values)


def test_nothing_left_to_calibrate_on_is_told(digits_checkpoint: Checkpoint, tmp_path: Path) -> None:
    splits = load_splits(digits_checkpoint.config.data)
    write_digits(tmp_path / "train", splits.train)
    write_digits(tmp_path / "test", splits.test)
    data = DataConfig(name="image-folder", directory=str(tmp_path), calibration_fraction=0.5)
    with pytest.raises(CalibrationError, match=r"fitted on all of the \d+ images: none is left"):
        fit(digits_checkpoint, data)


def test_a_promise_that_the_images_cannot_keep_is_refused(digits_checkpoint: Checkpoint) -> None:
    with pytest.raises(CalibrationError, match=r"class '\d' is predicted for \d+ .* 0\.001 needs at least 999"):
        fit(digits_checkpoint, false_alarm_rate=0.001)


@pytest.mark.parametrize("wrong", [0.0, 1.0, -1.0])
def test_a_rate_outside_its_range_is_refused_before_any_work(digits_checkpoint: Checkpoint, wrong: float) -> None:
    nowhere = DataConfig(name="image-folder", directory="/nowhere")
    with pytest.raises(CalibrationError, match=r"must lie in \(0, 1\)"):
        fit(digits_checkpoint, nowhere, false_alarm_rate=wrong)


@pytest.mark.parametrize(("hits", "count"), [(0, 100), (1, 100), (13, 1000), (100, 100), (5, 10)])
def test_an_interval_is_clopper_and_pearson_s(hits: int, count: int) -> None:
    """Against the beta quantiles of Clopper and Pearson 1934, as in Brown, Cai, DasGupta 2001, section 4.2."""
    found = rate(torch.arange(count) < hits)
    low = 0.0 if hits == 0 else beta.ppf(0.025, hits, count - hits + 1)
    high = 1.0 if hits == count else beta.ppf(0.975, hits + 1, count - hits)
    assert (found.num_images, found.num_flagged, found.share) == (count, hits, hits / count)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)


def test_of_no_image_nothing_is_known() -> None:
    found = rate(torch.zeros(0, dtype=torch.bool))
    assert (found.num_images, found.low, found.high) == (0, 0.0, 1.0)


def test_what_is_measured_is_what_the_screener_says(fitted: Fitted) -> None:
    screener, splits, _ = fitted
    noise = abnormal_images("noise", DataConfig(name="digits"), splits.test, DIGITS)
    told: list[tuple[int, int]] = []
    measured = measure(screener, splits.test, {"noise": noise}, lambda done, total: told.append((done, total)))
    verdicts = screener.screen(splits.test.images.float() / 255)
    assert measured.num_images == len(splits.test)
    assert measured.accuracy == float((verdicts.class_index == splits.test.labels).double().mean())
    assert measured.false_alarms.num_flagged == int(verdicts.flagged.sum())
    for index, name in enumerate(screener.labels):
        of_class = measured.false_alarms_by_class[name]
        assert of_class.num_images == int((verdicts.class_index == index).sum())
        assert of_class.num_flagged == int(verdicts.flagged[verdicts.class_index == index].sum())
    flagged_noise = screener.screen(noise.float() / 255).flagged
    assert measured.abnormal["noise"].num_flagged == int(flagged_noise.sum())
    total = 2 * len(splits.test)
    assert told[-1] == (total, total)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_abnormal_sets_by_name() -> None:
    data = DataConfig(name="digits")
    test = load_splits(data).test
    inverted, noise, again = (abnormal_images(name, data, test, DIGITS) for name in ("inverted", "noise", "noise"))
    assert torch.equal(inverted.int() + test.images.int(), torch.full_like(test.images, 255).int())
    assert torch.equal(noise, again)
    assert noise.float().mean() == pytest.approx(127.5, abs=1.5)
    assert (int(noise.min()), int(noise.max())) == (0, 255)
    assert torch.equal(abnormal_images("digits", data, test, DIGITS), test.images)


def test_a_named_set_is_not_looked_for_among_the_users_own_pictures(tmp_path: Path) -> None:
    test = load_splits(DataConfig(name="digits")).test
    own = DataConfig(name="image-folder", directory=str(tmp_path))
    assert torch.equal(abnormal_images("digits", own, test, DIGITS), test.images)


def test_an_abnormal_set_of_images_in_a_folder(tmp_path: Path) -> None:
    data = DataConfig(name="digits")
    test = load_splits(data).test
    for value in (3, 200):
        Image.new("L", (8, 8), value).save(tmp_path / f"{value:03}.png")
    images = abnormal_images(str(tmp_path), data, test, DIGITS)
    assert sorted(images[:, 0, 0, 0].tolist()) == [3, 200]
    Image.new("L", (9, 8)).save(tmp_path / "wide.png")
    with pytest.raises(DataError, match=r"wide\.png: image is 9 x 8 pixels; this model takes 8 x 8"):
        abnormal_images(str(tmp_path), data, test, DIGITS)


def test_the_first_images_of_a_folder_are_of_all_its_folders(tmp_path: Path) -> None:
    for name, value in (("a", 0), ("b", 255)):
        (tmp_path / name).mkdir()
        for index in range(50):
            Image.new("L", (8, 8), value).save(tmp_path / name / f"{index:02}.png")
    found = foreign_images(str(tmp_path), DataConfig(name="digits"), DIGITS)
    assert len(found) == 100
    assert 10 < int((found[:40] == 255).all(3).all(2).sum()) < 30


@pytest.mark.parametrize("name", ["nose", "/nowhere"])
def test_an_unknown_abnormal_set_is_told_what_there_is(name: str) -> None:
    data = DataConfig(name="digits")
    with pytest.raises(DataError, match="neither noise, inverted, a data set's name nor a folder of images"):
        abnormal_images(name, data, load_splits(data).test, DIGITS)


def test_an_unreadable_file_of_an_abnormal_set_is_named(tmp_path: Path) -> None:
    (tmp_path / "only.png").write_bytes(b"broken")
    data = DataConfig(name="digits")
    with pytest.raises(DataError, match=r"only\.png: not an image"):
        abnormal_images(str(tmp_path), data, load_splits(data).test, DIGITS)


@pytest.mark.data
def test_an_abnormal_set_of_another_shape_is_refused(data_directory: Path) -> None:
    data = DataConfig(name="digits", directory=str(data_directory))
    with pytest.raises(DataError, match=r"mnist has images of shape \(1, 28, 28\); the model takes \(1, 8, 8\)"):
        abnormal_images("mnist", data, load_splits(data).test, DIGITS)
