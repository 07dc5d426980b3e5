"""nprcnn data check"""

import argparse
from pathlib import Path

from .common import check_file, positive_number, write_json


def add(command):
    """Declare the arguments."""
    from ..data import sources

    p = command("data", run, "check a whole data set: count what there is and list every fault (exit code 1 if any)",
                "nprcnn data check coco:annotations.json --out sheet.png")
    kinds, options = sources.__doc__.split("\n\n")[1:]
    p.formatter_class = argparse.RawDescriptionHelpFormatter
    p.epilog = f"kinds of data sets:\n{kinds}\n\n{options}\n{p.epilog}"
    p.add_argument("what", choices=["check"], help="what to do")
    p.add_argument("data", metavar="KIND:PATH", help="the data set")
    p.add_argument("--out", type=Path, metavar="PNG", help="draw a contact sheet: images with their boxes, masks and classes")
    p.add_argument("--count", type=positive_number, default=24, help="of images on it, evenly spread over the set (%(default)s)")
    p.add_argument("--json", type=Path, metavar="FILE", help="write counts and faults to a file, too")


def run(args):
    from ..contact_sheet import contact_sheet, spread, thumbnail
    from ..data.check import check_set, format_findings, summary
    from ..errors import ConfigError
    from ..viz import save
    for path in (args.out, args.json):
        if path:
            check_file(path)
    if args.out and args.out.suffix.lower() != ".png":
        raise ConfigError(f"--out {args.out}: pictures are written as PNG; give a name that ends in .png")
    thumbnails, chosen = [], []

    def look(i, source, image, target, faults):
        if i == 0:
            chosen.extend(spread(len(source), args.count))
        if args.out and i in chosen and image is not None:
            objects = "" if target is None or "labels" not in target else f", {len(target['labels'])} objects"
            title = f"{short(source.name(i))}  {image.shape[1]}x{image.shape[0]}{objects}"
            thumbnails.append(thumbnail(image, target, title, bool(faults)))

    findings = check_set(args.data, look)
    print(format_findings(findings))
    if args.json:
        write_json(args.json, {"data": args.data, **summary(findings)})
    if args.out and thumbnails:
        save(contact_sheet(thumbnails, findings.class_names), args.out)
        print(f"wrote {args.out}")
    return 1 if findings.faults else 0


def short(name, length=20):
    """A file's name without folders, its middle left out where it is long."""
    name = name.rsplit("/", 1)[-1]
    return name if len(name) <= length else f"{name[:length // 2 - 1]}..{name[-length // 2 + 1:]}"
