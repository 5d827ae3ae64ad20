"""Classes spread over two and four gloo processes, against the loss of a mixture that is whole."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from model.devices import ALONE, Devices
from model.errors import CheckpointError, ConfigurationError
from model.losses import LGMLoss
from model.mixture import GaussianMixture
from model.shard_files import load_mixture, load_shard, save_shard, shard_name
from tests.full_disk import files_of_at_most
from tests.model.ranks import on_ranks

NUM_CLASSES, NUM_FEATURES = 23, 6  # neither two nor four divide them
CASES = [
    {"variance": variance, "prior": prior, "alpha": alpha, "lambda_": lambda_, "block_size": block_size}
    for variance, prior, alpha, lambda_, block_size in [
        ("unit", "uniform", 0.0, 0.0, 1024),
        ("unit", "learned", 0.3, 0.1, 2),
        ("isotropic", "learned", 1.0, 0.0, 1024),
        ("isotropic", "counts", 0.3, 2.0, 3),
        ("diagonal", "learned", 0.3, 0.1, 1024),
        ("diagonal", "uniform", 0.0, 0.1, 1),
    ]
]

Answer = dict[str, Any]


def answer(devices: Devices, case: dict[str, Any], seed: int, folder: Path) -> Answer:
    """What a rank says to a case, and its shard beside those of the others in the folder."""
    mixture, features, labels = whole(case, seed)
    shard = mixture.shard(devices)
    criterion = LGMLoss(shard, alpha=case["alpha"], lambda_=case["lambda_"], block_size=case["block_size"])
    terms = criterion(features.requires_grad_(), labels)
    terms.total.backward()
    fresh = GaussianMixture(NUM_CLASSES, NUM_FEATURES, variance=case["variance"], prior=case["prior"], peers=devices)
    save_shard(shard, folder, step=7)
    return {
        "terms": [term.detach() for term in terms],
        "features": features.grad,
        "shard": {name: values.grad for name, values in shard.named_parameters()},
        "predicted": shard.predict(features.detach()),
        "step": criterion.step,
        "fresh": [len(fresh.means), fresh.log_priors.exp().sum().item()],
    }


def answer_all(devices: Devices, folder: Path) -> list[Answer]:
    return [answer(devices, case, index, folder / f"case{index}") for index, case in enumerate(CASES)]


def whole(case: dict[str, Any], seed: int) -> tuple[GaussianMixture, torch.Tensor, torch.Tensor]:
    """Every parameter away from its start; the first shard has no input of the batch, one class has several."""
    generator = torch.Generator().manual_seed(seed)
    mixture = GaussianMixture(
        NUM_CLASSES, NUM_FEATURES, variance=case["variance"], prior=case["prior"], generator=generator
    )
    with torch.no_grad():
        if case["prior"] == "learned":
            mixture.raw_log_priors.normal_(generator=generator)
        if case["prior"] == "counts":
            mixture.set_priors(torch.arange(NUM_CLASSES))
        if case["variance"] != "unit":
            mixture.raw_log_variances.normal_(generator=generator)
    features = torch.randn(17, NUM_FEATURES, generator=generator)
    labels = torch.randint(12, NUM_CLASSES, (17,), generator=generator)
    labels[3] = labels[0]
    return mixture, features, labels


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shards")


@pytest.fixture(scope="module")
def answers(root: Path) -> dict[int, list[list[Answer]]]:
    """What every rank of two, then of four, says to every case."""
    return {size: on_ranks(size, answer_all, root / str(size)) for size in (2, 4)}


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("index", range(len(CASES)), ids=[f"{case['variance']}-{case['prior']}" for case in CASES])
def test_shards_give_the_loss_and_gradients_of_the_whole(
    size: int, index: int, answers: dict[int, list[list[Answer]]]
) -> None:
    case = CASES[index]
    mixture, features, labels = whole(case, index)
    features.requires_grad_()
    terms = LGMLoss(mixture, alpha=case["alpha"], lambda_=case["lambda_"])(features, labels)
    terms.total.backward()
    ranks = [rank[index] for rank in answers[size]]
    for answer in ranks:
        torch.testing.assert_close(answer["terms"], [term.detach() for term in terms], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(answer["features"], features.grad, rtol=1e-5, atol=1e-5)
        assert torch.equal(answer["predicted"], mixture(features).argmax(1))
        assert answer["step"] == 1
    for name, values in mixture.named_parameters():
        joined = torch.cat([answer["shard"][name] for answer in ranks])
        torch.testing.assert_close(joined, values.grad, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("size", [2, 4])
def test_fresh_shards_are_parts_of_one_mixture(size: int, answers: dict[int, list[list[Answer]]]) -> None:
    for index in range(len(CASES)):
        fresh = [rank[index]["fresh"] for rank in answers[size]]
        assert sum(count for count, _ in fresh) == NUM_CLASSES
        assert sum(share for _, share in fresh) == pytest.approx(1)


@pytest.fixture
def saved(answers: dict[int, list[list[Answer]]], root: Path, tmp_path: Path) -> Path:
    """A copy of the shards that four ranks saved of the last case."""
    return shutil.copytree(root / "4" / "case5", tmp_path / "shards")


def test_a_whole_mixture_is_put_together_from_shards(saved: Path) -> None:
    mixture, features, _ = whole(CASES[5], 5)
    back = load_mixture(saved)
    for name, values in mixture.state_dict().items():
        assert torch.equal(back.state_dict()[name], values), name
    assert torch.equal(back(features), mixture(features))


@pytest.mark.parametrize("size", [2, 3, 4])
def test_shards_are_read_by_any_number_of_processes(size: int, saved: Path) -> None:
    shards = [load_shard(saved, Devices(rank=rank, size=size)).state_dict() for rank in range(size)]
    for name, values in whole(CASES[5], 5)[0].state_dict().items():
        assert torch.equal(torch.cat([shard[name] for shard in shards]), values), name


def test_a_missing_shard_is_named(saved: Path) -> None:
    (saved / shard_name(2, 4)).unlink()
    with pytest.raises(CheckpointError, match=r"mixture-00003-of-00004\.safetensors is missing"):
        load_mixture(saved)


def test_a_damaged_shard_is_named(saved: Path) -> None:
    (saved / shard_name(1, 4)).write_bytes(b"not a shard")
    with pytest.raises(CheckpointError, match=r"mixture-00002-of-00004\.safetensors is damaged"):
        load_mixture(saved)


def test_a_shard_of_another_time_is_named(saved: Path, root: Path) -> None:
    shutil.copy(root / "4" / "case4" / shard_name(3, 4), saved)
    with pytest.raises(CheckpointError, match=r"mixture-00004-of-00004\.safetensors: its prior is learned"):
        load_mixture(saved)


def test_a_shard_in_another_s_place_is_named(saved: Path) -> None:
    first, second = (saved / shard_name(rank, 4) for rank in range(2))
    (kept := saved / "kept").write_bytes(second.read_bytes())
    shutil.copy(first, second)
    with pytest.raises(CheckpointError, match=r"00002-of-00004.* it holds classes \[0, 6\), not \[6, 12\)"):
        load_mixture(saved)
    kept.rename(first)  # the two are swapped now
    with pytest.raises(CheckpointError, match=r"00001-of-00004.* it holds classes \[6, 12\), not \[0, 6\)"):
        load_mixture(saved)


def test_a_flipped_bit_is_found_by_those_who_read_it(saved: Path) -> None:
    path = saved / shard_name(3, 4)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    for peers in (ALONE, Devices(rank=1, size=2)):
        with pytest.raises(CheckpointError, match=r"mixture-00004-of-00004\.safetensors is damaged: its digest"):
            load_shard(saved, peers)


def rewritten(path: Path, keep: Callable[[str], bool], **tensors: torch.Tensor) -> None:
    """The shard again with the entries of its metadata that are to be kept, and other tensors."""
    with safe_open(path, "pt") as file:
        metadata = {name: value for name, value in file.metadata().items() if keep(name)}
    save_file(load_file(path) | tensors, path, metadata)


def test_a_file_that_does_not_say_what_it_is_is_named(saved: Path) -> None:
    rewritten(saved / shard_name(0, 4), lambda name: False)
    with pytest.raises(CheckpointError, match=r"00001-of-00004.* is not a shard: it does not say its num_classes"):
        load_mixture(saved)


def test_other_tensors_than_a_shard_s_are_named(saved: Path) -> None:
    rewritten(saved / shard_name(2, 4), lambda name: True, means=torch.zeros(5, NUM_FEATURES))
    with pytest.raises(CheckpointError, match=r"00003-of-00004.*'means': \[5, 6\].*, not .*'means': \[6, 6\]"):
        load_mixture(saved)
    rewritten(saved / shard_name(2, 4), lambda name: True, means=torch.zeros(6, NUM_FEATURES, dtype=torch.float64))
    with pytest.raises(CheckpointError, match=r"00003-of-00004.*: its dtype is F64, but F32 in the first"):
        load_mixture(saved)


def test_shards_of_earlier_versions_have_no_digest(saved: Path) -> None:
    expected = load_mixture(saved).state_dict()
    for rank in range(4):
        rewritten(saved / shard_name(rank, 4), lambda name: name != "digest")
    for name, values in load_mixture(saved).state_dict().items():
        assert torch.equal(values, expected[name]), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_shards_keep_their_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    mixture = whole(CASES[4], 4)[0].to(dtype)
    for rank in range(3):
        save_shard(mixture.shard(Devices(rank=rank, size=3)), tmp_path, step=1)
    for name, values in load_mixture(tmp_path).state_dict().items():
        assert values.dtype == dtype
        assert torch.equal(values, mixture.state_dict()[name]), name


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    mixture = whole(CASES[0], 1)[0]
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", Path("/proc/none")):
        with pytest.raises(CheckpointError, match=r"mixture-00001-of-00001\.safetensors cannot be written: "):
            save_shard(mixture, folder, step=1)
    path = save_shard(mixture, tmp_path / "run", step=1)
    said = pytest.raises(CheckpointError, match=r"mixture-00001-of-00001\.safetensors cannot be written: ")
    with files_of_at_most(path.stat().st_size // 2), said:
        save_shard(mixture, tmp_path / "run", step=2)
    assert list((tmp_path / "run").iterdir()) == [path]
    load_mixture(tmp_path / "run")


def test_two_sets_of_shards_and_none_are_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no shard of a mixture"):
        load_mixture(tmp_path)
    shutil.copy(saved / shard_name(0, 4), saved / shard_name(0, 2))
    with pytest.raises(CheckpointError, match="holds shards of 2 and of 4 processes"):
        load_mixture(saved)


def test_what_does_not_fit_says_so(one_process: None) -> None:
    shard = GaussianMixture(5, 3, peers=Devices.of())
    criterion = LGMLoss(shard)
    for features, labels, said in [
        (torch.zeros(2, 4), torch.tensor([0, 1]), r"features must be \(n >= 1, 3\)"),
        (torch.zeros(2, 3), torch.tensor([0, 5]), r"labels must lie in \[0, 5\), got 0 to 5"),
        (torch.zeros(2, 3), torch.tensor([-1, 4]), r"labels must lie in \[0, 5\), got -1 to 4"),
        (torch.zeros(2, 3), torch.tensor([0]), "labels must be 2 integers, got"),
    ]:
        with pytest.raises(ConfigurationError, match=said):
            criterion(features, labels)
    with pytest.raises(ConfigurationError, match="block_size must be at least 1"):
        LGMLoss(shard, block_size=0)


def test_what_needs_all_classes_and_more_processes_than_classes_are_refused() -> None:
    second = GaussianMixture(5, 3, peers=Devices(rank=1, size=2))
    with pytest.raises(ConfigurationError, match="the log joint needs all 5 classes; 2 are here"):
        second(torch.zeros(1, 3))
    with pytest.raises(ConfigurationError, match="num_classes must be at least the 6 processes, got 5"):
        GaussianMixture(5, 3, peers=Devices(rank=1, size=6))


def test_shards_are_set_to_data_as_the_whole_is() -> None:
    mixture = GaussianMixture(5, 3, variance="diagonal", prior="counts")
    parts = [mixture.shard(Devices(rank=rank, size=2)) for rank in range(2)]
    features, labels = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 4
    for one in (mixture, *parts):
        one.set_means(features, labels)
        one.set_variances(features, labels)
        one.set_priors(torch.bincount(labels, minlength=5))
    for name, values in mixture.state_dict().items():
        assert torch.equal(torch.cat([part.state_dict()[name] for part in parts]), values), name


@pytest.fixture
def one_process(tmp_path: Path) -> Any:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
