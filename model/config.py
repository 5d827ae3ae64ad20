"""Frozen, checked configurations: a TOML file plus overrides -> Config.

Unknown keys, wrong types and values out of range are refused when a configuration is made,
naming the key and the limit.
"""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from model.errors import ConfigurationError
from model.fields import CHECKED, Count, NonNegative, Positive, Seed
from model.loss_config import LossConfig
from model.losses import known
from model.network_config import MixtureConfig, NetworkConfig
from model.overrides import LONGEST_NAME, apply, with_loss


@dataclass(frozen=True, kw_only=True, slots=True, config=CHECKED)
class DataConfig:
    """Which images, where they lie, and how they are parted.

    name: mnist, fashion-mnist, cifar10, cifar100, digits or image-folder. directory: LGM_DATA_DIR if not given.
    calibration_fraction: share of the training images, per class, kept from training for calibration.
    image_size, num_channels: for image folders; taken from the first image where not given.
    num_images: train and calibrate on so many of the training images, of each class alike. left_out: names of
    classes that are taken out of all splits, for verification on classes that were never trained on.
    """

    name: Literal["mnist", "fashion-mnist", "cifar10", "cifar100", "digits", "image-folder"]
    directory: str | None = None
    download: bool = False
    calibration_fraction: Annotated[float, Field(gt=0, lt=1, strict=True)] = 0.1
    split_seed: Seed = 0
    image_size: Annotated[int, Field(ge=8, le=2048, strict=True)] | None = None
    num_channels: Literal[1, 3] | None = None
    num_images: Count | None = None
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True, config=CHECKED)
class AugmentationConfig:
    """Random changes of training images; zero switches one off.

    pad: zero padding in pixels before a random crop back; mirror: left-right with probability 1/2;
    rotation in degrees, translation and scale as shares, shear in degrees: each uniform in [-x, x].
    erase: side in pixels of a square set to zero around a random pixel (Cutout, DeVries and Taylor 2017).
    """

    pad: Annotated[int, Field(ge=0, strict=True)] = 0
    mirror: bool = False
    rotation: Annotated[float, Field(ge=0, le=180, strict=True)] = 0.0
    translation: Annotated[float, Field(ge=0, lt=1, strict=True)] = 0.0
    scale: Annotated[float, Field(ge=0, lt=1, strict=True)] = 0.0
    shear: Annotated[float, Field(ge=0, lt=90, strict=True)] = 0.0
    erase: Annotated[int, Field(ge=0, strict=True)] = 0


@dataclass(frozen=True, kw_only=True, slots=True, config=CHECKED)
class AdversarialConfig:
    """Training on attacked images (see model/adversarial.py); eps = 0, the default, switches it off.

    eps: largest change of a pixel in units of [0, 1], reached in a straight line over the first ramp_epochs.
    steps of step_size (2.5 eps / steps where not given; the ramp scales it with eps), from a random point of
    the budget or from the image itself. clean_share: share of each batch that is left as it is.
    """

    norm: Literal["linf"] = "linf"
    eps: Annotated[float, Field(ge=0, le=1, strict=True)] = 0.0
    steps: Count = 10
    step_size: Annotated[float, Field(gt=0, le=1, strict=True)] | None = None
    ramp_epochs: NonNegative = 0.0
    clean_share: Annotated[float, Field(ge=0, lt=1, strict=True)] = 0.0
    random_start: bool = True


