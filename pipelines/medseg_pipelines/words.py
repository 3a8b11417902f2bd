"""Fixed texts that stand wherever a result is shown; in one place, so that they can be translated and audited."""

RESEARCH_USE = "Research use only. Not a medical device. Results need checking by a qualified person."
UNTRAINED = "Untrained weights: the segmentation has no meaning."
UNTRAINED_BANNER = "UNTRAINED MODEL - THIS SEGMENTATION HAS NO MEANING"
RADIOLOGICAL = "Radiological convention: the left of the picture is the right of the patient."
