"""Losses by name, one file each."""

from model.losses.lgm import LGMLoss, LossTerms, lgm_terms

__all__ = ["LGMLoss", "LossTerms", "lgm_terms"]
