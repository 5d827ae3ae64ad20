import hashlib
import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from detectors import BundleError, Screener
from detectors.bundle import (
    CARD,
    DETECTORS,
    MANIFEST,
    NETWORK,
    REFERENCE,
    Manifest,
    load_bundle,
    load_manifest,
    save_bundle,
)
from model.checkpoint import Checkpoint
from model.data import load_splits
from model.image_set import to_unit
from model.images import ImageFormat

FILES = [MANIFEST, NETWORK, DETECTORS, REFERENCE, CARD]


@pytest.fixture
def bundle(digits_bundle: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(digits_bundle, tmp_path / "bundle"))


def save_again(screener: Screener, checkpoint: Checkpoint, path: Path) -> Screener:
    assert screener.reference is not None
    return save_bundle(
        screener,
        path,
        network=checkpoint.config.network,
        mixture=checkpoint.config.mixture,
        reference_images=screener.reference.images,
        split_digests={"test": "0" * 64},
        measured={"accuracy": 0.5},
        card="# Gruß\n",
        created=datetime(2026, 1, 2, tzinfo=UTC),
    )


def rewrite(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest and name the new content, as somebody would who writes bundles with a program."""
    values = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
    change(values)
    values["version"] = ""
    version = hashlib.sha256(serialise(values)).hexdigest()[:16]
    (bundle / MANIFEST).write_bytes(serialise({**values, "version": version}))


def serialise(values: dict[str, Any]) -> bytes:
    return json.dumps(values, indent=2, ensure_ascii=False).encode() + b"\n"


def replace_tensors(bundle: Path, name: str, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(bundle / name)
    change(tensors)
    content = save(tensors)
    (bundle / name).write_bytes(content)
    rewrite(bundle, lambda values: values["files"].update({name: hashlib.sha256(content).hexdigest()}))


def test_what_is_saved_is_loaded(
    digits_screener: Screener, digits_bundle: Path, digits_checkpoint: Checkpoint
) -> None:
    images = to_unit(load_splits(digits_checkpoint.config.data).test.images)
    first, again = digits_screener.screen(images), load_bundle(str(digits_bundle)).screen(images)
    assert torch.equal(first.log_likelihood, again.log_likelihood)
    assert torch.equal(first.p_value, again.p_value)
    assert torch.equal(first.flagged, again.flagged)
    trained = digits_checkpoint.build_network()
    with torch.no_grad():
        assert torch.allclose(torch.logsumexp(trained(images).log_joint, 1), first.log_likelihood, rtol=1e-5)


def test_the_screener_knows_what_the_manifest_says(digits_screener: Screener, digits_bundle: Path) -> None:
    manifest = load_manifest(digits_bundle)
    assert digits_screener.labels == manifest.labels == tuple("0123456789")
    assert digits_screener.image_format == ImageFormat(shape=(1, 8, 8))
    assert digits_screener.false_alarm_rate == manifest.false_alarm_rate == 0.05
    assert (digits_screener.name, digits_screener.version) == ("digits", manifest.version)
    assert list(digits_screener.detectors) == list(manifest.detectors)
    assert digits_screener.fusion.names == manifest.fused
    assert manifest.calibration_sizes == digits_screener.calibration_sizes
    assert manifest.libraries["torch"] == version("torch")


def test_a_bundle_is_five_files_none_of_which_is_a_pickle(digits_bundle: Path) -> None:
    assert sorted(path.name for path in digits_bundle.iterdir()) == sorted(FILES)
    for path in digits_bundle.iterdir():
        assert path.read_bytes()[:2] not in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_anywhere_is_refused_with_the_file_s_name(bundle: Path, name: str) -> None:
    whole = (bundle / name).read_bytes()
    step = max(1, len(whole) // 40)
    for offset in [*range(0, len(whole), step), len(whole) - 1]:
        for flip in (0x01, 0x20, 0x80):
            changed = bytearray(whole)
            changed[offset] ^= flip
            (bundle / name).write_bytes(changed)
            with pytest.raises(BundleError, match=name.replace(".", r"\.")):
                load_bundle(bundle)
    (bundle / name).write_bytes(whole)
    load_bundle(bundle)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("change", [lambda whole: whole[:-1], lambda whole: b"", lambda whole: whole + b"\n"])
def test_a_file_of_another_length_is_refused(bundle: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    (bundle / name).write_bytes(change((bundle / name).read_bytes()))
    with pytest.raises(BundleError, match=name.replace(".", r"\.")):
        load_bundle(bundle)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=rf"{name} cannot be read: No such file".replace(".", r"\.")):
        load_bundle(bundle)


def test_what_is_not_a_folder_of_a_bundle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("hello")
    for path in (tmp_path, tmp_path / "none", tmp_path / "file"):
        with pytest.raises(BundleError, match=r"bundle\.json cannot be read"):
            load_bundle(path)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"{}", b"{", b"[" * 100_000, b"\xff\xfe", b'"text"'])
def test_what_is_not_a_manifest_is_refused(bundle: Path, content: bytes) -> None:
    (bundle / MANIFEST).write_bytes(content)
    with pytest.raises(BundleError, match=r"bundle\.json is not a bundle's manifest"):
        load_bundle(bundle)


@pytest.mark.parametrize("schema", [0, 4, "5", None])
def test_an_unknown_schema_is_refused(bundle: Path, schema: object) -> None:
    rewrite(bundle, lambda values: values.update(schema_version=schema))
    with pytest.raises(BundleError, match=rf"schema version {schema!r}; this version reads 5"):
        load_bundle(bundle)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda values: values.update(author="me"), "author: "),
        (lambda values: values["network"].update(depth=3), "network.depth: "),
        (lambda values: values.pop("fused"), "fused: "),
        (lambda values: values.update(image_shape=[1, 8]), "image_shape"),
        (lambda values: values.update(false_alarm_rate="low"), "false_alarm_rate: "),
        (lambda values: values.update(false_alarm_rate=1.5), "false_alarm_rate: "),
        (lambda values: values["mixture"].update(variance="full"), "mixture.variance: "),
    ],
)
def test_a_manifest_with_a_wrong_key_is_refused(
    bundle: Path, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    rewrite(bundle, change)
    with pytest.raises(BundleError, match=rf"bundle\.json: {said}"):
        load_bundle(bundle)


@pytest.mark.parametrize(
    "change",
    [
        lambda files: files.pop(NETWORK),
        lambda files: files.pop(CARD),
        lambda files: files.update({"more.safetensors": "0" * 64}),
        lambda files: files.update({"../outside": "0" * 64}),
    ],
)
def test_a_manifest_lists_exactly_its_files(bundle: Path, change: Callable[[dict[str, str]], object]) -> None:
    rewrite(bundle, lambda values: change(values["files"]))
    with pytest.raises(BundleError, match=r"bundle\.json lists other files than a bundle has"):
        load_bundle(bundle)


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values.update(name="other"),
        lambda values: values.update(false_alarm_rate=0.06),
        lambda values: values["measured"].update(accuracy=1.0),
        lambda values: values.update(version="0" * 16),
    ],
)
def test_a_manifest_that_is_not_its_version_s_is_refused(
    bundle: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    values = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
    change(values)
    (bundle / MANIFEST).write_bytes(serialise(values))
    with pytest.raises(BundleError, match=r"bundle\.json was changed"):
        load_bundle(bundle)


def test_a_manifest_in_another_layout_is_refused(bundle: Path) -> None:
    values = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
    (bundle / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(BundleError, match=r"bundle\.json was changed"):
        load_bundle(bundle)


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values["labels"].append("ten"),
        lambda values: values.update(labels=values["labels"][:-1]),
        lambda values: values.update(detectors=["unknown"]),
        lambda values: values.update(detectors=[]),
        lambda values: values.update(fused=["unknown"]),
        lambda values: values["network"].update(width=9),
        lambda values: values["network"].update(backbone="none"),
        lambda values: values["mixture"].update(variance="diagonal"),
        lambda values: values.update(image_shape=[3, 8, 8]),
        lambda values: values.update(image_shape=[1, 9, 9]),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    rewrite(bundle, change)
    with pytest.raises(BundleError, match=r"bundle\.json and its tensors do not fit together"):
        load_bundle(bundle)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (NETWORK, lambda tensors: tensors.popitem()),
        (NETWORK, lambda tensors: tensors.update(extra=torch.zeros(1))),
        (DETECTORS, lambda tensors: tensors.clear()),
        (DETECTORS, lambda tensors: tensors.update({key: value.reshape(-1)[:3] for key, value in tensors.items()})),
        (REFERENCE, lambda tensors: tensors.clear()),
        (REFERENCE, lambda tensors: tensors.update(extra=torch.zeros(1))),
        (REFERENCE, lambda tensors: tensors.update(images=torch.zeros(8, 1, 4, 4, dtype=torch.uint8))),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    bundle: Path, name: str, change: Callable[[dict[str, Tensor]], object]
) -> None:
    replace_tensors(bundle, name, change)
    with pytest.raises(BundleError, match=r"bundle\.json and its tensors do not fit together"):
        load_bundle(bundle)


def test_a_file_that_is_no_safetensors_is_refused(bundle: Path) -> None:
    content = b"\xff" * 64
    (bundle / NETWORK).write_bytes(content)
    rewrite(bundle, lambda values: values["files"].update({NETWORK: hashlib.sha256(content).hexdigest()}))
    with pytest.raises(BundleError, match="do not fit together"):
        load_bundle(bundle)


def test_the_same_screener_saved_twice_has_the_same_version(
    digits_screener: Screener, digits_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    first, again = (save_again(digits_screener, digits_checkpoint, tmp_path / name) for name in ("first", "again"))
    assert first.version == again.version
    for name in FILES:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert (tmp_path / "first" / CARD).read_text(encoding="utf-8") == "# Gruß\n"
    again.self_test()


def test_a_bundle_says_when_it_was_calibrated_unless_it_is_older_than_that_note(bundle: Path) -> None:
    manifest = load_manifest(bundle)
    assert manifest.created is not None
    assert timedelta() <= datetime.now(UTC) - manifest.created < timedelta(hours=1)
    rewrite(bundle, lambda values: values.pop("created"))
    assert load_manifest(bundle).created is None
    load_bundle(bundle).self_test()


def test_other_content_has_another_version(
    digits_bundle: Path, digits_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    screener = load_bundle(digits_bundle)
    first = save_again(screener, digits_checkpoint, tmp_path / "first")
    with torch.no_grad():
        screener.get_parameter("network.mixture.means")[0, 0] += 1e-3
    assert save_again(screener, digits_checkpoint, tmp_path / "again").version != first.version


def test_a_bundle_is_never_written_over(
    digits_screener: Screener, digits_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match="is not empty; bundles are never changed"):
        save_again(digits_screener, digits_checkpoint, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    with pytest.raises(BundleError, match="is not a folder"):
        save_again(digits_screener, digits_checkpoint, tmp_path / "mine" / "notes.txt")
    (tmp_path / "empty").mkdir()
    assert save_again(digits_screener, digits_checkpoint, tmp_path / "empty").name == "digits"


@pytest.mark.parametrize("begun", [False, True])
def test_a_bundle_that_cannot_be_written_leaves_nothing(
    digits_screener: Screener,
    digits_checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    begun: bool,
) -> None:
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if path.name == "bundle.json":
            raise OSError(28, "No space left on device", str(path))
        return write(path, content)

    if begun:
        (tmp_path / "bundle").mkdir()
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(BundleError, match=r"bundle cannot be written: No space left on device"):
        save_again(digits_screener, digits_checkpoint, tmp_path / "bundle")
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"] * begun
    save_again(digits_screener, digits_checkpoint, tmp_path / "bundle")


def test_the_manifest_is_a_manifest(digits_bundle: Path) -> None:
    manifest = load_manifest(digits_bundle)
    assert isinstance(manifest, Manifest)
    for name, digest in manifest.files.items():
        assert hashlib.sha256((digits_bundle / name).read_bytes()).hexdigest() == digest


def test_what_the_device_says_is_not_blamed_on_the_bundle(digits_bundle: Path) -> None:
    with pytest.raises(RuntimeError, match="device"):
        load_bundle(digits_bundle, device="abacus")
