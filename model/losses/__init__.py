"""Losses by name, one file each or one a family."""

from model.losses.angular_margin import ArcFaceLoss, ASoftmaxLoss, CosFaceLoss, LSoftmaxLoss
from model.losses.base import RivalLoss
from model.losses.center import CenterLoss
from model.losses.cosine import COCOLoss, CosineNormalisationLoss, NormFaceLoss
from model.losses.distillation import DistillationLoss
from model.losses.feature_incay import FeatureIncayLoss
from model.losses.l2_softmax import L2SoftmaxLoss
from model.losses.lgm import LGMLoss, LossTerms, lgm_terms
from model.losses.noisy_softmax import NoisySoftmaxLoss
from model.losses.pairs import ContrastiveLoss, QuadrupletLoss, TripletLoss
from model.losses.softmax import LabelSmoothingLoss, SoftmaxLoss

__all__ = [
    "ASoftmaxLoss",
    "ArcFaceLoss",
    "COCOLoss",
    "CenterLoss",
    "ContrastiveLoss",
    "CosFaceLoss",
    "CosineNormalisationLoss",
    "DistillationLoss",
    "FeatureIncayLoss",
    "L2SoftmaxLoss",
    "LGMLoss",
    "LSoftmaxLoss",
    "LabelSmoothingLoss",
    "LossTerms",
    "NoisySoftmaxLoss",
    "NormFaceLoss",
    "QuadrupletLoss",
    "RivalLoss",
    "SoftmaxLoss",
    "TripletLoss",
    "lgm_terms",
]
