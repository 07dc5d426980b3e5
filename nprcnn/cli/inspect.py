"""nprcnn inspect"""

from pathlib import Path

from ..errors import ConfigError, DataError
from .common import check_file


def add(command):
    """Declare the arguments."""
    p = command("inspect", run, "write a page that leads every detection of one image through all stages, for any browser",
                "nprcnn inspect shapes:3 --out report.html")
    p.add_argument("image", help="an image file; shapes:3 for the built-in scene 3; DATA#3 for image 3 of a data set, such as "
                   "coco:instances.json#3. A scene or an image of a data set has a target, so that the page shows gradients, too")
    p.add_argument("--weights", default="shapes", help='a file, or "shapes" for those that come with the package (%(default)s)')
    p.add_argument("--out", type=Path, default=Path("report.html"), metavar="HTML", help="where to write the page (%(default)s)")
    p.add_argument("--score", type=float, default=0.5, help="where the slider of scores stands at first (%(default)s)")


def run(args):
    from ..inspect import write_page
    from ..pretrained import load_model
    if not 0 <= args.score <= 1:
        raise ConfigError(f"--score {args.score}: scores lie in 0..1")
    if args.out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out {args.out}: the page is HTML; give a name that ends in .html")
    check_file(args.out)
    image, target, names = open_image(args.image)
    model, report = load_model(args.weights)
    print("\n".join(report.notes))
    target, why = usable(target, names, model)
    if why:
        print(f"no gradients: {why}")
    size = write_page(args.out, model, image, target, title=args.image, about=report.notes[0], score=args.score)
    print(f"wrote {args.out} ({size / 1e6:.1f} MB); open it in a browser")


def open_image(text):
    """An image, its target or None, and the names of the target's classes.

    text: the path of a file, "shapes:3", or "KIND:PATH#3".
    """
    from ..data.images import read_image
    from ..data.shapes import Shapes
    from ..data.sources import open_source
    spec, mark, number = text.rpartition("#")
    kind, colon, scene = text.partition(":")
    if kind == "shapes" and colon and not mark:
        index = item(scene, text)
        source = Shapes.held_out(index + 1)
    elif mark and ":" in spec:
        index, source = item(number, text), open_source(spec)
        if index >= len(source):
            raise DataError(f"{spec} has {len(source)} images, counted from 0; there is no number {index}")
    else:
        return read_image(text), None, None
    image, target = source[index]
    return image, target, tuple(source.class_names)


def item(text, whole):
    """The number of an image in a data set."""
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ConfigError(f"{whole}: {text!r} is no number of an image; write it as in shapes:3 or coco:instances.json#3")
    return int(text)


def usable(target, names, model):
    """The target, if losses can be computed with it, else None; and why not."""
    from ..data.targets import drop_crowds
    if target is None:
        return None, "an image file has no target; take shapes:3, or an image of a data set"
    if model.class_names is not None and tuple(model.class_names) != names:
        return None, "the data's classes are not the model's"
    if model.has_masks and target.get("masks") is None:
        return None, "the data has boxes only, and the model has a mask branch"
    target = drop_crowds(target)
    return (target, "") if len(target["boxes"]) else (None, "the image has no objects")
