"""The forms in which a result can be asked for; plain words, checked before anything heavy is loaded."""

from medseg.errors import UsageError

LABEL_FORMATS = ("nifti", "seg", "rtstruct", "sr", "sc")
RESTORED_FORMATS = ("nifti", "dicom", "sc")
SEG_ENCODINGS = ("binary", "labelmap")
_LABELLING = ("segmentation", "prompting", "support-segmentation")  # tasks whose result is a label map
DICOM_FOLDER = "dicom"  # within the folder of a result, for everything but "nifti"


def parse_formats(text: str) -> tuple[str, ...]:
    """The formats in a comma separated list; "nifti", the volume itself, is always written and drops out.

    Raises:
        UsageError: There is no such format.
    """
    wanted = [part.strip().lower() for part in text.split(",") if part.strip()]
    known = dict.fromkeys((*LABEL_FORMATS, *RESTORED_FORMATS))
    for name in wanted:
        if name not in known:
            raise UsageError(f"format must be one or more of {', '.join(known)}, got '{name}'")
    return tuple(dict.fromkeys(name for name in wanted if name != "nifti"))


def require_for_task(formats: tuple[str, ...], task: str) -> None:
    """Refuse what a model of this task cannot give.

    Raises:
        UsageError: A format is not for this task.
    """
    possible = LABEL_FORMATS if task in _LABELLING else RESTORED_FORMATS
    wrong = [name for name in formats if name not in possible]
    if wrong:
        raise UsageError(f"format of a {task} must be one of {', '.join(possible)}, got '{wrong[0]}'")
