"""The process that attacks images for the playground: `python -m service.dashboard.experiment`.

A line of JSON comes in on stdin, a question of findings.py, and one goes out on stdout, its answer. It ends with
its stdin. It alone loads a network on the page's behalf, on one thread and behind all that serves.
"""

import base64
import io
import os
import sys
import time
from functools import lru_cache, partial
from pathlib import Path

import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from detectors import Screener, Verdicts, load_bundle
from detectors.perturbation import bim, fgsm
from detectors.projection import Plane, ellipses_of, plane_through
from model.errors import LGMGuardError
from model.image_set import to_unit
from model.image_tensors import decode_image
from model.images import ImageFormat
from service.dashboard.findings import (
    QUESTION,
    ClassEllipse,
    Experiment,
    Finding,
    Judged,
    Refusal,
    Sample,
    Samples,
    Says,
)

NICENESS = 3  # beyond the page, whose process starts it
MAX_PIXELS = 4096 * 4096
NUM_NEAREST = 3
MOST_SAMPLES = 10
STEP_SHARE = 2.5  # BIM's steps together could go so many times as far as eps


def main() -> None:
    os.nice(NICENESS)
    torch.set_num_threads(1)
    for line in sys.stdin:
        answer = _answer(line)
        sys.stdout.write(answer.model_dump_json() + "\n")
        sys.stdout.flush()


def _answer(line: str) -> Finding | Samples | Refusal:
    try:
        question = QUESTION.validate_json(line)
        return perform(question) if isinstance(question, Experiment) else _samples(question.bundle)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        return Refusal(error=f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}")
    except LGMGuardError as error:
        return Refusal(error=str(error))


def perform(experiment: Experiment) -> Finding:
    """Raises BundleError, ImageError."""
    started = time.monotonic()
    screener = _loaded(experiment.bundle)
    clean = _read(base64.b64decode(experiment.image), screener.image_format)
    before = screener.screen(clean)
    attacked = _attack(screener, clean, before.class_index, experiment)
    images = torch.cat([clean, attacked])
    verdicts, features = screener.screen(images), _features(screener, images)
    anchors, plane = _plane(screener, verdicts, features)
    ellipses = zip(screener.labels, ellipses_of(screener.network.mixture, plane), strict=True)
    perturbation, magnification = _magnified(attacked - clean)
    return Finding(
        model=screener.name,
        version=screener.version,
        false_alarm_rate=screener.false_alarm_rate,
        num_features=features.shape[1],
        image=_png(clean[0]),
        attacked_image=_png(attacked[0]),
        perturbation=_png(perturbation[0]),
        magnification=magnification,
        clean=_judged(screener, verdicts, features, plane, row=0),
        attacked=_judged(screener, verdicts, features, plane, row=1),
        classes=tuple(
            ClassEllipse(label=label, centre=one.centre, half_axes=one.half_axes, angle=one.angle)
            for label, one in ellipses
        ),
        anchors=anchors,
        seconds=time.monotonic() - started,
    )


def _samples(bundle: Path) -> Samples:
    """The first of each class among the images that a bundle tests itself with."""
    screener = _loaded(bundle)
    reference = screener.reference
    if reference is None:
        return Samples(samples=())
    images = to_unit(reference.images)
    firsts = {int(index): row for row, index in reversed(list(enumerate(reference.class_index)))}
    return Samples(
        samples=tuple(
            Sample(label=screener.labels[index], image=_png(images[row]))
            for index, row in sorted(firsts.items())[:MOST_SAMPLES]
        )
    )


@lru_cache(maxsize=2)
def _loaded(bundle: Path) -> Screener:
    return load_bundle(bundle)


def _plane(screener: Screener, verdicts: Verdicts, features: Tensor) -> tuple[tuple[str, ...], Plane]:
    """Through the mean of the clean image's class and those of the two that the attacked one is likeliest of, beside
    it. Two classes alone have no third mean: there the attacked image's own features stand for it.
    """
    own = int(verdicts.class_index[0])
    others = [index for index in verdicts.probabilities[1].argsort(descending=True).tolist() if index != own][:2]
    anchors = (own, *others)
    points = torch.cat([screener.network.mixture.means.detach()[list(anchors)], features[1:]])[:3]
    return tuple(screener.labels[index] for index in anchors), plane_through(points)


def _read(data: bytes, image_format: ImageFormat) -> Tensor:
    """Whatever size the file has: people draw and upload as they like."""
    wanted = ImageFormat(shape=image_format.shape, resize=True)
    return to_unit(decode_image(data, wanted, max_pixels=MAX_PIXELS)[None])


def _attack(screener: Screener, images: Tensor, labels: Tensor, experiment: Experiment) -> Tensor:
    if experiment.eps == 0:
        return images
    steps = experiment.steps
    attack = {
        "fgsm": partial(fgsm, eps=experiment.eps),
        "bim": partial(bim, eps=experiment.eps, steps=steps, step_size=STEP_SHARE * experiment.eps / steps),
    }[experiment.attack]
    return attack(lambda given: screener.network(given).log_joint, images, labels.clone())  # of inference mode


@torch.inference_mode()
def _features(screener: Screener, images: Tensor) -> Tensor:
    return screener.network.embed(images)


def _judged(screener: Screener, verdicts: Verdicts, features: Tensor, plane: Plane, *, row: int) -> Judged:
    index = int(verdicts.class_index[row])
    own = features[row : row + 1]
    distances = torch.cdist(own, screener.network.mixture.means.detach())[0]
    nearest = distances.argsort()[:NUM_NEAREST].tolist()
    x, y = plane.project(own)[0].tolist()
    return Judged(
        label=screener.labels[index],
        class_index=index,
        probability=float(verdicts.probabilities[row, index]),
        probabilities=tuple(verdicts.probabilities[row].tolist()),
        log_likelihood=float(verdicts.log_likelihood[row]),
        p_value=float(verdicts.p_value[row]),
        flagged=bool(verdicts.flagged[row]),
        evidence={
            name: Says(score=float(said.score[row]), p_value=float(said.p_value[row]))
            for name, said in verdicts.evidence.items()
        },
        position=(x, y),
        distance_from_plane=float(plane.distance(own)[0]),
        nearest=tuple((screener.labels[of], float(distances[of])) for of in nearest),
    )


def _magnified(difference: Tensor) -> tuple[Tensor, float | None]:
    """Zero becomes mid grey, the largest change black or white; and by what it was multiplied."""
    largest = float(difference.abs().max())
    if largest == 0:
        return torch.full_like(difference, 0.5), None
    return 0.5 + difference / (2 * largest), 0.5 / largest


def _png(image: Tensor) -> str:
    """(c, h, w) in [0, 1] as a PNG in base64; one channel is grey, three are colours."""
    pixels = image.mul(255).round().to(torch.uint8)
    array = pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


if __name__ == "__main__":
    main()
