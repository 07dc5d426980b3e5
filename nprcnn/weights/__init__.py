"""Weights in files: reading, writing, and those that come with the package."""

from .backbone import load_backbone
from .files import load_weights, read_weights, save_weights
from .report import LoadReport
