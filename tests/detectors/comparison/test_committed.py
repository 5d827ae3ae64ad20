"""The committed comparisons of full size: every training that they ask for can be built and takes a step."""

import math
from pathlib import Path

import pytest
import torch

import model
from detectors.comparison.planning import Run, plan, training_folder
from detectors.comparison.settings import load_comparison
from model.checkpoint import FILE_NAME, Checkpoint, build_network, save_checkpoint
from model.criterion import Criterion, build_criterion, learned_beside
from model.image_set import ImageSet
from model.images import ImageFormat
from model.losses.base import RivalLoss
from model.losses.known import LOSSES
from model.network import Network
from model.optimizer import build_optimizer
from model.train import train_epoch
from model.training_log import Silent

COMPARISONS = Path(model.__file__).parent / "comparisons"
SHAPES = {"mnist": (1, 28, 28), "fashion-mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
NUM_CLASSES = 10


@pytest.mark.parametrize("name", SHAPES)
def test_a_committed_comparison_takes_a_step_of_every_loss(name: str, tmp_path: Path) -> None:
    comparison = load_comparison(COMPARISONS / f"{name}.toml", ["training.training.batch_size=8"])
    everything = [run for run in plan(comparison, tmp_path) if not run.fitted]
    runs = [run for run in everything if run.experiment.name == "losses"]
    assert [run.seed for run in runs] == [0, 1, 2] * len(LOSSES)
    assert [run.training for run in runs[::3]] == list(LOSSES)
    assert all(run.config.network == runs[0].config.network for run in runs)
    images = draw_images(SHAPES[name])
    for run in everything:
        if run.seed == 0:
            take_a_step(run, images, training_folder(tmp_path, run.training_key))


def draw_images(shape: tuple[int, int, int]) -> ImageSet:
    return ImageSet(
        images=torch.randint(0, 256, (8, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
        labels=torch.tensor([0, 0, 1, 1, 2, 2, 3, NUM_CLASSES - 1]),
        class_names=tuple(str(index) for index in range(NUM_CLASSES)),
    )


def take_a_step(run: Run, images: ImageSet, folder: Path) -> None:
    """Softmax's network is kept as a finished run: it teaches distillation's."""
    image_format = ImageFormat(shape=tuple(images.images.shape[1:]))
    torch.manual_seed(run.seed)
    network = build_network(run.config, images.class_names, image_format)
    criterion = build_criterion(run.config.loss, network, images.class_names, steps_per_epoch=100)
    optimizer = build_optimizer(network, run.config.optimizer, classifier=learned_beside(criterion))
    report = train_epoch(network, criterion, optimizer, images, run.config, 0, Silent())
    assert math.isfinite(report.figures()["loss"]), run.key
    assert criterion.step == 1
    assert all(bool(weight.isfinite().all()) for weight in network.parameters()), run.key
    if run.training == run.experiment.teacher:
        save_checkpoint(finished(run, images, image_format, network, criterion), folder / FILE_NAME)


def finished(
    run: Run, images: ImageSet, image_format: ImageFormat, network: Network, criterion: Criterion
) -> Checkpoint:
    assert isinstance(criterion, RivalLoss)
    return Checkpoint(
        config=run.config,
        command="",
        class_names=images.class_names,
        image_format=image_format,
        split_digests={},
        trained_images=images.fingerprints(),
        epoch=run.config.training.epochs,
        network=network.state_dict(),
        optimizer={},
        loss_step=criterion.step,
        history=[],
        test_accuracy=0.1,
        criterion=criterion.state_dict(),
    )