@dataclass(frozen=True, kw_only=True, slots=True, config=CHECKED)
class OptimizerConfig:
    """SGD with Nesterov momentum or AdamW, and the course of the learning rate.

    schedule: "one-cycle" (linear warm-up, then cosine to zero) or "steps" (times 0.1 at each milestone, an
    epoch). The multipliers set the rates of the means and of variances and priors against the network's;
    neither has weight decay.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    learning_rate: Positive = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1, strict=True)] = 0.9
    weight_decay: NonNegative = 5e-4
    schedule: Literal["one-cycle", "steps"] = "one-cycle"
    warmup_epochs: NonNegative = 1.0
    milestones: tuple[Count, ...] = ()
    means_multiplier: NonNegative = 1.0
    variances_multiplier: NonNegative = 0.1
    clip_gradient_norm: Positive | None = None


@dataclass(frozen=True, kw_only=True, slots=True, config=CHECKED)
class TrainingConfig:
    """Length, seed, device; precision "auto" is bfloat16 on CUDA devices that have it, else float32."""

    epochs: Count = 10
    batch_size: Annotated[int, Field(ge=2, strict=True)] = 128
    seed: Seed = 0
    device: str = "cpu"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    channels_last: bool = True


@dataclass(frozen=True, kw_only=True, slots=True, config=CHECKED)
class Config:
    """One training run."""

    name: Annotated[str, Field(pattern=rf"^[a-z0-9][a-z0-9._-]{{0,{LONGEST_NAME - 1}}}$")]
    data: DataConfig
    network: NetworkConfig
    mixture: MixtureConfig = MixtureConfig()
    loss: LossConfig = LossConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    adversarial: AdversarialConfig = AdversarialConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()

    def __post_init__(self) -> None:
        if self.adversarial.eps > 0 and self.loss.name in known.RIVALS:
            raise ConfigurationError(
                f"adversarial.eps: images are attacked through the Gaussians, which {self.loss.name} has only after "
                f"training; use one of {', '.join(known.GAUSSIAN)}, or eps = 0"
            )
        if self.mixture.sharded:
            self._check_sharded()

    def _check_sharded(self) -> None:
        if self.loss.name in known.RIVALS:
            raise ConfigurationError(
                f"mixture.sharded: {self.loss.name} has Gaussians only after training; "
                f"use one of {', '.join(known.GAUSSIAN)}"
            )
        if self.adversarial.eps > 0:
            raise ConfigurationError(
                "mixture.sharded: images are attacked through the Gaussians of all classes, which no process has; "
                f"adversarial.eps must be 0, got {self.adversarial.eps:g}"
            )


_adapter = TypeAdapter(Config)
_data_adapter = TypeAdapter(DataConfig)
_Checked = TypeVar("_Checked")


def parse_config(values: Mapping[str, Any]) -> Config:
    """A configuration from nested tables. Raises ConfigurationError naming each key that is wrong."""
    return _validated(_adapter.validate_python, values)


def parse_data_config(values: Mapping[str, Any]) -> DataConfig:
    """The data table alone. Raises ConfigurationError naming each key that is wrong."""
    return _validated(_data_adapter.validate_python, values)


def dump_config(config: Config) -> dict[str, Any]:
    """The nested tables that `parse_config` reads back; JSON-safe."""
    values: dict[str, Any] = _adapter.dump_python(config, mode="json")
    return values


def load_config(path: Path, overrides: Sequence[str] = (), *, loss: str | None = None) -> Config:
    """Read a TOML file, then apply overrides like "training.epochs=3" (values as in TOML, or plain words).

    loss: put this one in the place of the file's, see `with_loss`, before the overrides.

    Raises ConfigurationError: file missing, not TOML, an override without "=", an unknown key, a value
    out of range.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not TOML: {error}") from None
    if loss is not None:
        values = with_loss(values, loss)
    for override in overrides:
        apply(values, override)
    return parse_config(values)


def _validated(validate: Callable[[Any], _Checked], values: Mapping[str, Any]) -> _Checked:
    try:
        return validate(values)
    except ValidationError as error:
        problems = [f"{_key(problem['loc'])}: {problem['msg']}" for problem in error.errors()]
        raise ConfigurationError("configuration refused: " + "; ".join(problems)) from None


def _key(location: tuple[int | str, ...]) -> str:
    """loss.alpha of ("loss", "alpha", "float"): pydantic adds the names of a union's members."""
    members = {"number", "step-up", "add-up", "linear"}
    return ".".join(str(part) for part in location if part not in members) or "(whole file)"
