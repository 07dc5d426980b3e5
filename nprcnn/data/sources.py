"""Data sources by name: `open_source("coco:annotations.json")`, what --data takes on the command line.

    coco:FILE.json      COCO instances; option images=FOLDER
    voc:FOLDER          Pascal VOC: JPEGImages, Annotations, SegmentationObject; option split=NAME
    labels:FOLDER       images/ and labels/, one label image an image
    masks:FOLDER        NAME/images and NAME/masks, one mask image an object
    labelme:FOLDER      LabelMe, a json an image
    via:FILE.json       VGG Image Annotator; options images=FOLDER, attribute=NAME
    folder:FOLDER       images without labels, to predict on
    shapes:COUNT        the built-in scenes; options seed=0, difficulty=full, size=128; seed=held_out for those that no training sees
    python:FILE.py      a class of your own (see interface.py); python:FILE.py:TEXT passes TEXT to it

Options follow a comma: "coco:a.json,images=photos". Every kind also takes held_out=N, part=train or part=held_out, and split_seed=0:
N images chosen at random, the same ones everywhere, are held out, and one of the two parts is opened.
"""

import contextlib
import importlib.util
import re
import traceback
from pathlib import Path

from ..errors import ConfigError, DataError, NprcnnError
from .coco import Coco
from .faults import refuse
from .folder import Folder
from .interface import Source, Subset, digest, split_source
from .label_images import LabelImages
from .labelme import LabelMe
from .mask_folders import MaskFolders
from .shapes import HELD_OUT_SEED, Shapes
from .via import Via
from .voc import Voc

# kind -> the class, and the options it takes with the type of each
KINDS = {
    "coco": (Coco, {"images": str}),
    "voc": (Voc, {"split": str}),
    "labels": (LabelImages, {}),
    "masks": (MaskFolders, {}),
    "labelme": (LabelMe, {}),
    "via": (Via, {"images": str, "attribute": str}),
    "folder": (Folder, {}),
}
SHAPES = {"seed": lambda text: text if text == "held_out" else int(text), "difficulty": str, "size": int}
PARTS = {"held_out": int, "part": str, "split_seed": int}


def open_source(spec, report=refuse, **options):
    """Open a data set.

    Parameters
    ----------
    spec : str
        "KIND:PATH", or "KIND:PATH,option=value,..."
    report : callable(file, entry, problem, stops), optional
        What to do with faults; by default the first one that matters is raised.
    **options
        The same options as keywords; they win over those in `spec`.

    Returns
    -------
    Source

    Raises
    ------
    ConfigError
        No such kind or option.
    DataError
        The path is not there, or a fault (see faults.py).
    """
    kind, path, written = parse(spec)
    options = {**written, **{key: value for key, value in options.items() if value is not None}}
    parts = {key: options.pop(key) for key in PARTS if key in options}
    if kind == "shapes":
        source = Scenes(_count(path), **options)
    elif kind == "python":
        source = Own(path)
    else:
        source = KINDS[kind][0](path, report=report, **options)
    return take_part(source, **parts) if parts else source


def parse(spec):
    """"coco:a.json,images=b" -> ("coco", "a.json", {"images": "b"})."""
    kind, colon, path = str(spec).partition(":")
    kinds = [*KINDS, "shapes", "python"]
    if not colon or kind not in kinds:
        raise ConfigError(f"{str(spec)!r} is no data set; write KIND:PATH, where KIND is one of {', '.join(kinds)}")
    own = {"shapes": SHAPES, "python": {}}[kind] if kind not in KINDS else KINDS[kind][1]
    types, options = {**own, **PARTS}, {}
    while found := re.search(r",(\w+)=([^,]*)$", path):
        name, value = found.groups()
        if name not in types:
            raise ConfigError(f"{spec}: {kind} has no option {name!r}; it has {', '.join(types)}")
        try:
            options[name] = types[name](value)
        except ValueError:
            raise ConfigError(f"{spec}: {name}={value} is not an integer") from None
        path = path[:found.start()]
    if not path:
        raise ConfigError(f"{spec}: the path is missing; write {kind}:PATH")
    return kind, path, options


def take_part(source, held_out=None, part=None, split_seed=0):
    """One part of a source that is split at random; the options of every kind."""
    if held_out is None or part not in ("train", "held_out"):
        raise ConfigError(f"held_out={held_out}, part={part}: a part of a set needs held_out=NUMBER and part=train or part=held_out")
    train, rest = split_source(source, held_out, split_seed)
    return train if part == "train" else rest


def _count(text):
    """"200" -> 200"""
    if not text.isdecimal():
        raise ConfigError(f"shapes:{text}: a number of scenes is needed, as in shapes:200")
    return int(text)


class Scenes(Source):
    """The source "shapes:COUNT": `Shapes` with names and a fingerprint. seed="held_out": `Shapes.held_out`."""

    class_names = Shapes.class_names

    def __init__(self, count, seed=0, difficulty="full", size=None):
        held_out = seed == "held_out"
        self.scenes = Shapes.held_out(count, difficulty, size) if held_out else Shapes(count, seed, difficulty, size)

    def __len__(self):
        return len(self.scenes)

    def __getitem__(self, i):
        return self.scenes[i]

    def name(self, i):
        return f"scene {i} of seed {'held_out' if self.scenes.seed == HELD_OUT_SEED else self.scenes.seed}"

    def fingerprint(self):
        """16 hex digits of what the scenes are a function of."""
        return digest(self.scenes.count, self.scenes.seed, self.scenes.difficulty, self.scenes.size)


class Own(Source):
    """The source "python:FILE.py[:TEXT]": the one class derived from Source in a file of the user's, called with TEXT if there is any.

    The file is run, as any program of the user's. Worker processes run it, too: the class need not be importable by a name.
    """

    def __init__(self, path):
        self.path = path
        file, _, argument = path.partition(".py:")
        file = Path(file if file.endswith(".py") else file + ".py")
        if not file.is_file():
            raise DataError(f"{file} is not there; python:FILE.py needs a file with a class derived from nprcnn.data.Source")
        self.file = file
        with self._blamed("the class cannot be made"):
            self.source = _class_in(file)(*[argument] * bool(argument))
            self.class_names = tuple(self.source.class_names)

    @contextlib.contextmanager
    def _blamed(self, what):
        """What the user's file raises becomes a DataError that names the file and the line. Ours, and the end of the set, pass."""
        try:
            yield
        except (NprcnnError, IndexError):
            raise
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == self.file.resolve()]
            lines += [error.lineno] if isinstance(error, SyntaxError) else []
            place = f"line {lines[-1]}: " if lines else ""
            raise DataError(f"{self.file}: {place}{what}, {type(error).__name__}: {error}") from error

    def __reduce__(self):
        return Own, (self.path,)

    def __len__(self):
        return len(self.source)

    def __getitem__(self, i):
        with self._blamed(f"image {i} cannot be read"):
            return self.source[i]

    @property
    def category_ids(self):
        return self.source.category_ids

    def name(self, i):
        return self.source.name(i)

    def fingerprint(self):
        """Changes with the text of the file, too: it may hold annotations, or decide what becomes of them."""
        return digest(self.file.read_bytes(), self.source.fingerprint())


def _class_in(file):
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = [value for value in vars(module).values()
             if isinstance(value, type) and issubclass(value, Source) and value.__module__ == file.stem]
    if len(found) != 1:
        raise DataError(f"{file} defines {len(found)} classes derived from nprcnn.data.Source; one is needed")
    return found[0]
