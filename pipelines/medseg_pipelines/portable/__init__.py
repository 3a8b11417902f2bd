"""Steps of our pipelines as MONAI parts. They travel inside bundles, so they know no recipe."""
