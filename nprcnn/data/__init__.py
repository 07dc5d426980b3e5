"""Images and targets: the built-in scenes, image files, annotated sets of many formats, and the checks of what a user brings.

A data source is any object with `__len__`, `class_names` (index 0 is "background") and `source[i] -> (image, target)`; see interface.py.
"""

from .images import as_image, read_image, save_image
from .interface import Source, Subset, split_source
from .shapes import Shapes
from .sources import open_source
from .targets import check_target, drop_crowds, target_from_masks
