"""What an experiment finds, against the shipped bundle asked directly."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from detectors import SHIPPED_BUNDLE
from detectors.perturbation import fgsm
from model.errors import ImageError
from model.image_tensors import decode_image
from model.images import ImageFormat
from service.dashboard.experiment import _answer, perform
from service.dashboard.findings import Experiment, Refusal, Samples, SamplesWanted
from tests.e2e.test_readmes import REPOSITORY

SEVEN = (REPOSITORY / "tests" / "samples" / "seven.png").read_bytes()
EPS = 0.1


def experiment(**given: object) -> Experiment:
    values = {"bundle": SHIPPED_BUNDLE, "image": base64.b64encode(SEVEN).decode(), "eps": EPS, **given}
    return Experiment.model_validate(values)


def pixels(encoded: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))), dtype=np.float64) / 255


def test_an_attack_flips_the_label_and_drops_the_likelihood():
    finding = perform(experiment())
    assert finding.clean.label == "7"
    assert not finding.clean.flagged
    assert finding.attacked.label != "7"
    assert finding.attacked.flagged
    assert finding.attacked.log_likelihood < finding.clean.log_likelihood - 1
    assert finding.attacked.p_value < finding.clean.p_value


def test_without_eps_nothing_changes():
    finding = perform(experiment(eps=0))
    assert finding.attacked == finding.clean
    assert finding.magnification is None
    assert finding.image == finding.attacked_image


def test_it_says_what_the_screener_says(shipped_screener):
    finding = perform(experiment())
    clean = decode_image(SEVEN, ImageFormat(shape=(1, 28, 28)))[None] / 255
    verdicts = shipped_screener.screen(clean)
    attacked = fgsm(
        lambda given: shipped_screener.network(given).log_joint, clean, verdicts.class_index.clone(), eps=EPS
    )
    for judged, said in ((finding.clean, verdicts), (finding.attacked, shipped_screener.screen(attacked))):
        assert judged.class_index == int(said.class_index[0])
        assert judged.log_likelihood == pytest.approx(float(said.log_likelihood[0]), rel=1e-4)
        assert judged.p_value == pytest.approx(float(said.p_value[0]), abs=2e-3)
        assert judged.flagged == bool(said.flagged[0])
    features = shipped_screener.network(attacked).features
    distances = torch.cdist(features, shipped_screener.network.mixture.means)[0]
    assert finding.attacked.nearest[0][1] == pytest.approx(float(distances.min()), rel=1e-3)


@pytest.mark.parametrize("attack", ["fgsm", "bim"])
def test_the_pictures_are_those_of_the_attack(attack):
    finding = perform(experiment(attack=attack))
    clean, attacked, added = (pixels(of) for of in (finding.image, finding.attacked_image, finding.perturbation))
    assert np.abs(attacked - clean).max() <= EPS + 1 / 255
    assert added == pytest.approx(0.5 + (attacked - clean) * finding.magnification, abs=0.03)


def test_more_steps_are_no_weaker():
    once, often = perform(experiment(attack="bim", steps=1, eps=0.05)), perform(experiment(attack="bim", eps=0.05))
    assert often.attacked.probabilities[7] <= once.attacked.probabilities[7] + 1e-6


def test_a_photo_of_any_size_and_colour_will_do():
    buffer = io.BytesIO()
    Image.new("RGB", (300, 200), "teal").save(buffer, "JPEG")
    finding = perform(experiment(image=base64.b64encode(buffer.getvalue()).decode(), eps=0))
    assert pixels(finding.image).shape == (28, 28)
    assert finding.clean.flagged


def test_the_plane_is_that_of_the_classes_in_question():
    finding = perform(experiment())
    assert finding.anchors[0] == "7"
    assert finding.attacked.label in finding.anchors
    own = next(one for one in finding.classes if one.label == "7")
    assert own.centre == pytest.approx((0, 0), abs=1e-4)


def test_samples_are_the_bundles_own_one_a_class():
    answer = _answer(SamplesWanted(bundle=SHIPPED_BUNDLE).model_dump_json())
    assert isinstance(answer, Samples)
    labels = [sample.label for sample in answer.samples]
    assert len(set(labels)) == len(labels) >= 9
    assert all(pixels(sample.image).shape == (28, 28) for sample in answer.samples)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("nonsense", "Invalid JSON"),
        ('{"kind": "attack"}', "attack.bundle"),
        (experiment().model_dump_json().replace('"eps":0.1', '"eps":7'), "less than or equal to 0.5"),
        (experiment(image=base64.b64encode(b"no image").decode()).model_dump_json(), "not an image"),
        (experiment(bundle="/nowhere").model_dump_json(), "/nowhere"),
    ],
)
def test_what_cannot_be_tried_is_refused_with_the_reason(line, told):
    answer = _answer(line)
    assert isinstance(answer, Refusal)
    assert told in answer.error


def test_an_image_that_is_none_is_an_error_of_the_callers():
    with pytest.raises(ImageError):
        perform(experiment(image=base64.b64encode(SEVEN[:60]).decode()))
