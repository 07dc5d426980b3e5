"""The XML of Pascal VOC, as plain tuples."""

import math
from typing import NamedTuple
from xml.etree import ElementTree


class Thing(NamedTuple):
    """One <object>."""

    entry: str  # "object 2 (person)", for messages
    name: str
    corners: tuple  # xmin, ymin, xmax, ymax, as they stand in the file
    difficult: bool


class Annotation(NamedTuple):
    shape: tuple  # (height, width), or None where the file has no <size>
    objects: list
    complete: bool  # every object could be read


class _NoDoctype(ElementTree.TreeBuilder):
    """A document type can define entities that expand to gigabytes; annotations need none."""

    def doctype(self, name, public, system):
        raise ValueError("it has a DOCTYPE, which is refused: entities in it may expand without bounds")


def read_annotation(path, report):
    """Read one file; None after a report if it cannot be used at all. Objects with a fault are reported and left out."""
    try:
        root = ElementTree.fromstring(path.read_bytes(), ElementTree.XMLParser(target=_NoDoctype()))
    except FileNotFoundError:
        report(path, "", "is not there")
    except OSError as error:
        report(path, "", f"cannot be read ({error.strerror or error})")
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # LookupError: an encoding that nobody knows
        report(path, "", f"is not XML that can be used: {error}")
    else:
        if root.tag != "annotation":
            report(path, "", f"has the root <{root.tag}>; <annotation> is needed")
            return None
        shape, size = None, root.find("size")
        if size is not None:
            sides = _numbers(size, ("height", "width"), lambda problem: report(path, "size", problem))
            shape = tuple(map(int, sides)) if sides and all(math.isfinite(side) for side in sides) else None
        objects = [_thing(element, k, path, report) for k, element in enumerate(root.findall("object"), 1)]
        return Annotation(shape, [thing for thing in objects if thing is not None], None not in objects)
    return None


def _thing(element, k, path, report):
    name = (element.findtext("name") or "").strip()
    entry = f"object {k}" + (f" ({name})" if name else "")
    if not name:
        report(path, entry, "has no <name>")
        return None
    box = element.find("bndbox")
    if box is None:
        report(path, entry, "has no <bndbox>")
        return None
    corners = _numbers(box, ("xmin", "ymin", "xmax", "ymax"), lambda problem: report(path, entry, problem))
    return corners and Thing(entry, name, corners, (element.findtext("difficult") or "").strip() == "1")


def _numbers(element, names, complain):
    """The numbers of these children, or None after a complaint. NaN is a number here: the check of boxes names it."""
    values = []
    for name in names:
        text = element.findtext(name)
        try:
            values.append(float(text))
        except TypeError:
            complain(f"has no <{name}>")
            return None
        except ValueError:
            complain(f"<{name}> is {text!r}; a number is needed")
            return None
    return tuple(values)
