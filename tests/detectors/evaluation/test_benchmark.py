import json
import math
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from detectors import SHIPPED_BUNDLE, Screener
from detectors.evaluation.attacks import ATTACKS, AttackError
from detectors.evaluation.batches import Batch
from detectors.evaluation.benchmark import RESULTS, Evaluation
from detectors.evaluation.inputs import load_inputs
from detectors.evaluation.judging import OneProcess, join, make
from detectors.evaluation.parts import FOLDER, Part, check_folder, load_part, open_folder, save_part, write_json
from detectors.evaluation.rows import Measured, make_rows
from detectors.evaluation.settings import EvaluationError, Settings, Task, plan
from detectors.evaluation.summaries import over_seeds, worst_cases
from detectors.evaluation.table import cells
from detectors.evaluation.watcher import Silent
from model.errors import BundleError, DataError, LGMGuardError
from model.image_set import to_unit
from tests.detectors.evaluation.conftest import SETTINGS, Finished
from tests.full_disk import files_of_at_most

SCHEMA = {
    "attack": str,
    "eps": float | None,
    "norm": str,
    "steps": int | None,
    "knowledge": str,
    "detector": str,
    "num_clean": int,
    "num_adversarial": int,
    "num_successful": int,
    "clean_accuracy": float,
    "attacked_accuracy": float | None,
    "auroc": float | None,
    "auroc_interval": list | None,
    "tpr_at_fpr_5": float | None,
    "tpr_at_fpr_1": float | None,
    "realised_false_alarm_rate": float,
    "sr_at_5": float,
    "seconds": float,
}
TIMES = {"seconds", "attack_seconds"}
SMALL = replace(SETTINGS, attacks=("fgsm", "pgd"), adaptive=(), corruptions=(), foreign=(), limit=40)
KILLED_IN_THE_SECOND_TASK = """
import os, signal, sys
from pathlib import Path
from detectors.evaluation.benchmark import Evaluation
from detectors.evaluation.inputs import load_inputs
from detectors.evaluation.settings import Settings
from detectors.evaluation.watcher import Silent

class Killer(Silent):
    finished = 0

    def finish(self, rows):
        self.finished += 1

    def advance(self, cost):
        if self.finished == 1:
            os.kill(os.getpid(), signal.SIGKILL)

inputs = load_inputs(Path(sys.argv[1]), eval(sys.argv[3]))
Evaluation(inputs, Path(sys.argv[2]), Killer(), command="lgm evaluate").run()
"""


def run(bundle: Path, settings: Settings, output: Path) -> dict[str, Any]:
    return Evaluation(load_inputs(bundle, settings), output, Silent(), command="lgm evaluate").run()


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def test_results_hold_every_key_of_the_schema_and_no_nan(finished: Finished) -> None:
    def refuse(constant: str) -> float:
        raise AssertionError(constant)

    results = json.loads((finished.output / RESULTS).read_text(), parse_constant=refuse)
    assert results == json.loads(json.dumps(finished.results))
    for row in results["rows"]:
        assert list(row)[: len(SCHEMA)] == list(SCHEMA)
        for name, kind in SCHEMA.items():
            assert isinstance(row[name], kind), (name, row[name])


def test_one_row_for_each_attack_eps_knowledge_and_detector(finished: Finished) -> None:
    found = [(row["attack"], row["eps"], row["knowledge"], row["detector"]) for row in finished.results["rows"]]
    detectors = ["fused", *sorted(finished.inputs.screener.detectors)]
    tasks = [(name, eps, "zero") for name in ("fgsm", "bim") for eps in (0.1, 0.3)] + [("deepfool", None, "zero")]
    tasks += [("selective-pgd", eps, "full") for eps in (0.1, 0.3)]
    tasks += [("gaussian-noise", None, "none")] * 2 + [("noise", None, "none")]
    assert found == [(*task, detector) for task in tasks for detector in detectors]


