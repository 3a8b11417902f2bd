"""DICOM series to volumes. pydicom decodes; which slices form one grid, and whether they do, is decided here.

Positions and directions are those of DICOM, LPS, until `stack` hands out an affine; from there on everything is RAS.
"""

from medseg.io.dicom.decoding import quiet
from medseg.io.dicom.opening import inspect_series, open_series
from medseg.io.dicom.series import DicomSeries

__all__ = ["DicomSeries", "inspect_series", "open_series", "quiet"]
