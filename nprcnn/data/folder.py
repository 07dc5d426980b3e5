"""A folder of images without labels: to predict on."""

from pathlib import Path

from ..errors import DataError
from .faults import refuse
from .files import images_in, readable_image
from .interface import FileSource


class Folder(FileSource):
    """The source "folder:FOLDER". A target holds "image_id" alone: nothing is known, which is not the same as no objects.

    Parameters
    ----------
    path : folder of images; folders in it are not looked into
    report : see FileSource
    """

    class_names = ("background",)

    def __init__(self, path, report=refuse):
        super().__init__(report)
        self.path = Path(path)
        if not self.path.is_dir():
            raise DataError(f"{self.path} is not a folder; folder:FOLDER needs one with images")
        self.files = images_in(self.path, report)

    def __len__(self):
        return len(self.files)

    def name(self, i):
        return self.files[i].name

    def image(self, i):
        """Image i, (H, W, 3) uint8, or None after a report."""
        return readable_image(self.files[i], self.report)

    def target(self, i, shape):
        return {"image_id": i}