def test_false_alarms_are_counted_at_the_promise_and_at_both_rates_of_detection(finished: Finished) -> None:
    sample, screener = finished.inputs.sample(0), finished.inputs.screener
    clean = screener.screen(to_unit(sample.images))
    p_values = {"fused": clean.p_value} | {name: found.p_value for name, found in clean.evidence.items()}
    figures = finished.results["clean"]
    assert [(row["detector"], row["promise"]) for row in figures] == [
        (name, rate) for rate in (0.05, 0.01) for name in ("fused", *sorted(screener.detectors))
    ]
    for row in figures:
        flagged = p_values[row["detector"]] <= row["promise"] + 1e-6
        assert row["overall"]["num_flagged"] == int(flagged.sum())
        by_class = [int((flagged & (clean.class_index == index)).sum()) for index in range(len(screener.labels))]
        assert [row["by_class"][label]["num_flagged"] for label in screener.labels] == by_class


def test_steps_are_given_to_attacks_that_follow_gradients_and_take_steps(finished: Finished) -> None:
    steps = {row["attack"]: row["steps"] for row in finished.results["rows"]}
    assert (steps["fgsm"], steps["bim"], steps["selective-pgd"], steps["noise"]) == (None, 5, 5, None)


def test_rows_say_what_scikit_learn_and_counting_say_of_the_same_attack(finished: Finished) -> None:
    screener, inputs = finished.inputs.screener, finished.inputs
    sample = inputs.sample(0)
    task = next(task for task in plan(SETTINGS) if task.name == "bim" and task.eps == 0.3)
    batches = [(to_unit(sample.images[start : start + 32]), sample.labels[start : start + 32]) for start in (0, 32)]
    attacked = torch.cat([make(screener, task, *batch, index) for index, batch in enumerate(batches)])
    clean, said = screener.screen(to_unit(sample.images)), screener.screen(attacked)
    was_right, right = clean.class_index == sample.labels, said.class_index == sample.labels
    fooled = was_right & ~right
    row = next(
        row
        for row in finished.results["rows"]
        if (row["attack"], row["eps"], row["detector"]) == ("bim", 0.3, "likelihood")
    )
    scores = torch.cat([clean.evidence["likelihood"].score[was_right], said.evidence["likelihood"].score[fooled]])
    labels = np.repeat([0, 1], [int(was_right.sum()), int(fooled.sum())])
    flagged = said.evidence["likelihood"].p_value <= 0.05
    assert row["num_successful"] == int(fooled.sum()) > 10
    assert row["attacked_accuracy"] == pytest.approx(float(right.double().mean()))
    assert row["auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-3)
    assert row["tpr_at_fpr_5"] == pytest.approx(float(flagged[fooled].double().mean()))
    assert row["sr_at_5"] == pytest.approx(float((~right & ~flagged).double().mean()))
    assert row["robust_accuracy_with_rejection"] == pytest.approx(1 - row["sr_at_5"])  # the bundle promises 5 %
    alarms = clean.evidence["likelihood"].p_value <= 0.05
    assert row["realised_false_alarm_rate"] == pytest.approx(float(alarms.double().mean()))
    assert row["mean_perturbation"]["linf"] == pytest.approx(0.3, abs=0.01)


def test_figures_by_hand(make_part: Callable[..., Part]) -> None:
    """Six images of class 0: clean, the last is wrong; attacked, numbers 2 to 5 are wrong as well."""
    clean = make_part([0] * 6, [0] * 5 + [1], fused=[0.9, 0.8, 0.04, 0.6, 0.5, 0.01])
    part = make_part([0] * 6, [0, 0, 1, 1, 1, 1], fused=[0.02, 0.9, 0.01, 0.04, 0.3, 0.7])
    task = Task(group="attack", name="bim", knowledge="zero", norm="linf", seed=0, eps=0.1)
    (row,) = make_rows(Measured(task=task, part=part, clean=clean), promise=0.05)
    expected = {
        "num_clean": 6,
        "num_clean_right": 5,
        "num_successful": 3,
        "clean_accuracy": 5 / 6,
        "attacked_accuracy": 2 / 6,
        "auroc": 14 / 15,  # of 5 clean against 3 successful, one pair tied and none but one out of order
        "tpr_at_fpr_5": 2 / 3,
        "tpr_at_fpr_1": 1 / 3,
        "tpr_all_at_fpr_5": 3 / 6,
        "realised_false_alarm_rate": 2 / 6,
        "realised_at_1": 1 / 6,
        "sr_at_1": 3 / 6,
        "sr_at_5": 2 / 6,
        "sr_at_50": 1 / 6,
        "robust_accuracy_with_rejection": 4 / 6,
        "flagged_share": 3 / 6,
        "needless_flag_rate": None,
    }
    pairs = [float(a < c) + 0.5 * float(a == c) for a in (0.01, 0.04, 0.3) for c in (0.9, 0.8, 0.04, 0.6, 0.5)]
    expected["auroc"] = float(np.mean(pairs))
    assert {name: row[name] for name in expected} == pytest.approx(expected)


def test_needless_flags_are_of_mild_corruptions_alone(make_part: Callable[..., Part]) -> None:
    clean = make_part([0] * 4, [0] * 4, fused=[0.5] * 4)
    part = make_part([0] * 4, [0, 0, 0, 1], fused=[0.01, 0.5, 0.02, 0.03])
    task = Task(group="corruption", name="rotation", knowledge="none", norm="none", seed=0, severity=1)
    for keeps, expected in ((True, 0.5), (False, None)):
        measured = Measured(task=task, part=part, clean=clean, keeps_class=keeps)
        (row,) = make_rows(measured, promise=0.05)
        assert (row["needless_flag_rate"], row["num_judged"], row["flagged_share"]) == (expected, 4, 0.75)


def test_worst_case_counts_an_image_lost_to_any_attack_within_the_budget(make_part: Callable[..., Part]) -> None:
    clean = make_part([0] * 4, [0] * 4, fused=[0.9] * 4)
    outcomes = {  # attack, eps: predictions and p-values
        ("fgsm", 0.1): ([1, 0, 0, 0], [0.9, 0.9, 0.9, 0.9]),
        ("bim", 0.1): ([0, 1, 0, 0], [0.9, 0.01, 0.9, 0.9]),
        ("bim", 0.2): ([1, 1, 1, 0], [0.9, 0.2, 0.01, 0.9]),
    }
    measured = [
        Measured(
            task=Task(group="attack", name=name, knowledge="zero", norm="linf", seed=0, eps=eps),
            part=make_part([0] * 4, predictions, fused=p_values),
            clean=clean,
        )
        for (name, eps), (predictions, p_values) in outcomes.items()
    ]
    found = {(one["norm"], one["eps"]): one for one in worst_cases(measured, promise=0.05)}
    figures = ("robust_accuracy", "robust_accuracy_with_rejection", "sr_at_5", "sr_at_50")
    assert [found[("linf", 0.1)][name] for name in figures] == [0.5, 0.75, 0.25, 0.25]
    assert [found[("linf", 0.2)][name] for name in figures] == [0.25, 0.5, 0.5, 0.25]
    assert [found[("any", None)][name] for name in figures] == [0.25, 0.5, 0.5, 0.25]


def test_no_attacker_is_credited_with_a_budget_that_he_never_had(make_part: Callable[..., Part]) -> None:
    """The curve raises eps for attacks that do not know the detector alone."""
    clean = make_part([0] * 4, [0] * 4, fused=[0.9] * 4)
    tasks = [("bim", "zero", 0.1, False), ("joint", "full", 0.1, False), ("bim", "zero", 0.8, True)]
    predictions = {"bim": [1, 1, 1, 0], "joint": [1, 0, 0, 0]}
    measured = [
        Measured(
            task=Task(group="attack", name=name, knowledge=knows, norm="linf", seed=0, eps=eps, on_curve=on_curve),
            part=make_part([0] * 4, predictions[name], fused=[0.9 if knows == "full" else 0.01] * 4),
            clean=clean,
        )
        for name, knows, eps, on_curve in tasks
    ]
    found = {(one["norm"], one["eps"]): one for one in worst_cases(measured, promise=0.05)}
    told = {key: (one["knowledge"], one["attacks"], one["sr_at_5"]) for key, one in found.items()}
    assert told == {
        ("linf", 0.1): ("full", ["bim", "joint"], 0.25),
        ("linf", 0.8): ("zero", ["bim"], 0.0),
        ("any", None): ("full", ["bim", "joint"], 0.25),
    }


def test_each_seed_draws_its_own_images_and_is_a_row_of_its_own(digits_bundle: Path, tmp_path: Path) -> None:
    settings = replace(SMALL, attacks=("fgsm",), eps=(0.2,), seeds=(0, 1, 2))
    results = run(digits_bundle, settings, tmp_path / "out")
    fused = [row for row in results["rows"] if row["detector"] == "fused"]
    assert [row["seed"] for row in fused] == [0, 1, 2]
    drawn = [load_part(tmp_path / "out", f"clean-seed{seed}") for seed in settings.seeds]
    assert len({part.scores["fused"].tobytes() for part in drawn if part is not None}) == 3
    (spread,) = [one for one in over_seeds(results["rows"]) if one["detector"] == "fused"]
    areas = [row["auroc"] for row in fused]
    assert spread["auroc"] == pytest.approx({"mean": sum(areas) / 3, "min": min(areas), "max": max(areas)})
    inputs = load_inputs(digits_bundle, settings)
    drawn = [set(inputs.sample(seed).fingerprints().tolist()) for seed in (0, 1, 0)]
    assert drawn[0] == drawn[2] != drawn[1]
    assert len(inputs.sample(0)) == 40


class Counting(OneProcess):
    """Knows which batches it has judged."""

    def __init__(self, screener: Screener):
        super().__init__(screener)
        self.judged: list[tuple[str | None, float | None, int]] = []

    def judge(self, task: Task | None, batches: Iterable[Batch]) -> Iterator[Part]:
        def counted() -> Iterator[Batch]:
            for batch in batches:
                self.judged.append((task and task.name, task and task.eps, batch.index))
                yield batch

        return super().judge(task, counted())


def test_a_run_killed_in_the_middle_goes_on_and_ends_with_the_same_rows(digits_bundle: Path, tmp_path: Path) -> None:
    whole = run(digits_bundle, SMALL, tmp_path / "whole")
    output = tmp_path / "killed"
    script = [sys.executable, "-c", KILLED_IN_THE_SECOND_TASK, str(digits_bundle), str(output), repr(SMALL)]
    killed = subprocess.run(script, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    files = {path.name: path.read_bytes() for path in (output / FOLDER).iterdir()}
    parts = {name: content for name, content in files.items() if not name.endswith(".000000.safetensors")}
    assert (len(files), len(parts)) == (3, 2)  # the clean images, the first task, a batch of the second
    assert not (output / RESULTS).exists()
    inputs = load_inputs(digits_bundle, SMALL)
    engine = Counting(inputs.screener)
    resumed = Evaluation(inputs, output, Silent(), command="lgm evaluate", engine=engine).run()
    assert engine.judged == [("fgsm", 0.3, 1), *(("pgd", eps, index) for eps in (0.1, 0.3) for index in (0, 1))]
    assert without_times(resumed["rows"]) == without_times(whole["rows"])
    assert resumed["worst_cases"] == whole["worst_cases"]
    assert all((output / FOLDER / name).read_bytes() == content for name, content in parts.items())
    assert len(list((output / FOLDER).iterdir())) == 5


def test_parts_are_joined_as_by_hand_and_keep_the_most_convincing_misses(make_part: Callable[..., Part]) -> None:
    def batch(p_values: list[float], size: float) -> Part:
        count = len(p_values)
        return replace(
            make_part([0] * count, [1] * count, fused=p_values),
            perturbation={"linf": size},
            misses=np.array(p_values, dtype=np.float32).reshape(-1, 1, 1, 1, 1),
            miss_facts=np.array([[0, 1, value] for value in p_values]),
        )

    batches = [batch([0.9, 0.5, 0.4], 0.1), batch([0.95, 0.6, 0.5], 0.1), batch([0.7], 0.8)]
    part = join(iter(batches))
    assert part.p_values["fused"].tolist() == pytest.approx([0.9, 0.5, 0.4, 0.95, 0.6, 0.5, 0.7])
    assert part.perturbation == pytest.approx({"linf": (6 * 0.1 + 0.8) / 7})
    assert (part.seconds, part.attack_seconds) == (6.0, 4.5)
    assert part.miss_facts[:, 2].tolist() == [0.95, 0.9, 0.7, 0.6, 0.5, 0.5]
    assert part.misses.flatten().tolist() == pytest.approx(part.miss_facts[:, 2].tolist())


def test_a_finished_run_is_not_run_again_and_a_damaged_part_is(digits_bundle: Path, tmp_path: Path) -> None:
    settings = replace(SMALL, attacks=("fgsm",))
    first = run(digits_bundle, settings, tmp_path / "out")
    assert run(digits_bundle, settings, tmp_path / "out")["rows"] == first["rows"]  # times as well: nothing was done
    part = next((tmp_path / "out" / FOLDER).glob("attack-*"))
    part.write_bytes(part.read_bytes()[:-100])
    again = run(digits_bundle, settings, tmp_path / "out")["rows"]
    assert without_times(again) == without_times(first["rows"])
    assert again != first["rows"]


def test_a_part_is_what_was_saved(finished: Finished, tmp_path: Path) -> None:
    part = next(one.part for one in finished.evaluation.measured if len(one.part.misses))
    (tmp_path / FOLDER).mkdir()
    save_part(tmp_path, "part", part)
    loaded = load_part(tmp_path, "part")
    assert loaded is not None
    assert np.array_equal(loaded.misses, part.misses)
    assert loaded.p_values["fused"].dtype == np.float32
    assert all(np.array_equal(loaded.scores[name], scores) for name, scores in part.scores.items())
    assert load_part(tmp_path, "absent") is None


def test_misses_are_misclassified_and_unflagged_most_convincing_first(finished: Finished) -> None:
    promise = finished.inputs.screener.false_alarm_rate
    attacks = [one for one in finished.evaluation.measured if one.task.group == "attack"]
    for one in attacks:
        lost = one.successful & (one.part.p_values["fused"] > promise)
        true, predicted, p_values = one.part.miss_facts.T
        assert len(one.part.misses) == min(6, int(lost.sum()))
        assert (true != predicted).all()
        assert p_values.tolist() == sorted(one.part.p_values["fused"][lost].tolist(), reverse=True)[:6]
    assert any(len(one.part.misses) for one in attacks)


def test_eps_goes_on_until_the_attack_wins_or_has_the_whole_range(digits_bundle: Path, tmp_path: Path) -> None:
    settings = replace(SMALL, eps=(0.05, 0.1), curve=True)
    rows = [row for row in run(digits_bundle, settings, tmp_path / "out")["rows"] if row["detector"] == "fused"]
    for name in ("fgsm", "pgd"):
        mine = [row for row in rows if row["attack"] == name]
        budgets = [row["eps"] for row in mine]
        assert budgets == pytest.approx([0.05, *(min(1.0, 0.1 * 2**power) for power in range(len(budgets) - 1))])
        assert mine[-1]["attacked_accuracy"] < 0.01 or budgets[-1] == 1
        assert all(row["attacked_accuracy"] >= 0.01 for row in mine[1:-1])
        assert [row["on_curve"] for row in mine] == [False, False, *[True] * (len(mine) - 2)]
        assert len(mine) > 2


def test_a_network_in_training_mode_is_not_attacked(digits_bundle: Path, tmp_path: Path) -> None:
    inputs = load_inputs(digits_bundle, SMALL)
    screener: Screener = deepcopy(inputs.screener)
    screener.network.backbone.train()
    evaluation = Evaluation(replace(inputs, screener=screener), tmp_path / "out", Silent(), command="lgm evaluate")
    results = evaluation.run()
    assert (results["verdict"], results["rows"]) == ("refused", [])
    assert {check["level"] for check in results["checks"] if check["name"] == "evaluation mode"} == {"refuse"}


def test_foreign_sets_have_no_right_class(finished: Finished) -> None:
    row = next(row for row in finished.results["rows"] if row["group"] == "foreign")
    assert (row["attacked_accuracy"], row["num_successful"]) == (None, 60)
    assert row["sr_at_5"] == pytest.approx(1 - row["tpr_at_fpr_5"])


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"attacks": ("fgsn",)}, AttackError, r"unknown attack 'fgsn'.*fgsm, bim"),
        ({"adaptive": ("jont",)}, AttackError, "unknown adaptive attack 'jont'.*joint"),
        ({"corruptions": ("blurr",)}, AttackError, "unknown corruption 'blurr'.*gaussian-blur"),
        ({"eps": ()}, AttackError, "fgsm needs a budget"),
        ({"eps": (1.5,)}, AttackError, r"\(0, 1\]"),
        ({"eps": (0.0,)}, AttackError, "above 0"),
        ({"eps": (math.nan,)}, AttackError, "eps"),
        ({"adaptive": ("joint",), "attacks": (), "eps": (8.0,)}, AttackError, r"\(0, 1\]"),
        ({"attacks": ("deepfool",), "targeted": True}, AttackError, "no targeted version"),
        ({"adaptive": ("joint",), "targeted": True}, EvaluationError, "targeted: joint seeks any wrong class"),
        ({"attacks": ()}, EvaluationError, "eps is given, but no attack"),
        ({"attacks": (), "eps": (), "targeted": True}, EvaluationError, "targeted is given, but no attack"),
        ({"attacks": (), "eps": (), "steps": (9,)}, EvaluationError, "steps is given, but no attack"),
        ({"eps": (0.1, 0.1)}, EvaluationError, "twice"),
        ({"steps": (0,)}, EvaluationError, "steps must be at least 1"),
        ({"restarts": 0}, EvaluationError, "restarts must be at least 1"),
        ({"severities": (6,)}, EvaluationError, "severity must be from 1 to 5"),
        ({"limit": 0}, EvaluationError, "limit must be at least 1"),
        ({"batch_size": 0}, EvaluationError, "batch size must be at least 1"),
        ({"seeds": ()}, EvaluationError, "at least one seed"),
        ({"seeds": (-1,)}, EvaluationError, "seed must be"),
    ],
)
def test_settings_that_cannot_be_run_are_refused(
    changes: dict[str, Any], error: type[LGMGuardError], words: str
) -> None:
    with pytest.raises(error, match=words):
        replace(Settings(data="digits", attacks=("fgsm",), eps=(0.1,)), **changes)


