"""Self-checks of attacks: each stronger one against the weaker ones of its budget, on the same images."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations

import numpy as np

from detectors.evaluation import metrics
from detectors.evaluation.adaptive import ADAPTIVE, ADAPTIVE_STEPS
from detectors.evaluation.attacks import ATTACKS
from detectors.evaluation.checks import SIGNIFICANCE, Check, Level
from detectors.evaluation.parts import FUSED
from detectors.evaluation.rows import Measured

LEAST_COST = 0.01
SATURATED = 0.01


def check_attacks(measured: Iterable[Measured]) -> Iterator[Check]:
    """Every self-check that looks at the outcomes of attacks; none where nothing was attacked."""
    attacks = [one for one in measured if one.task.group == "attack"]
    if not attacks:
        return
    yield from _compared("more steps", list(_step_pairs(attacks)), "more steps are weaker than fewer", "refuse")
    pairs = list(_square_pairs(attacks))
    yield from _compared("white box", pairs, "following gradients is weaker than not seeing them", "refuse")
    yield from _compared("larger eps", list(_budget_pairs(attacks)), "a larger budget gets less through", "warn")
    yield from _costs(attacks)
    yield from _saturation(attacks)
    yield from _enough_steps(attacks)
    yield from _knowledge(attacks)
    yield from _guidance(attacks)


def _compared(name: str, pairs: Sequence[tuple[Measured, Measured]], fault: str, level: Level) -> Iterator[Check]:
    if not pairs:
        yield Check(name=name, level="not run", message="no two attacks of this run can be compared")
        return
    faults = [pair for pair in pairs if metrics.weaker(*map(_withstood, pair)) < SIGNIFICANCE]
    for stronger, other in faults:
        yield Check(name=name, level=level, message=f"{fault}: {_told(stronger)} against {_told(other)}")
    if not faults:
        yield Check(name=name, level="passed", message=f"{len(pairs)} pairs compared on the same images")


def _step_pairs(attacks: Sequence[Measured]) -> Iterator[tuple[Measured, Measured]]:
    """One attack with more and with fewer steps, and one step of FGSM against many of BIM and PGD."""
    for first, second in combinations(attacks, 2):
        if not _same_budget(first, second):
            continue
        stronger, other = sorted((first, second), key=_steps, reverse=True)
        same = first.task.name == second.task.name and _steps(stronger) > _steps(other)
        if same or (other.task.name == "fgsm" and stronger.task.name in {"bim", "pgd", "apgd"}):
            yield stronger, other


def _square_pairs(attacks: Sequence[Measured]) -> Iterator[tuple[Measured, Measured]]:
    """Every iterated white-box attack that does not know the detector, against Square."""
    blind = [one for one in attacks if one.task.name.startswith("square")]
    for one in attacks:
        if _follows_gradients(one):
            yield from ((one, square) for square in blind if _same_budget(one, square))


def _budget_pairs(attacks: Sequence[Measured]) -> Iterator[tuple[Measured, Measured]]:
    """One iterated attack at each eps and at the next smaller one, whose images it might have found as well."""
    last: dict[tuple[object, ...], Measured] = {}
    for one in sorted(attacks, key=lambda found: found.task.eps or 0):
        task = one.task
        key = (task.name, task.knowledge, task.norm, task.seed, task.steps, task.restarts, task.targeted)
        if task.knowledge == "full" or _follows_gradients(one):
            if key in last:
                yield one, last[key]
            last[key] = one


def _costs(attacks: Sequence[Measured]) -> Iterator[Check]:
    """An attack that hardly costs accuracy at its largest eps measures nothing."""
    largest: dict[tuple[object, ...], Measured] = {}
    for one in attacks:
        key = (one.task.name, one.task.knowledge, one.task.seed, one.task.steps)
        largest[key] = max(largest.get(key, one), one, key=lambda found: found.task.eps or 0)
    weak = [one for one in largest.values() if one.clean.right.mean() - one.part.right.mean() < LEAST_COST]
    for one in weak:
        told = f"{_told(one)} costs less than 1 % of accuracy: its budget is too small, or it does not work"
        yield Check(name="attacks cost accuracy", level="warn", message=told)
    if not weak:
        yield Check(name="attacks cost accuracy", level="passed", message="each costs 1 % or more at its largest eps")


def _saturation(attacks: Sequence[Measured]) -> Iterator[Check]:
    """As its budget grows an iterated white-box attack must come to win everywhere, at eps 1 at the latest."""
    name = "saturation"
    iterated = [one for one in attacks if one.task.norm == "linf" and _follows_gradients(one)]
    won = {one.task.name for one in iterated if one.part.right.mean() < SATURATED}
    failing = [one for one in iterated if one.task.eps == 1 and one.task.name not in won]
    for one in failing:
        told = f"{_told(one)} has a free choice of every pixel and still fails: gradients mislead it"
        yield Check(name=name, level="warn", message=told)
    if not failing and won:
        yield Check(name=name, level="passed", message=f"accuracy falls below 1 % under {', '.join(sorted(won))}")
    if not failing and not won:
        told = "no iterated attack went as far as to win everywhere; try --eps-curve"
        yield Check(name=name, level="not run", message=told)


def _enough_steps(attacks: Sequence[Measured]) -> Iterator[Check]:
    """Few steps bring few images past a detector, which would pass for its strength."""
    aware = [one for one in attacks if one.task.knowledge == "full"]
    longest: dict[tuple[object, ...], Measured] = {}
    for one in sorted(aware, key=_steps):
        longest[one.task.name, one.task.eps, one.task.seed] = one
    hasty = [one for one in longest.values() if _steps(one) < ADAPTIVE_STEPS]
    for one in hasty:
        told = f"{_told(one)}: fewer than {ADAPTIVE_STEPS} steps may be too few to get through"
        yield Check(name="enough steps", level="warn", message=told)
    if not hasty:
        told = f"each that knows the detector takes {ADAPTIVE_STEPS} or more" if aware else "none knows the detector"
        yield Check(name="enough steps", level="passed" if aware else "not run", message=told)


def _knowledge(attacks: Sequence[Measured]) -> Iterator[Check]:
    """Attacks that know the detector, together, must get through at least as often as one that does not."""
    unaware = [one for one in attacks if one.task.knowledge == "zero"]
    aware = [one for one in attacks if one.task.knowledge == "full"]
    yield from _outdone("knowledge helps", unaware, aware, "those that know the detector")


def _guidance(attacks: Sequence[Measured]) -> Iterator[Check]:
    """So must those that know the detector and follow its gradients, against those that know it and follow none."""
    aware = [one for one in attacks if one.task.knowledge == "full"]
    guided = [one for one in aware if ADAPTIVE[one.task.name].white_box]
    blind = [one for one in aware if not ADAPTIVE[one.task.name].white_box]
    yield from _outdone("detector's gradients help", blind, guided, "those that follow the detector's gradients")


def _outdone(name: str, weak: Sequence[Measured], strong: Sequence[Measured], words: str) -> Iterator[Check]:
    """Each of the weak against all of the strong together, of the same norm, eps and seed."""
    pairs = []
    for one in weak:
        together = [_stopped(other) for other in strong if _same_place(other, one)]
        if together:
            pairs.append((one, metrics.weaker(np.all(together, axis=0), _stopped(one))))
    faults = [one for one, p_value in pairs if p_value < SIGNIFICANCE]
    for one in faults:
        told = f"{words} get through less often than {_told(one)}: they are too weak"
        yield Check(name=name, level="warn", message=told)
    if not faults:
        told = f"{len(pairs)} attacks compared at the same eps" if pairs else "no attack of both kinds at one eps"
        yield Check(name=name, level="passed" if pairs else "not run", message=told)


def _withstood(measured: Measured) -> np.ndarray:
    """Images on which the attack has not got what it seeks."""
    return _stopped(measured) if measured.task.knowledge == "full" else measured.part.right


def _stopped(measured: Measured) -> np.ndarray:
    """Images that are right or flagged at 5 %."""
    return np.asarray(measured.part.right | metrics.flagged(measured.part.p_values[FUSED], 0.05))


def _follows_gradients(measured: Measured) -> bool:
    """Iterated, white-box, unaware of the detector; FGSM is weak by design."""
    task = measured.task
    return task.knowledge == "zero" and _steps(measured) > 1 and ATTACKS[task.name].white_box


def _same_place(first: Measured, second: Measured) -> bool:
    kept = ("norm", "eps", "seed")
    return all(getattr(first.task, name) == getattr(second.task, name) for name in kept)


def _same_budget(first: Measured, second: Measured) -> bool:
    kept = ("norm", "eps", "seed", "knowledge", "targeted")
    return all(getattr(first.task, name) == getattr(second.task, name) for name in kept) and first.task.norm != "none"


def _steps(measured: Measured) -> int:
    return measured.task.steps or 1


def _told(measured: Measured) -> str:
    task = measured.task
    eps = "" if task.eps is None else f" eps {task.eps:g}"
    steps = "" if task.steps is None else f", {task.steps} steps"
    held = f"accuracy {measured.part.right.mean():.1%}"
    if task.knowledge == "full":
        held += f", right or flagged at 5 % {_stopped(measured).mean():.1%}"
    return f"{task.name}{eps}{steps}, seed {task.seed} ({held})"
