"""What every source has: opening by name, parts, splits, names, fingerprints, a class of one's own."""

import pickle
import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tiny_sets
from tiny_sets import BLOCK, MAKE, block_mask, write_image

from nprcnn.data import Shapes, Source, Subset, interface, open_source, split_source
from nprcnn.data.check import check_set
from nprcnn.data.sources import parse
from nprcnn.errors import ConfigError, DataError


class Counter(Source):
    """A source that says which image was asked for."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        return i, {"image_id": i}


@pytest.mark.parametrize("text, expected", [
    ("coco:a.json", ("coco", "a.json", {})),
    ("coco:C:/a.json,images=b c/d", ("coco", "C:/a.json", {"images": "b c/d"})),
    ("labels:odd, name,held_out=5,part=train", ("labels", "odd, name", {"held_out": 5, "part": "train"})),
    ("shapes:200,seed=3,difficulty=easy", ("shapes", "200", {"seed": 3, "difficulty": "easy"})),
    ("shapes:7,seed=held_out", ("shapes", "7", {"seed": "held_out"})),
])
def test_parse(text, expected):
    assert parse(text) == expected


def test_split_parts_are_disjoint_whole_and_the_same_everywhere():
    train, held_out = split_source(Counter(20), 6, seed=3)
    assert sorted(train.indices + held_out.indices) == list(range(20)) and len(held_out) == 6
    assert held_out.indices == [1, 2, 4, 14, 16, 17]  # RandomState(3).permutation(20)[:6], sorted; a frozen stream
    assert [held_out[i][0] for i in range(6)] == held_out.indices and held_out.name(1) == "image 2"
    assert split_source(Counter(20), 6, seed=4)[1].indices != held_out.indices
    with pytest.raises(ConfigError, match="21"):
        split_source(Counter(20), 21)
    with pytest.raises(ConfigError):
        Subset(Counter(3), [3])
    with pytest.raises(IndexError):
        held_out[6]
    assert len(list(held_out)) == 6


def test_options_of_a_part_are_a_split():
    train, held_out = (open_source(f"shapes:20,held_out=6,split_seed=3,part={part}") for part in ("train", "held_out"))
    expected = split_source(Counter(20), 6, seed=3)
    assert (train.indices, held_out.indices) == (expected[0].indices, expected[1].indices)
    assert open_source("shapes:20", held_out=6, split_seed=3, part="train").fingerprint() == train.fingerprint() != held_out.fingerprint()


@pytest.mark.parametrize("kind", MAKE)
def test_fingerprints_follow_the_annotations_not_the_place_nor_the_pixels(kind, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    first = open_source(MAKE[kind](tmp_path / "one")).fingerprint()
    assert re.fullmatch("[0-9a-f]{16}", first)
    spec = MAKE[kind](tmp_path / "two")
    assert open_source(spec).fingerprint() == first
    for file in (tmp_path / "two").rglob("*"):  # other pixels
        if file.is_file() and file.parent.name in ("images", "JPEGImages", "two") and file.suffix in (".png", ".jpg"):
            write_image(file, seed=9)
    assert open_source(spec).fingerprint() == first
    changes = {"coco": ("set.json", '"category_id": 4', '"category_id": 9'), "voc": ("Annotations/a.xml", "<xmin>6", "<xmin>7"),
               "labelme": ("a.json", "34, 6", "34, 7"), "via": ("via.json", '"r": 4', '"r": 5')}
    if kind in changes:
        name, old, new = changes[kind]
        text = (tmp_path / "two" / name).read_text()
        assert old in text
        (tmp_path / "two" / name).write_text(text.replace(old, new, 1))
    elif kind == "folder":
        (tmp_path / "two" / "a.png").rename(tmp_path / "two" / "c.png")
    else:
        name = "labels/a.png" if kind == "labels" else "a/masks/1.png"
        tiny_sets.write_numbers(tmp_path / "two" / name, block_mask((1, 1, 5, 5)))
    assert open_source(spec).fingerprint() != first


def test_shapes_are_the_built_in_scenes():
    source = open_source("shapes:3,seed=5,difficulty=easy,size=64")
    assert source.class_names == Shapes.class_names and len(source) == 3
    np.testing.assert_equal(source[2], Shapes(3, 5, "easy", 64)[2])
    held_out = open_source("shapes:3,seed=held_out")
    np.testing.assert_equal(held_out[0], Shapes.held_out(3)[0])
    assert len({source.fingerprint(), held_out.fingerprint(), open_source("shapes:3").fingerprint()}) == 3


def class_file(whole=False):
    """The example in the documentation of the interface, as a reader would copy it; `whole`: with the two methods that follow it."""
    text = interface.__doc__ if whole else interface.__doc__.partition("Written to cells.py")[0]
    code = [line for line in text.split("\n") if line.startswith("    ") or not line]
    code = textwrap.dedent("\n".join(code)).strip()
    assert code.startswith("from pathlib") and 10 <= len([line for line in code.split("\n") if line]) <= (20 if whole else 16)
    return code + "\n"


def test_the_class_in_the_documentation_runs(tmp_path):
    (tmp_path / "cells.py").write_text(class_file())
    for name in "ab":
        write_image(tmp_path / "photos" / f"{name}.jpg")
        np.save(tmp_path / "photos" / f"{name}.npy", [block_mask()])
    spec = f"python:{tmp_path / 'cells.py'}:{tmp_path / 'photos'}"
    source = open_source(spec)
    assert len(source) == 2 and source.class_names == ("background", "cell")
    np.testing.assert_array_equal(source[1][1]["boxes"], [BLOCK])
    np.testing.assert_equal(pickle.loads(pickle.dumps(source))[1], source[1])
    assert check_set(spec, progress=False).faults == []
    np.save(tmp_path / "photos" / "b.npy", [block_mask() * 0])
    (fault,) = check_set(spec, progress=False).faults
    assert fault.file == "image 1" and "mask 0 is empty" in fault.problem
    (tmp_path / "photos" / "b.npy").unlink()
    (fault,) = check_set(spec, progress=False).faults
    assert fault.file == "image 1" and "FileNotFoundError" in fault.problem


def test_a_worker_process_can_receive_a_class_of_ones_own(tmp_path):
    """As with the start method "spawn": nothing but the pickle reaches the other process."""
    (tmp_path / "cells.py").write_text(class_file())
    write_image(tmp_path / "a.jpg")
    np.save(tmp_path / "a.npy", [block_mask()])
    (tmp_path / "pickle").write_bytes(pickle.dumps(open_source(f"python:{tmp_path / 'cells.py'}:{tmp_path}")))
    code = f"import pickle; print(pickle.load(open({str(tmp_path / 'pickle')!r}, 'rb'))[0][1]['boxes'].tolist())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == str([[float(v) for v in BLOCK]]), run.stderr


def test_the_fingerprint_of_a_class_of_ones_own(tmp_path):
    """It sees what the class says: with the two methods of the documentation names and annotations, without them the number of images
    and the text of the file."""
    file = tmp_path / "cells.py"
    file.write_text(class_file())

    def now():
        return open_source(f"python:{file}:{tmp_path}").fingerprint()

    for name in "ab":
        write_image(tmp_path / f"{name}.jpg")
        np.save(tmp_path / f"{name}.npy", [block_mask()])
    first = now()
    np.save(tmp_path / "b.npy", [block_mask((1, 1, 5, 5))])
    assert now() == first
    file.write_text(class_file(whole=True))
    second = now()
    assert second != first  # another file
    np.save(tmp_path / "b.npy", [block_mask()])
    third = now()
    assert third != second
    write_image(tmp_path / "b.jpg", seed=9)
    assert now() == third
    for suffix in (".jpg", ".npy"):
        (tmp_path / f"b{suffix}").rename(tmp_path / f"c{suffix}")
    assert now() != third
    assert len(open_source(f"python:{file}:{tmp_path}")[1][1]["boxes"]) == 1


@pytest.mark.parametrize("code, message", [
    ("def (", "own.py: line 1: the class cannot be made, SyntaxError"),
    ("import nprcnn\nraise ValueError('why')", "own.py: line 2: the class cannot be made, ValueError: why"),
    ("class Own(Source):\n    def __init__(self, folder): pass", "own.py: the class cannot be made, TypeError: .*missing 1 required"),
    ("class Own(Source):\n    def __getitem__(self, i):\n        return {}[i]", "own.py: line 4: image 3 cannot be read, KeyError: 3")])
def test_what_a_class_of_ones_own_raises_names_file_and_line(tmp_path, code, message):
    head = "" if "Source" not in code else "from nprcnn.data import Source\n"
    (tmp_path / "own.py").write_text(head + code)
    with pytest.raises(DataError, match=message):
        open_source(f"python:{tmp_path / 'own.py'}")[3]


def test_a_file_without_a_class_of_that_kind(tmp_path):
    (tmp_path / "none.py").write_text("from nprcnn.data import Source\n")
    with pytest.raises(DataError, match="defines 0 classes"):
        open_source(f"python:{tmp_path / 'none.py'}")


def test_what_is_wrong_with_a_target_of_ones_own_is_a_fault(tmp_path):
    (tmp_path / "own.py").write_text(textwrap.dedent("""
        import numpy as np
        from nprcnn.data import Source

        class Own(Source):
            def __len__(self):
                return 2
            def __getitem__(self, i):
                return np.zeros((9, 9, 3), np.uint8), {"boxes": np.array([[0, 0, 5, 5 + 9 * i]], np.float32), "labels": np.array([1])}
    """))
    (fault,) = check_set(f"python:{tmp_path / 'own.py'}", progress=False).faults
    assert fault.file == "image 1" and "leaves the image" in fault.problem


def test_a_folder_with_several_json_files_asks_which(tmp_path):
    tiny_sets.coco(tmp_path)
    tiny_sets.write_json(tmp_path / "other.json", {})
    with pytest.raises(DataError, match="other.json, set.json"):
        open_source(f"coco:{tmp_path}")


def test_unknown_split_names_those_that_are_there(tmp_path):
    (tmp_path / "ImageSets" / "Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Segmentation" / "val.txt").write_text("a\n")
    with pytest.raises(ConfigError, match="no split 'test'.* has val"):
        open_source(tiny_sets.voc(tmp_path), split="test")