def test_data_that_do_not_fit_the_bundle_are_refused(digits_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"shape \(1, 8, 8\)"):
        load_inputs(SHIPPED_BUNDLE, SMALL)
    with pytest.raises(EvaluationError, match="limit is 1000; digits has 449"):
        load_inputs(digits_bundle, replace(SMALL, limit=1000))
    with pytest.raises(DataError, match="neither noise, inverted"):
        load_inputs(digits_bundle, replace(SMALL, foreign=("nonsense",)))
    with pytest.raises(EvaluationError, match="digits are the test images themselves"):
        load_inputs(digits_bundle, replace(SMALL, foreign=("noise", "digits")))
    with pytest.raises(BundleError):
        load_inputs(tmp_path, SMALL)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for index in range(20):
            Image.new("L", (8, 8), index).save(tmp_path / name / f"{index}.png")
    folder = replace(SMALL, data="image-folder")
    with pytest.raises(DataError, match="classes cat, dog; the bundle has 0, 1"):
        load_inputs(digits_bundle, folder, data_dir=tmp_path)
    Image.new("L", (30, 44)).save(tmp_path / "cat" / "0.png")
    with pytest.raises(DataError, match=r"cat/0\.png: image is 30 x 44 pixels; this model takes 8 x 8 [^;]*$"):
        load_inputs(digits_bundle, folder, data_dir=tmp_path)


