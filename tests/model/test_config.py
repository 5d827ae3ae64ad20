import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import model
from model.config import Config, dump_config, load_config, parse_config, parse_data_config
from model.errors import ConfigurationError, DataError
from model.loss_config import RampConfig, SteppedConfig, build_schedule
from model.overrides import set_value
from model.schedule import AddUp, Constant, LinearRamp, StepUp
from model.train import train
from model.training_log import RunLog, Silent

COMMITTED = sorted((Path(model.__file__).parent / "configs").glob("*.toml"))
SMALL = """
name = "small"
[data]
name = "digits"
[network]
backbone = "small28"
"""


def tables(**changes: Any) -> dict[str, Any]:
    return {"name": "run", "data": {"name": "digits"}, "network": {"backbone": "small28"}, **changes}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return path


NAN, INFINITY = float("nan"), float("inf")
RAMP = {"policy": "linear", "start": 0.0, "stop": 1.0, "epochs": 2}
STEPS = {"policy": "step-up", "start": 0.1, "gamma": 2.0, "every": 10}

MISTAKES: list[tuple[Mapping[str, Any], str, str]] = [
    ({"bogus": 1}, "bogus", "[Uu]nexpected"),
    ({"training": {"epoch": 3}}, "training.epoch", "[Uu]nexpected"),
    ({"loss": {"alpha": {**RAMP, "end": 2}}}, "loss.alpha.end", "[Uu]nexpected"),
    ({"loss": {"alpha": -0.1}}, "loss.alpha", "greater than or equal to 0"),
    ({"loss": {"lambda": -1}}, "loss.lambda", "greater than or equal to 0"),
    ({"loss": {"alpha": NAN}}, "loss.alpha", "greater than or equal to 0|finite"),
    ({"loss": {"lambda": INFINITY}}, "loss.lambda", "finite"),
    ({"loss": {"alpha": {**RAMP, "start": -1}}}, "loss.alpha.start", "greater than or equal to 0"),
    ({"loss": {"lambda": {**RAMP, "stop": NAN}}}, "loss.lambda.stop", "greater than or equal to 0|finite"),
    ({"loss": {"alpha": {**STEPS, "gamma": -2}}}, "loss.alpha.gamma", "greater than or equal to 0"),
    ({"loss": {"alpha": {**STEPS, "every": 0}}}, "loss.alpha.every", "greater than or equal to 1"),
    ({"loss": {"alpha": {**STEPS, "minimum": 3, "maximum": 1}}}, "loss.alpha", "minimum 3 is above maximum 1"),
    ({"loss": {"alpha": {"policy": "cosine"}}}, "loss.alpha", "step-up, add-up or linear"),
    ({"loss": {"alpha": "high"}}, "loss.alpha", "number of zero or more"),
    ({"loss": {"alpha": True}}, "loss.alpha", "number of zero or more"),
    ({"training": {"epochs": 0}}, "training.epochs", "greater than or equal to 1"),
    ({"training": {"epochs": "3"}}, "training.epochs", "integer"),
    ({"training": {"epochs": 2.5}}, "training.epochs", "integer"),
    ({"training": {"epochs": True}}, "training.epochs", "integer"),
    ({"training": {"batch_size": 1}}, "training.batch_size", "greater than or equal to 2"),
    ({"training": {"seed": -1}}, "training.seed", "greater than or equal to 0"),
    ({"training": {"seed": 2**32}}, "training.seed", "less than or equal to 4294967295"),
    ({"training": {"precision": "half"}}, "training.precision", "float32"),
    ({"data": {"name": "imagenet"}}, "data.name", "image-folder"),
    ({"data": 3}, "data", "dictionary"),
    ({"data": {"name": "digits", "calibration_fraction": 1.0}}, "data.calibration_fraction", "less than 1"),
    ({"data": {"name": "digits", "calibration_fraction": 0}}, "data.calibration_fraction", "greater than 0"),
    ({"data": {"name": "digits", "image_size": 4}}, "data.image_size", "greater than or equal to 8"),
    ({"data": {"name": "digits", "num_channels": 2}}, "data.num_channels", "1 or 3"),
    ({"network": {}}, "network.backbone", "[Mm]issing|required"),
    ({"network": {"backbone": "small28", "width": 0}}, "network.width", "greater than or equal to 1"),
    ({"mixture": {"variance": "full"}}, "mixture.variance", "diagonal"),
    ({"mixture": {"variance_floor": 0}}, "mixture.variance_floor", "greater than 0"),
    ({"mixture": {"num_classes": 0}}, "mixture.num_classes", "greater than or equal to 1"),
    ({"augmentation": {"translation": 1.0}}, "augmentation.translation", "less than 1"),
    ({"augmentation": {"rotation": 181}}, "augmentation.rotation", "less than or equal to 180"),
    ({"adversarial": {"eps": -0.1}}, "adversarial.eps", "greater than or equal to 0"),
    ({"adversarial": {"eps": 1.5}}, "adversarial.eps", "less than or equal to 1"),
    ({"adversarial": {"eps": "0.3"}}, "adversarial.eps", "number"),
    ({"adversarial": {"norm": "l2"}}, "adversarial.norm", "linf"),
    ({"adversarial": {"steps": 0}}, "adversarial.steps", "greater than or equal to 1"),
    ({"adversarial": {"step_size": 0.0}}, "adversarial.step_size", "greater than 0"),
    ({"adversarial": {"ramp_epochs": -1}}, "adversarial.ramp_epochs", "greater than or equal to 0"),
    ({"adversarial": {"clean_share": 1.0}}, "adversarial.clean_share", "less than 1"),
    ({"adversarial": {"budget": 1}}, "adversarial.budget", "[Uu]nexpected"),
    ({"loss": {"block_size": 0}}, "loss.block_size", "greater than or equal to 1"),
    ({"loss": {"name": "softmax", "block_size": 8}}, "loss.block_size", "no such option"),
    ({"optimizer": {"name": "lion"}}, "optimizer.name", "adamw"),
    ({"optimizer": {"learning_rate": 0}}, "optimizer.learning_rate", "greater than 0"),
    ({"optimizer": {"momentum": 1.0}}, "optimizer.momentum", "less than 1"),
    ({"optimizer": {"milestones": [0]}}, "optimizer.milestones", "greater than or equal to 1"),
    ({"name": "../up"}, "name", "pattern"),
]


