"""lgm verify."""

from pathlib import Path
from typing import Annotated

import typer

from detectors.comparison.judging import look
from detectors.comparison.verification import cosine_similarity, read_pairs, verify
from model.checkpoint import load_checkpoint
from model.image_tensors import read_images
from model.images import ImageFormat


def verify_pairs(
    checkpoint: Annotated[Path, typer.Argument(help="A finished checkpoint or its run's folder.")],
    pairs: Annotated[Path, typer.Option(help="LFW's pairs.txt, or a file like it.")],
    images: Annotated[Path, typer.Option(help="Folder of NAME/NAME_0001.jpg.")],
) -> None:
    """Verify pairs of images by the cosine of their features: a threshold from all folds but one, accuracy on it."""
    trained = load_checkpoint(checkpoint)
    paths, found = read_pairs(pairs, images)
    image_format = ImageFormat(shape=trained.image_format.shape, resize=True)
    features = look(trained.build_network(), read_images(paths, image_format)).features
    figures = verify(cosine_similarity(features.double().numpy(), found), found)
    typer.echo(
        f"accuracy {figures.accuracy:.2%} ± {figures.standard_error:.2%}, TPR {figures.tpr_at_fpr_1:.2%} at FPR 1 %, "
        f"{figures.tpr_at_fpr_01:.2%} at FPR 0.1 %; {len(found.same):,} pairs of {len(paths):,} images"
    )