def test_an_attack_that_needs_more_classes_is_refused_before_any_runs(
    digits_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ATTACKS, "fgsm", replace(ATTACKS["fgsm"], least_classes=11))
    with pytest.raises(AttackError, match="fgsm compares 11 classes; this network has 10"):
        load_inputs(digits_bundle, SMALL)


def test_a_targeted_attacks_images_are_counted_that_reached_their_target(make_part: Callable[..., Part]) -> None:
    """Of three that became wrong, the second is of the class aimed at; so is the fourth, which was wrong before."""
    clean = make_part([0] * 5, [0, 0, 0, 2, 0], fused=[0.5] * 5)
    part = replace(make_part([0] * 5, [1, 2, 1, 2, 0], fused=[0.5] * 5), targets=np.array([2, 2, 2, 2, 2]))
    task = Task(group="attack", name="bim", knowledge="zero", norm="linf", seed=0, eps=0.1, targeted=True)
    (row,) = make_rows(Measured(task=task, part=part, clean=clean), promise=0.05)
    assert (row["num_successful"], row["num_on_target"]) == (3, 1)
    assert cells(row)["judged"] == "3 (1 on target)"
    (untargeted,) = make_rows(Measured(task=task, part=replace(part, targets=None), clean=clean), promise=0.05)
    assert untargeted["num_on_target"] is None
    assert cells(untargeted)["judged"] == "3"


