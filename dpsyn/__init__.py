"""dpsyn: differentially private synthetic data by Private Evolution, without training anything."""

__version__ = "0.1.0"
