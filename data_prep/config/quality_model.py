"""Models of quality: what they are trained on, and how. They are made by `maxlm-prep train-model`."""

from data_prep.config.pipeline import Selection


class QualityModel(Selection):
    """From raw files to a model that scores documents."""
