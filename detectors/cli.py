"""The commands of this room: lgm fit, screen, describe, export, evaluate, compare, verify."""

import typer

from detectors.commands import offline
from detectors.commands.describe import describe
from detectors.commands.export import export
from detectors.commands.fit import fit
from detectors.commands.screen import screen

app = typer.Typer()
app.command()(fit)
app.command()(screen)
app.command()(describe)
app.command()(export)
app.command(context_settings=offline.PASS_ON)(offline.evaluate)
app.command(context_settings=offline.PASS_ON)(offline.compare)
app.command(context_settings=offline.PASS_ON)(offline.verify)
