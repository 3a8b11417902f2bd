"""Pipelines: MONAI around the networks. Importing this package loads neither torch nor MONAI."""

from medseg_pipelines.load import load_model

__all__ = ["load_model"]
