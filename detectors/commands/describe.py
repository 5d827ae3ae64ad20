"""lgm describe: what a bundle or a checkpoint holds."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from detectors.bundle import load_bundle
from detectors.manifest import FILES, MANIFEST, load_manifest
from model.checkpoint import load_checkpoint
from model.config import dump_config
from model.errors import BundleError


def describe(
    path: Annotated[Path, typer.Argument(help="A bundle, a checkpoint or a run's folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tell what a bundle or a checkpoint holds: classes, data, configuration, figures."""
    if path.name in FILES and path.with_name(MANIFEST).is_file():
        raise BundleError(f"{path} is part of a bundle; name its folder, {path.parent}")
    facts = _bundle_facts(path) if (path / MANIFEST).exists() else _checkpoint_facts(path)
    if as_json:
        typer.echo(json.dumps(facts, indent=2, default=str))
        return
    table = Table(show_header=False)
    for name, value in facts.items():
        table.add_row(name, value if isinstance(value, str) else json.dumps(value, indent=1, default=str))
    Console().print(table)


def _bundle_facts(path: Path) -> dict[str, Any]:
    load_bundle(path)  # a bundle that would be refused is not described
    return asdict(load_manifest(path))


def _checkpoint_facts(path: Path) -> dict[str, Any]:
    checkpoint = load_checkpoint(path)
    return {
        "classes": list(checkpoint.class_names),
        "image_shape": list(checkpoint.image_format.shape),
        "parameters": sum(values.numel() for values in checkpoint.network.values()),
        "epochs": f"{checkpoint.epoch} of {checkpoint.config.training.epochs}",
        "test_accuracy": checkpoint.test_accuracy,
        "split_digests": checkpoint.split_digests,
        "last_epoch": checkpoint.history[-1] if checkpoint.history else None,
        "command": checkpoint.command,
        "config": dump_config(checkpoint.config),
    }