@pytest.mark.parametrize(("changes", "key", "limit"), MISTAKES, ids=[str(dict(case[0])) for case in MISTAKES])
def test_a_mistake_names_its_key_and_its_limit(changes: Mapping[str, Any], key: str, limit: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"(?s)\b{key}[.:\w]*: .*({limit})"):
        parse_config(tables(**changes))


def test_every_mistake_is_named_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_config(tables(bogus=1, loss={"alpha": -1}, training={"epochs": 0}))
    assert all(key in str(caught.value) for key in ("bogus", "loss.alpha", "training.epochs"))


def test_a_minimal_file_gets_the_defaults(small: Path) -> None:
    config = load_config(small)
    assert config == parse_config(tables(name="small"))
    assert (config.training.epochs, config.loss.alpha, config.mixture.variance) == (10, 0.1, "unit")


def test_overrides_are_toml_values_or_plain_words(small: Path) -> None:
    overrides = [
        "training.epochs=3",
        "optimizer.name=adamw",
        "optimizer.milestones=[2, 4]",
        "augmentation.mirror=true",
        'loss.lambda={policy = "linear", start = 0.0, stop = 1.0, epochs = 2}',
        "data.directory=/tmp/some folder",
    ]
    config = load_config(small, overrides)
    assert config.training.epochs == 3
    assert config.optimizer.name == "adamw"
    assert config.optimizer.milestones == (2, 4)
    assert config.augmentation.mirror
    assert config.loss.lambda_ == RampConfig(policy="linear", start=0.0, stop=1.0, epochs=2)
    assert config.data.directory == "/tmp/some folder"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.epochs", "must look like"),
        ("=3", "must look like"),
        ("training.epochs=0", "training.epochs"),
        ("training.epochs=many", "training.epochs"),
        ("trainnig.epochs=3", "trainnig"),
        ("name.first=x", "name is not a table"),
        ("loss.alpha=-1", "loss.alpha"),
        ("loss.alpha=nan", "loss.alpha"),
    ],
)
def test_a_bad_override_is_refused(small: Path, override: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        load_config(small, [override])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none\.toml cannot be read: No such file"):
        load_config(tmp_path / "none.toml")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_config(tmp_path)


@pytest.mark.parametrize("content", [b"name = ", b"{}", b"\xff\xfe\x00", b"name = 'a'\nname = 'b'"])
def test_what_is_not_toml_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"broken\.toml is not TOML"):
        load_config(path)


