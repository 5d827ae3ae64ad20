import pytest

from service.monitoring.intervals import flagged_share
from service.monitoring.snapshot import Drift, FlaggedShares, Lately, ModelMonitor
from service.monitoring.words import summarise

NOTHING = dict.fromkeys(Lately.model_fields, None)
CALM = Lately(**{**NOTHING, "requests_per_second": 1.0, "images_per_second": 1.0})


def model(num_flagged: int, num_images: int) -> ModelMonitor:
    """What the summary looks at of a model, promising 1 %."""
    share = flagged_share(num_flagged, num_images)
    shares = FlaggedShares(five_minutes=share, hour=share, since_start=share)
    drift = Drift(alarms=[], false_alarms_a_day=0.01, num_classes_tested=10)
    return ModelMonitor.model_construct(flagged=shares, promised_share=0.01, drift=drift)


@pytest.mark.parametrize(
    ("models", "lately", "level", "words"),
    [
        ([], {}, "no traffic", "No images came in the last hour."),
        ([model(0, 0)], {}, "no traffic", "No images came in the last hour."),
        (
            [model(0, 0), model(12, 999)],
            {},
            "normal",
            "The traffic is normal: 1.2 % of 999 images were flagged in the last hour, "
            "where 1 % is promised at most.",
        ),
        (
            [model(30, 1000)],
            {},
            "warning",
            "3.0 % of 1,000 images were flagged in the last hour, where 1 % is promised; it may still be chance.",
        ),
        ([model(1, 99)], {"error_share": 0.02}, "warning", "2.0 % of the requests failed in the last five minutes."),
        (
            [model(1, 99)],
            {"refused_share": 0.5},
            "warning",
            "50.0 % of the requests were refused in the last five minutes.",
        ),
    ],
)
def test_one_sentence_says_how_it_is(models, lately, level, words):
    assert summarise(models, CALM.model_copy(update=lately), ready=True) == (level, words)


def test_nothing_is_worse_than_not_being_ready():
    level, words = summarise([model(1, 99)], CALM, ready=False)
    assert level == "alarm"
    assert words.startswith("The service is not ready")
