"""Images and targets: the built-in scenes, image files, and the checks of what a user brings.

A data source is any object with `__len__`, `class_names` (index 0 is "background") and `source[i] -> (image, target)`.
"""

from .images import as_image, read_image, save_image
from .shapes import Shapes
from .targets import check_target
