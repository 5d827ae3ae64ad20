"""Making a loaded screener fast on its device without moving its scores; the self-test after it proves that."""

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from detectors import Screener
from model.backbones import Backbone
from model.errors import BundleError
from model.image_set import to_unit
from service.settings import Compiler, Precision

LOW_PRECISION_TOLERANCE = 1e-2  # relative, of log-likelihoods


def accelerate(screener: Screener, *, precision: Precision, compiler: Compiler) -> None:
    """Fold batch norms into convolutions, lay channels last, then lower the precision and compile as asked.

    Channels last alone halves the time of a batch of small convolutions on a CPU.
    """
    fold_batch_norms(screener.network.backbone)
    screener.to(memory_format=torch.channels_last)
    if precision == "bfloat16":
        screener.network.backbone = LowPrecision(screener.network.backbone)
    if compiler == "inductor":
        screener.network.backbone.tapped = torch.compile(  # type: ignore[method-assign]
            screener.network.backbone.tapped, dynamic=False
        )


def check_low_precision(screener: Screener) -> None:
    """Raises BundleError unless the reference images keep their class, and their likelihood to the tolerance."""
    reference = screener.reference
    if reference is None:
        raise BundleError(f"bundle {screener.name} {screener.version} has no reference scores")
    verdicts = screener.screen(to_unit(reference.images))
    found, expected = verdicts.log_likelihood.cpu(), reference.log_likelihood
    if not torch.equal(verdicts.class_index.cpu(), reference.class_index):
        raise BundleError("in bfloat16 a predicted class differs; use precision float32")
    if not torch.allclose(found, expected, rtol=LOW_PRECISION_TOLERANCE, atol=LOW_PRECISION_TOLERANCE):
        worst = float((found - expected).abs().max())
        raise BundleError(f"in bfloat16 log-likelihoods differ by up to {worst:.3g} nats; use precision float32")


def fold_batch_norms(network: nn.Module) -> None:
    """w' = w g / s and b' = (b - m) g / s + beta, wherever a batch norm follows a convolution in a Sequential."""
    for sequence in [module for module in network.modules() if isinstance(module, nn.Sequential)]:
        folded: list[nn.Module] = []
        for layer in sequence:
            before = folded[-1] if folded else None
            if isinstance(layer, nn.BatchNorm2d) and isinstance(before, nn.Conv2d):
                folded[-1] = fuse_conv_bn_eval(before, layer)
            else:
                folded.append(layer)
        del sequence[:]
        sequence.extend(folded)


class LowPrecision(Backbone):
    """A backbone in bfloat16; what it leaves is float32 again, as is all that is computed from it."""

    def __init__(self, backbone: Backbone):
        super().__init__([], backbone.num_outputs)
        self._backbone = backbone

    def tapped(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        with torch.autocast(images.device.type, dtype=torch.bfloat16):
            outputs, taps = self._backbone.tapped(images)
        return outputs.float(), tuple(tap.float() for tap in taps)
