"""Image files in and out, and the check of an image that a caller passes in.

An image is an array (H, W, 3) of RGB, uint8. Whatever a file holds (alpha, palette, grey, 16 bit, CMYK, a
camera held sideways) is turned into that on reading, so that no later stage has to ask. Pillow is imported where
it is used: `import nprcnn` stays quick.
"""

import os
import warnings
from pathlib import Path

import numpy as np

from ..errors import DataError


def read_image(path):
    """Read an image file as an array (H, W, 3) uint8 RGB.

    Transparency is composited over white, as a page shows it. 16-bit grey is scaled to 8 bits (65535 is 255). The
    EXIF orientation is applied, so the picture stands upright. Of an animation the first frame is read. Colour
    profiles are not applied.

    Raises
    ------
    DataError
        The path is not there or is a folder; the file is empty, truncated, not an image, too large, or of a
        kind without a meaning in RGB (32-bit float, Lab).
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    path = Path(path)
    if path.is_dir():
        raise DataError(f"{path} is a folder; give the path of one image file")
    if not path.exists():
        raise DataError(f"{path} is not there; check the path (the current folder is {Path.cwd()})")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.load()
                image = ImageOps.exif_transpose(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{path} is too large to decode safely: {error}") from error
    except UnidentifiedImageError as error:
        what = "an image in a format that can be read" if path.stat().st_size else "an image: it is empty (0 bytes)"
        raise DataError(f"{path} is not {what}") from error
    except PermissionError as error:
        raise DataError(f"{path} may not be read; check its permissions") from error
    except Exception as error:  # decoders raise a dozen different kinds on broken bytes
        raise DataError(f"{path} is damaged or truncated ({error}); copy or download it again") from error
    return _to_rgb(image, path)


def _to_rgb(image, path):
    """A decoded Pillow image of any mode as (H, W, 3) uint8."""
    from PIL import Image

    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise DataError(f"{path} is grey with values {grey.min()} to {grey.max()}; 8 or 16 bits can be read")
        return np.repeat(((grey + 128) // 257).astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode in ("F", "LAB"):
        raise DataError(f"{path} holds {'32-bit floats' if image.mode == 'F' else 'Lab colours'}, whose look in RGB "
                        "is not defined here; convert it to 8-bit RGB first")
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return np.array(image.convert("RGB"))


def save_image(path, image):
    """Write an image, (H, W, 3) uint8 or float in 0..1, in the format that the suffix of `path` says.

    The file appears complete or not at all. Raises DataError if the image or the path cannot be used.
    """
    from PIL import Image

    path = Path(path)
    image = as_image(image, "the image to save")
    if image.dtype != np.uint8:
        image = np.rint(image * 255).astype(np.uint8)
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in Image.SAVE:
        raise DataError(f"{path}: no image format is known for the suffix {path.suffix!r}; use .png or .jpg")
    write_whole(path, lambda file: Image.fromarray(image).save(file, format=kind, quality=95))


def write_whole(path, write):
    """Call write(file) on a temporary file beside `path`, then move it there: a reader never sees half a file."""
    path = Path(path)
    if path.is_dir():
        raise DataError(f"{path} is a folder; give the name of a file to write")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
        os.replace(temporary, path)
    except OSError as error:
        why = error.strerror or error
        raise DataError(f"{path} cannot be written ({why}); check that its folder exists") from error
    finally:
        temporary.unlink(missing_ok=True)


def as_image(image, name="the image"):
    """Check an image in memory and return it unchanged.

    Parameters
    ----------
    image : array (H, W, 3), RGB
        uint8, or floats in 0..1.
    name : str
        What the message calls it.

    Raises
    ------
    DataError
        Anything else; the message says what was given and how to make it right.
    """
    expected = "expected an array (height, width, 3), RGB, uint8 or float in 0..1"
    if isinstance(image, (str, os.PathLike)):
        raise DataError(f"{name} is the path {str(image)!r}; {expected}: call read_image(path) first")
    if not isinstance(image, np.ndarray):
        raise DataError(f"{name} is a {type(image).__name__}; {expected}")
    if image.ndim != 3 or image.shape[2] != 3:
        hint = ""
        if image.ndim == 2:
            hint = "; for a grey image: np.stack([image] * 3, axis=2)"
        elif image.ndim == 3 and image.shape[2] == 4:
            hint = "; drop the alpha channel: image[:, :, :3]"
        elif image.ndim == 3 and image.shape[0] == 3:
            hint = "; the channels come first here: image.transpose(1, 2, 0)"
        raise DataError(f"{name} has the shape {image.shape}; {expected}{hint}")
    if image.shape[0] == 0 or image.shape[1] == 0:
        raise DataError(f"{name} has the shape {image.shape}, no pixels at all; {expected}")
    if image.dtype == np.uint8:
        return image
    if not np.issubdtype(image.dtype, np.floating):
        raise DataError(f"{name} is of type {image.dtype}; {expected}")
    low, high = image.min(), image.max()  # NaN, if there is one
    if not (np.isfinite(low) and np.isfinite(high)):
        y, x, _ = np.argwhere(~np.isfinite(image))[0]
        value = image[y, x][~np.isfinite(image[y, x])][0]
        raise DataError(f"{name} holds {value} at row {y}, column {x}; {expected}")
    if low < 0 or high > 1:
        hint = "; divide it by 255" if low >= 0 and high <= 255 else ""
        raise DataError(f"{name} holds values from {low:.6g} to {high:.6g}; {expected}{hint}")
    return image
