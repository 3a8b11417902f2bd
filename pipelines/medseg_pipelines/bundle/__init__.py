"""MONAI bundles: a model of ours to a bundle that proves itself, and a foreign bundle to a model without running it."""
