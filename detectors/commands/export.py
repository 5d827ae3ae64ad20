"""lgm export: a bundle -> one graph for other servers."""

from pathlib import Path
from typing import Annotated

import typer
from jaxtyping import Float
from torch import Tensor

from detectors.bundle import load_bundle
from detectors.commands.options import Bundle, DataDirectory, data_for
from detectors.manifest import load_manifest
from detectors.screener import Screener
from model.config import DataConfig
from model.data import load_splits
from model.errors import DataError
from model.image_set import to_unit


def export(
    bundle: Bundle,
    output: Annotated[Path, typer.Option(help="Folder of the model repository; must be empty or absent.")],
    format_name: Annotated[str, typer.Option("--format", help="onnx or torch-export.")] = "onnx",
    name: Annotated[str | None, typer.Option(help="Name of the model; the bundle's by default.")] = None,
    max_batch_size: Annotated[int, typer.Option(help="Most images that Triton may judge at once.")] = 64,
    check_data: Annotated[
        str | None, typer.Option(help="Compare on this data set's test images, not on the bundle's own under noise.")
    ] = None,
    data_dir: DataDirectory = None,
    limit: Annotated[int, typer.Option(min=1, help="Compare on at most so many images.")] = 1000,
) -> None:
    """Write a bundle as one graph (class, probabilities, log-likelihood, p-value, flag) that agrees with it."""
    from detectors.export import agreement, writing  # loads torch.export, which a server never needs

    writing.check(output, format_name)
    screener = load_bundle(bundle)
    if check_data:
        images = _test_images(screener, data_for(load_manifest(bundle), check_data, data_dir))[:limit]
    else:
        images = agreement.sample_images(screener, limit)
    found = writing.export(
        screener,
        output,
        format_name=format_name,
        images=images,
        source=f"{check_data}, test images" if check_data else "reference images, as they are and under noise",
        name=name,
        max_batch_size=max_batch_size,
    )
    typer.echo(f"{output}: {screener.name} {screener.version} as {format_name}; {found.describe()}")


def _test_images(screener: Screener, data: DataConfig) -> Float[Tensor, "n c h w"]:
    try:
        return to_unit(load_splits(data, screener.image_format).test.images)
    except DataError as error:
        raise DataError(f"--check-data: {error}") from None
