"""Where the bundles lie that come with the package."""

from pathlib import Path

SHIPPED_BUNDLE = Path(__file__).parent / "bundles" / "mnist"
ROBUST_BUNDLE = SHIPPED_BUNDLE.with_name("mnist-robust")
