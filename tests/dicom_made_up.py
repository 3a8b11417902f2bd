"""DICOM slices of a patient who does not exist, for tests of everything around an image."""

from pathlib import Path

from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

NAME, IDENTITY = "Canary^Some", "77-07"  # what must never stand in a message


def made_up_slice(**attributes: object) -> FileDataset:
    """A CT slice of 2 x 2 voxels; `attributes` replace what is set here."""
    values: dict[str, object] = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": "1.2.3.4",
        "SeriesInstanceUID": "1.2.3.5",
        "StudyInstanceUID": "1.2.3.6",
        "FrameOfReferenceUID": "1.2.3.7",
        "Modality": "CT",
        "PatientID": IDENTITY,
        "PatientName": NAME,
        "StudyDate": "20240110",
        "SeriesDate": "20240111",
        "PatientBirthDate": "19770707",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "SliceThickness": "2.5",
        "Rows": 2,
        "Columns": 2,
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 0,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "PixelData": bytes(range(8)),
        **attributes,
    }
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = UID(str(values["SOPClassUID"]))
    meta.MediaStorageSOPInstanceUID = UID(str(values["SOPInstanceUID"]))
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    for name, value in values.items():
        setattr(dataset, name, value)
    return dataset


def save_slice(path: Path, **attributes: object) -> Path:
    """Write `made_up_slice`; returns the path."""
    made_up_slice(**attributes).save_as(path, enforce_file_format=True)
    return path