def test_targets_are_kept_with_what_came_of_them(digits_bundle: Path, tmp_path: Path) -> None:
    inputs = load_inputs(digits_bundle, SMALL)
    test = inputs.sample(0)
    batches = [
        Batch(index=index, images=test.images[rows], labels=test.labels[rows], was_right=None)
        for index, rows in enumerate((slice(0, 12), slice(12, 40)))
    ]
    task = Task(group="attack", name="pgd", knowledge="zero", norm="linf", seed=4, eps=0.4, targeted=True)
    part = join(OneProcess(inputs.screener).judge(task, batches))
    (tmp_path / FOLDER).mkdir()
    save_part(tmp_path, "part", part)
    loaded = load_part(tmp_path, "part")
    assert part.targets is not None
    assert loaded is not None
    assert loaded.targets.tolist() == part.targets.tolist()
    assert not (part.targets == part.labels).any()
    assert (part.targets == part.predictions).mean() > 0.8


def test_a_folder_that_is_not_this_runs_is_refused_and_left_as_it_was(finished: Finished, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="holds another run"):
        Evaluation(replace(finished.inputs, settings=SMALL), finished.output, Silent(), command="lgm evaluate").run()
    (tmp_path / "file.txt").write_text("mine")
    with pytest.raises(EvaluationError, match="holds no evaluation"):
        check_folder(tmp_path, "fingerprint")
    with pytest.raises(EvaluationError, match="is not a folder"):
        check_folder(tmp_path / "file.txt", "fingerprint")
    assert (tmp_path / "file.txt").read_text() == "mine"


