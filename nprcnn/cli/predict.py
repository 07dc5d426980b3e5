"""nprcnn predict"""

from pathlib import Path

from ..errors import ConfigError
from .common import check_file


def add(command):
    """Declare the arguments."""
    p = command("predict", run, "find the objects in one image and draw them; the weights tell which model",
                "nprcnn predict photo.jpg --weights maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth")
    p.add_argument("image", type=Path, help="an image file")
    p.add_argument("--weights", default="shapes", help='a file, or "shapes" for those that come with the package (%(default)s)')
    p.add_argument("--out", type=Path, metavar="PNG", help="where to write the picture (photo_found.png, in the current folder)")
    p.add_argument("--device", choices=["cpu", "cuda"], default="cpu",
                   help="where to compute; cuda: an NVIDIA GPU, through CuPy (%(default)s)")
    p.add_argument("--score", type=float, default=0.5, help="draw what scores at least this (%(default)s)")


def run(args):
    from ..data.images import read_image
    from ..pretrained import load_model
    from ..viz import draw_detections, save
    if args.out and args.out.suffix.lower() != ".png":
        raise ConfigError(f"--out {args.out}: pictures are written as PNG; give a name that ends in .png")
    if not 0 <= args.score <= 1:
        raise ConfigError(f"--score {args.score}: scores lie in 0..1")
    out = args.out or unused(Path(f"{args.image.stem}_found.png"))
    check_file(out)
    image = read_image(args.image)
    model, report = load_model(args.weights)
    print("\n".join(report.notes))
    result = model.to(args.device).predict(image)
    keep = result.scores >= args.score
    names = model.class_names
    width = max((len(names[label]) for label in result.labels[keep]), default=0)
    for box, label, score in zip(result.boxes[keep], result.labels[keep], result.scores[keep]):
        print(f"{names[label]:<{width}}  {score:.3f}   box " + " ".join(f"{v:.1f}" for v in box))
    print(f"{keep.sum()} objects with a score of at least {args.score}")
    masks = None if result.masks is None else result.masks[keep]
    save(draw_detections(image, result.boxes[keep], result.labels[keep], result.scores[keep], masks, class_names=names), out)
    print(f"wrote {out}")


def unused(path):
    """The path, or with -2, -3, ... before its suffix the first that does not exist."""
    k, first = 2, path
    while path.exists():
        path, k = first.with_stem(f"{first.stem}-{k}"), k + 1
    return path
