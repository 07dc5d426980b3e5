"""What several commands share: types of arguments, and the look at where results will go before the work that makes them."""

import argparse
import ast
import json
import os

from ..errors import ConfigError, DataError


def seed_number(text):
    """argparse type: an integer that random generators accept."""
    value = int(text)
    if not 0 <= value < 2 ** 31:
        raise argparse.ArgumentTypeError(f"{text} is outside 0..2147483647")
    return value


def positive_number(text):
    """argparse type: how many of something, in 1..1000000 (more would not fit into the memory, or into a lifetime)."""
    value = int(text)
    if not 1 <= value <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{text} is outside 1..1000000")
    return value


def setting(text, option="--set"):
    """"min_size=400" -> ("min_size", 400). option: what the message calls it where it is nothing like that."""
    name, equals, value = text.partition("=")
    if not (name.isidentifier() and equals):
        raise ConfigError(f"{option} {text}: give NAME=VALUE, such as {'flip=0.5' if option == '--augment' else 'min_size=400'}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def check_folder(path, option="--out"):
    """Raise ConfigError if `path` cannot be a folder to write into, which may still have to be made."""
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{option} {path} is a file; give a folder")
    first = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not first.is_dir():
        raise ConfigError(f"{option} {path} cannot be made: {first} is a file")
    _check_writable(first, f"{option} {path}")


def check_file(path):
    """Raise ConfigError if `path` cannot be a file to write."""
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; give the name of a file to write")
    if not path.parent.is_dir():
        raise ConfigError(f"{path} cannot be written: there is no folder {path.parent}; make it first")
    _check_writable(path if path.exists() else path.parent, path)


def _check_writable(place, wanted):
    """ConfigError now where there is no permission to write, rather than after an hour's work."""
    if not os.access(place, os.W_OK):
        raise ConfigError(f"{wanted} cannot be written: there is no permission to write to {place}; give another place")


def check_images(source, text):
    """Raise DataError for a data set without images; `text` is how the user named it."""
    if not len(source):
        raise DataError(f"{text} holds no images")


def write_json(path, content):
    """The file appears whole or not at all."""
    from ..data.images import write_whole
    write_whole(path, lambda file: file.write((json.dumps(content, indent=1) + "\n").encode()))