def test_a_disk_that_was_full_leaves_a_folder_to_begin_in(tmp_path: Path) -> None:
    with files_of_at_most(10), pytest.raises(EvaluationError, match=r"run\.json cannot be written"):
        open_folder(tmp_path, "fingerprint", {})
    assert list(tmp_path.iterdir()) == []
    open_folder(tmp_path, "fingerprint", {})
    check_folder(tmp_path, "fingerprint")


def test_a_folder_left_before_its_run_was_named_is_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    (tmp_path / "run.json.tmp").touch()
    open_folder(tmp_path, "fingerprint", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [FOLDER, "run.json"]


def test_parts_without_a_name_are_nobodys(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "clean-seed0.safetensors").touch()
    with pytest.raises(EvaluationError, match="holds no evaluation"):
        open_folder(tmp_path, "fingerprint", {})


def test_the_fingerprint_tells_settings_bundle_and_images_apart() -> None:
    base = SMALL.fingerprint("bundle", "images")
    assert base == replace(SMALL).fingerprint("bundle", "images")
    others = [SMALL.fingerprint("other", "images"), SMALL.fingerprint("bundle", "other")]
    others += [
        replace(SMALL, **change).fingerprint("bundle", "images") for change in ({"limit": 41}, {"eps": (0.1,)})
    ]
    assert len({base, *others}) == 5


def test_a_figure_that_is_not_a_number_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "results.json", {"auroc": math.nan})
    assert not (tmp_path / "results.json").exists()
