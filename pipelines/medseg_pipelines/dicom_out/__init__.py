"""Results as DICOM objects of the same study: what each says, and that it is not for diagnosis."""
