"""Fixed texts that stand wherever a result is shown; in one place, so that they can be translated and audited."""

RESEARCH_USE = "Research use only. Not a medical device. Results need checking by a qualified person."
UNTRAINED = "Untrained weights: the result has no meaning."
UNKNOWN_ORIGIN = "Weights of unknown origin: nothing tells who trained them, on what, or whether at all."
UNTRAINED_BANNER = "UNTRAINED MODEL - THIS RESULT HAS NO MEANING"
MANUALLY_CORRECTED = "Manually corrected."
RADIOLOGICAL = "Radiological convention: the left of the picture is the right of the patient."
RESTORED_MARK = "RESTORED"
RESTORED = "A restored image may show structures that were never acquired: always compare with the original."
EXAMPLES_TRAVEL = (
    "Its weights hold what the network made of the slices of a support set, which are images of patients. The images "
    "are not in it, but what was made of them may reveal something: give it only to those who may have the images."
)