def test_another_loss_keeps_a_name_within_its_limit_and_says_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "long.toml"
    path.write_text(f'name = "{"a" * 60}"\ndata = {{ name = "digits" }}\nnetwork = {{ backbone = "small28" }}')
    name = load_config(path, loss="cosine-normalisation").name
    assert (len(name), name[-22:]) == (64, "a-cosine-normalisation")
    path.write_text('data = { name = "digits" }\nnetwork = { backbone = "small28" }')
    with pytest.raises(ConfigurationError, match="name: Field required"):
        load_config(path, loss="softmax")


def test_dump_and_parse_are_inverse() -> None:
    config = parse_config(
        tables(
            loss={"alpha": RAMP, "lambda": {**STEPS, "policy": "add-up"}},
            optimizer={"milestones": [1, 2], "clip_gradient_norm": 5.0},
            mixture={"variance": "diagonal", "num_classes": 10},
            adversarial={"eps": 0.3, "step_size": 0.1, "ramp_epochs": 2},
        )
    )
    assert parse_config(json.loads(json.dumps(dump_config(config)))) == config


def test_the_data_table_alone_is_checked() -> None:
    assert parse_data_config({"name": "mnist"}).calibration_fraction == 0.1
    with pytest.raises(ConfigurationError, match=r"name: .*mnist"):
        parse_data_config({"name": "nothing"})


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.name)
def test_a_committed_configuration_parses(path: Path) -> None:
    assert isinstance(load_config(path), Config)


def test_there_are_committed_configurations() -> None:
    assert "mnist.toml" in [path.name for path in COMMITTED]


def test_schedules_are_built_in_training_steps() -> None:
    ramp = build_schedule(RampConfig(policy="linear", start=0.0, stop=1.0, epochs=2.0), 10)
    assert ramp == LinearRamp(start=0.0, stop=1.0, num_steps=20)
    stepped = SteppedConfig(policy="step-up", start=0.1, gamma=2.0, every=10, maximum=1.0)
    assert build_schedule(stepped, 7) == StepUp(start=0.1, gamma=2.0, every=10, maximum=1.0)
    added = SteppedConfig(policy="add-up", start=0.1, gamma=2.0, every=10, maximum=1.0)
    assert build_schedule(added, 7) == AddUp(start=0.1, gamma=2.0, every=10, maximum=1.0)
    assert build_schedule(0.25, 7) == Constant(0.25)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"mixture": {"num_classes": 7}}, ConfigurationError, "mixture.num_classes is 7, but digits has 10 classes"),
        ({"network": {"backbone": "large"}}, ConfigurationError, "'large' does not exist; there are: small28"),
        ({"network": {"backbone": "torchvision:alexnet"}}, ConfigurationError, "does not take images of 8 x 8"),
        ({"training": {"device": "toaster"}}, ConfigurationError, "'toaster' is not known"),
        ({"training": {"device": "meta"}}, ConfigurationError, "use cpu, cuda"),
        ({"training": {"device": "cuda:99"}}, ConfigurationError, "'cuda:99' is not there"),
        ({"data": {"name": "mnist", "directory": "/nowhere"}}, DataError, "LGM_DATA_DIR"),
        ({"data": {"name": "digits", "calibration_fraction": 0.001}}, DataError, "too few"),
    ],
    ids=str,
)
def test_parts_that_do_not_fit_are_refused_before_anything_is_written(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], said: str
) -> None:
    output = tmp_path / "run"
    with RunLog(output) as log, pytest.raises(error, match=said):
        train(parse_config(tables(**changes)), output, log)
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    output = tmp_path / "run"
    output.write_text("mine")
    with pytest.raises(ConfigurationError, match="is not a folder"):
        train(parse_config(tables()), output, Silent())
    assert output.read_text() == "mine"


@pytest.mark.parametrize(
    ("output", "said"),
    [("/proc/x", "cannot be written: No such"), ("/proc/1", "cannot be written"), ("x" * 300, "too long")],
)
def test_an_output_that_cannot_be_written_is_refused(output: str, said: str) -> None:
    with RunLog(Path(output)) as log, pytest.raises(ConfigurationError, match=f"^{output} .*{said}.*--output$"):
        train(parse_config(tables()), Path(output), log)


def test_a_value_is_set_in_a_copy() -> None:
    values = {"name": "run", "loss": {"alpha": 0.1}}
    changed = set_value(set_value(values, "loss.alpha", 0.3), "training.epochs", 2)
    assert changed == {"name": "run", "loss": {"alpha": 0.3}, "training": {"epochs": 2}}
    assert values == {"name": "run", "loss": {"alpha": 0.1}}
