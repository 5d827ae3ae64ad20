"""How sure a share is that was counted."""

from math import sqrt

from service.monitoring.snapshot import FlaggedShare

NORMAL_QUANTILE = 1.959963984540054  # 97.5 %


def wilson(num_hits: int, num_images: int) -> tuple[float, float]:
    """The 95 % interval of Wilson (1927) for a share; [0, 1] where nothing was counted."""
    if num_images == 0:
        return 0.0, 1.0
    share, squared = num_hits / num_images, NORMAL_QUANTILE**2 / num_images
    centre = share + squared / 2
    half_width = NORMAL_QUANTILE * sqrt(share * (1 - share) / num_images + squared / (4 * num_images))
    low, high = (centre - half_width) / (1 + squared), (centre + half_width) / (1 + squared)
    return (0.0 if num_hits == 0 else low), (1.0 if num_hits == num_images else high)


def flagged_share(num_flagged: int, num_images: int) -> FlaggedShare:
    low, high = wilson(num_flagged, num_images)
    share = num_flagged / num_images if num_images else None
    return FlaggedShare(num_images=num_images, num_flagged=num_flagged, share=share, low=low, high=high)
