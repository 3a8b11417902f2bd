"""Segmentation by prompts: `model.Prompting` is the model, `model.Session` one image that is prompted again and again.

`medseg.prompts` holds points, boxes, masks and their list with undo, `medseg.io.prompts` their file.
"""
