"""What figures are called, and how they are written for people."""

from detectors.comparison.summaries import Figure

TITLES = {
    "accuracy": "accuracy",
    "gaussian_accuracy": "accuracy of the Gaussians",
    "calibration_error": "calibration error",
    "scatter_ratio": "scatter within / between",
    "likelihood_misfit": "likelihood misfit",
    "log_likelihood": "mean log p(x), nats",
    "realised_fpr": "clean flagged at 5 %",
    "detection": "mean AUROC",
    "verification_accuracy": "verification accuracy",
    "verification_error": "its standard error",
    "verification_tpr_at_fpr_1": "verification TPR at 1 %",
    "training_seconds": "training, s",
}
PLAIN = ("log_likelihood", "training_seconds", "scatter_ratio")


def title_of(name: str) -> str:
    """A figure's name for people."""
    if name in TITLES:
        return TITLES[name]
    for suffix, said in (("_auroc", "AUROC"), ("_tpr_at_fpr_5", "TPR at 5 %"), ("_accuracy", "accuracy under")):
        if name.endswith(suffix):
            subject = name.removesuffix(suffix)
            return f"{said} {subject}" if suffix == "_accuracy" else f"{subject} {said}"
    return name


def told(name: str, value: float) -> str:
    """A figure's value for people."""
    if is_share(name):
        return f"{value:.2%}"
    return f"{value:.3g}" if name in PLAIN else f"{value:.4f}"


def is_share(name: str) -> bool:
    """Whether a figure is told in per cent."""
    return name not in PLAIN and not name.endswith(("_auroc", "detection", "misfit"))


def told_with_interval(name: str, figure: Figure | None) -> str:
    """Mean and half of the interval; a dash where there is none."""
    if figure is None:
        return "–"
    text = told(name, figure.mean)
    return f"{text} ± {told(name, (figure.high - figure.low) / 2)}" if figure.high > figure.low else text
