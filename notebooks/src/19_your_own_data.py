# %% [markdown]
# # 19  Your own data, fine-tuned
#
# Nobody needs a network that finds circles. You have photos of your own, some dozens of them, and you have drawn around
# what matters to you. From there to a detector is a way with few surprises in the network and many in the data: a label that
# is off by one, a box that forgot to move, a validation image that was trained on.
#
# Here we go the whole way in small. We write a data set to disk, with three classes that the shipped weights have never seen,
# check it, look at it, change it at random, and then train on 24 photos three times: from scratch, from the shipped
# weights, and from the shipped weights with the backbone frozen.
#
# **You need:** notebook [12](12_training.ipynb) for the loop of a training, [13](13_detections_and_ap.ipynb) for AP. **You
# will be able to:** bring any annotations into nprcnn, find their faults before the training does, augment without breaking
# them, and fine-tune, stop and resume. About 90 minutes with the exercises.
#
# ## Where we are
#
# Around the network. Nothing inside of it is new.

# %%
import contextlib
import copy
import io
import json
import os
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image, ImageDraw

import nprcnn
from nprcnn import course, viz
from nprcnn.cli import main
from nprcnn.contact_sheet import contact_sheet, thumbnail
from nprcnn.course.own_data import check_crop_target, check_flip_target, check_labels_of_ids, draw_way
from nprcnn.data import Shapes, check_target, open_source, target_from_masks
from nprcnn.data.check import check_set, format_findings
from nprcnn.data.loader import Loader
from nprcnn.data.transforms import (Augment, augment, brightness, crop, crop_or_pad, flip_horizontal, flip_vertical, quarter_turn,
                                    resize)
from nprcnn.errors import DataError
from nprcnn.evaluate import evaluate
from nprcnn.ops.boxes import box_iou
from nprcnn.train import SGD, train, train_in_folder
from nprcnn.train.checkpoint import read_checkpoint
from nprcnn.train.gradients import batch_gradients, make_parts
from nprcnn.train.start import freeze, start_from
from nprcnn.weights import read_weights

course.style()
draw_way()
plt.rcParams["figure.constrained_layout.use"] = False     # viz places its panels itself
nprcnn.use("numpy")                                       # these arrays are too small for compiled kernels to pay off
nprcnn.set_num_threads(1)

work = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
os.chdir(work.name)                                       # all files of this notebook go into a new folder

# %% [markdown]
# | what | shape | remark |
# |---|---|---|
# | `source[i]` | image (H, W, 3) uint8, target a dict | whatever the files look like |
# | `target["boxes"]` | (n, 4) float32 | x1, y1, x2, y2 in pixels |
# | `target["labels"]` | (n,) int64 | 1 .. K - 1; 0 is the background |
# | `target["masks"]` | (n, H, W) uint8 | 0 or 1 |
# | `loader.batch(step)` | B images, B targets, B indices | a function of (seed, step) |
# | rows of the class layer | (K, 128) | of another set of classes: they begin anew |
# | a checkpoint | weights, velocities, the step | and nothing else |
#
# ## 1  A data set, as you would have it
#
# You would have photos. We make some: a built-in scene is the ground, with its circles and squares as clutter *that is not
# annotated*, and on it we draw moons, hearts and arrows.

# %%
SIZE = 64
CATEGORIES = {"heart": 7, "moon": 3, "arrow": 12}         # name: id, in the file's order; as in COCO, the ids have gaps

def outline(kind):
    """Points (n, 2) around a figure of radius about 1."""
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    if kind == "heart":
        return np.stack([np.sin(t) ** 3, -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) / 16], axis=1)
    if kind == "arrow":
        return np.array([[-1, -0.3], [0.1, -0.3], [0.1, -0.8], [1, 0], [0.1, 0.8], [0.1, 0.3], [-1, 0.3]])
    a, tip = np.linspace(0.7, 2 * np.pi - 0.7, 24), np.array([np.cos(0.7), np.sin(0.7)])
    radius, b = np.hypot(tip[0] - 0.55, tip[1]), np.arctan2(tip[1], tip[0] - 0.55)
    b = np.linspace(2 * np.pi - b, b, 20)                 # back along a circle around (0.55, 0)
    return np.concatenate([np.stack([np.cos(a), np.sin(a)], axis=1),
                           np.stack([0.55 + radius * np.cos(b), radius * np.sin(b)], axis=1)])

def make_photo(i):
    """A photo, and for each figure in it a name, its outline (n, 2) and its mask (SIZE, SIZE)."""
    rng = np.random.default_rng([19, i])
    scene, target = clutter[i]
    scene = scene // 16 * 16 + 8                          # fewer colours, so that the pictures of this notebook stay small
    image, taken, figures = Image.fromarray(scene), target["masks"].any(axis=0), []
    for _ in range(rng.integers(1, 4)):
        name = str(rng.choice(list(CATEGORIES)))
        for _ in range(20):                               # a place that is free
            radius, angle = rng.uniform(0.15, 0.24) * SIZE, rng.uniform(0, 2 * np.pi)
            turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
            points = radius * outline(name) @ turn + rng.uniform(radius, SIZE - radius, 2)
            large = Image.new("L", (4 * SIZE, 4 * SIZE))
            ImageDraw.Draw(large).polygon([tuple(p) for p in 4 * points], fill=255)
            cover = large.resize((SIZE, SIZE), Image.Resampling.BOX)
            mask = np.asarray(cover) >= 128
            if not (mask & taken).any():
                colours = rng.integers(0, 256, (6, 3))
                unlike = np.abs(colours - scene.mean(axis=(0, 1))).sum(axis=1).argmax()
                image.paste(tuple(colours[unlike].tolist()), mask=cover)
                taken = taken | mask
                figures.append((name, points, mask))
                break
    return image, figures

clutter = Shapes(48, 7, "easy", size=SIZE)
photos = [make_photo(i) for i in range(48)]
print(f"{len(photos)} photos, {sum(len(figures) for _, figures in photos)} figures")

# %% [markdown]
# And you would have annotations, in the form that your tool writes. Two usual ones:
#
# - **COCO** (Lin et al. 2014, arXiv 1405.0312): one json for all. An object is a box `[x, y, width, height]`, outlines as lists
#   x1, y1, x2, y2, ..., the id of its category, and the id of its image.
# - **Label images**: beside each photo a PNG with the number of the object in each pixel, 0 for the ground. Its classes, if
#   there are several, have to stand elsewhere. We put them in a text file, a word an object.

# %%
for part in ("images", "labels"):
    Path("my_set", part).mkdir(parents=True, exist_ok=True)

coco = {"images": [], "annotations": [],
        "categories": [{"id": number, "name": name} for name, number in CATEGORIES.items()]}
for i, (image, figures) in enumerate(photos):
    image.save(f"my_set/images/photo{i:02}.png")
    coco["images"].append({"id": 100 + i, "file_name": f"photo{i:02}.png", "width": SIZE, "height": SIZE})
    numbers = np.zeros((SIZE, SIZE), np.uint8)
    for k, (name, points, mask) in enumerate(figures, 1):
        numbers[mask] = k
        (x1, y1), (x2, y2) = points.min(axis=0), points.max(axis=0)
        coco["annotations"].append({
            "id": len(coco["annotations"]) + 1, "image_id": 100 + i, "category_id": CATEGORIES[name], "iscrowd": 0,
            "bbox": [round(float(v), 2) for v in (x1, y1, x2 - x1, y2 - y1)],
            "segmentation": [points.ravel().round(2).tolist()]})
    Image.fromarray(numbers).save(f"my_set/labels/photo{i:02}.png")
    Path(f"my_set/labels/photo{i:02}.txt").write_text("\n".join(name for name, *_ in figures))
Path("my_set/annotations.json").write_text(json.dumps(coco))

first = coco["annotations"][0]
print("the first annotation:", {**first, "segmentation": f"{len(first['segmentation'][0]) // 2} points"})
print("the text file of photo 0:", Path("my_set/labels/photo00.txt").read_text().split())

# %%
figure, axes = plt.subplots(1, 3, figsize=(8.2, 2.9), layout="constrained")
image, figures = photos[0]
axes[0].imshow(image, extent=(0, SIZE, SIZE, 0))
axes[0].set_title("images/photo00.png")
axes[1].imshow(np.asarray(Image.open("my_set/labels/photo00.png")), extent=(0, SIZE, SIZE, 0), cmap="viridis")
axes[1].set_title("labels/photo00.png")
for k, (name, points, mask) in enumerate(figures, 1):
    y, x = np.argwhere(mask).mean(axis=0)
    axes[1].text(x, y, str(k), color="white" if k < len(figures) else "black", ha="center", va="center", fontsize=14)
axes[2].imshow(image, extent=(0, SIZE, SIZE, 0), alpha=0.45)
for _, points, _ in figures:
    axes[2].plot(*np.vstack([points, points[:1]]).T, ".-", color="black", markersize=3, linewidth=0.8)
axes[2].set_title("the outlines in annotations.json");

# %% [markdown]
# ## 2  A source
#
# The training does not care about files. It asks a **source**: `len(source)`, `source.class_names`, `source[i]`. For the
# usual forms there are sources. `open_source("KIND:PATH")` is what `--data` takes on the command line:

# %%
as_coco = open_source("coco:my_set/annotations.json")
as_labels = open_source("labels:my_set")
for name, source in (("coco", as_coco), ("labels", as_labels)):
    image, target = source[0]
    print(f"{name:6} {len(source)} images, classes {source.class_names}")
    print("      ", {key: value.shape if isinstance(value, np.ndarray) else value for key, value in target.items()},
          "labels", target["labels"].tolist())
print("category ids by label:", as_coco.category_ids)

# %% [markdown]
# Two things happened to the classes. The ids 3, 7 and 12 have become the **labels** 1, 2 and 3, by ascending id and not
# in the order of the file: the class layer has one row a label, and no rows for gaps. (Notebook 12, section 8, has shown what
# labels cost that are off by one.) And the label images have lost their classes: the kind `labels` knows one only.
#
# Nothing reads our text files. So we write a source of our own, ten lines, into a file:

# %%
Path("mine.py").write_text('''
from pathlib import Path
import numpy as np
from PIL import Image
from nprcnn.data import Source, read_image, target_from_masks

class Mine(Source):
    class_names = ("background", "moon", "heart", "arrow")

    def __init__(self, folder):
        self.files = sorted(Path(folder, "images").glob("*.png"))
        self.labels = [Path(folder, "labels", file.name) for file in self.files]

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        words = self.labels[i].with_suffix(".txt").read_text().split()
        masks = np.array(Image.open(self.labels[i])) == np.arange(1, len(words) + 1)[:, None, None]
        return read_image(self.files[i]), target_from_masks(masks, [self.class_names.index(w) for w in words], image_id=i)
''')
mine = open_source("python:mine.py:my_set")               # what follows the file's name is handed to the class

ious, shifts = [], []
for (_, a), (_, b) in zip(as_coco, mine):
    assert a["labels"].tolist() == b["labels"].tolist()
    ious += [(p & q).sum() / (p | q).sum() for p, q in zip(a["masks"], b["masks"])]
    shifts += np.abs(a["boxes"] - b["boxes"]).max(axis=1).tolist()
print(f"{len(ious)} objects, the same labels; IoU of the two masks: mean {np.mean(ious):.3f}, smallest {min(ious):.3f}")
print(f"corners of the boxes: at most {max(shifts):.2f} pixels apart")

# %% [markdown]
# The same objects, nearly. From an outline COCO's rule makes another mask than our drawing program, by a pixel here and there
# at the border, and the box of the outline ends within a pixel, that of a mask on its edge. Neither is wrong. But **train and
# measure with the same form**: the difference counts against you in the AP at high IoU.
#
# ## 3  Check before you train
#
# Annotations are made by people in the evening. We plant six faults in a copy, all of them usual ones:

# %%
broken = copy.deepcopy(coco)
a = broken["annotations"]
x, y, w, h = a[3]["bbox"]
a[3]["bbox"] = [x, y, x + w, y + h]                       # 1. x1, y1, x2, y2 instead of x, y, width, height
a[8]["segmentation"] = [a[8]["segmentation"][0][:4]]      # 2. somebody clicked twice
a[11]["category_id"] = 4                                  # 3. falls into a gap
a[15]["id"] = a[14]["id"]                                 # 4. two files were joined
broken["images"][5]["file_name"] = "photo05.PNG"          # 5. a system that tells capitals apart
broken["images"][9]["width"] = 2 * SIZE                   # 6. the photo was made smaller afterwards
Path("my_set/broken.json").write_text(json.dumps(broken))
print(format_findings(check_set("coco:my_set/broken.json", progress=False)))

# %% [markdown]
# Every fault has its file and its entry, and the mark ! where a training would stop; the others are mended as the text says.
# Fault 1 is no fault in the form, so it can only be suspected. On the command line that was
# `nprcnn data check coco:my_set/broken.json`. What would the training have said?

# %%
try:
    for image, target in open_source("coco:my_set/broken.json"):
        pass
except DataError as error:
    print(error)

# %% [markdown]
# It stops at the first one, for it is better to stop than to train on half of the truth. We mend the six:

# %%
mended = copy.deepcopy(broken)
for k in (3, 8, 11, 15):
    mended["annotations"][k] = coco["annotations"][k]
for k in (5, 9):
    mended["images"][k] = coco["images"][k]
Path("my_set/broken.json").unlink()
Path("my_set/mended.json").write_text(json.dumps(mended))
findings = check_set("coco:my_set/mended.json", progress=False)
assert not findings.faults
print(format_findings(findings))

# %% [markdown]
# Read these numbers, too: are the classes balanced? How large are the objects? Here all are "small" for COCO (below 32 pixels). A
# model whose smallest anchors have 32 pixels would be a bad choice (notebook 12, section 7); the tiny one begins with 16.
#
# **What no program finds** is an annotation that is right in form and wrong. For that there are eyes, and a contact sheet:

# %%
a = mended["annotations"]
one = next(k for k, row in enumerate(a) if row["image_id"] >= 104 and row["category_id"] == CATEGORIES["moon"])
a[one]["category_id"] = CATEGORIES["heart"]               # wrong, and no fault
Path("my_set/mended.json").write_text(json.dumps(mended))
source = open_source("coco:my_set/mended.json")
around = a[one]["image_id"] - 100
shown = range(around - 2, around + 2)
print("faults found:", len(check_set("coco:my_set/mended.json", progress=False).faults))
contact_sheet([thumbnail(*source[i], source.name(i)) for i in shown], source.class_names)

# %% [markdown]
# Which one is it? Look before you run the next cell. (`nprcnn data check ... --out sheet.png` draws the same picture.)

# %%
print(f"{source.name(around)}, annotation {a[one]['id']}: a moon that is called a heart")
Path("my_set/mended.json").unlink()

# %% [markdown]
# ## 4  Augmentation: the target moves along
#
# 24 photos are few. Turn one over, and you have another one, for nothing; but only if **boxes and masks turn with it**. Pixel
# (row, column) goes to (row, W - 1 - column). A box is no set of pixels but a pair of edges in continuous coordinates, so
#
# $$x_1' = W - x_2, \qquad x_2' = W - x_1 . \tag{1}$$
#
# The edges change places, and there is no -1. Naively:

# %%
def flip_naive(image, target):
    height, width = image.shape[:2]
    new_image, new_masks = np.zeros_like(image), np.zeros_like(target["masks"])
    for row in range(height):
        for column in range(width):
            new_image[row, width - 1 - column] = image[row, column]
            new_masks[:, row, width - 1 - column] = target["masks"][:, row, column]
    boxes = [(width - x2, y1, width - x1, y2) for x1, y1, x2, y2 in target["boxes"]]
    return new_image, {**target, "boxes": np.array(boxes, np.float32), "masks": new_masks}

image, target = mine[0]
by_hand, by_library = flip_naive(image, target), flip_horizontal(image, target)
assert np.array_equal(by_hand[0], by_library[0])
for key in ("boxes", "labels", "masks"):
    assert np.array_equal(by_hand[1][key], by_library[1][key])
tight = [np.array_equal(target_from_masks(t["masks"], t["labels"], 0)["boxes"], t["boxes"]) for _, t in (by_hand, by_library)]
print("the same image, boxes and masks; boxes still tight around their masks:", tight)

# %% [markdown]
# With boxes that are tight around their masks we have a test for any such function: *afterwards they must be, too*. All the
# changes that nprcnn has, and one object followed through them:

# %%
big = max(range(len(mine)), key=lambda i: len(mine[i][1]["labels"]) * (i < 12))
image, target = mine[big]
left, top = (int(v) for v in target["boxes"][0, :2] + 6)
window = (min(left, 24), min(top, 24), min(left, 24) + 40, min(top, 24) + 40)
small, small_target = resize(image, target, (40, 40))
views = {
    "as it is": (image, target),
    "flip_horizontal": flip_horizontal(image, target),
    "flip_vertical": flip_vertical(image, target),
    "quarter_turn": quarter_turn(image, target),
    "crop to 40 x 40": crop(image, target, window),
    "resize to 40, pad": crop_or_pad(small, small_target, (SIZE, SIZE)),
    "resize to 96, crop": crop_or_pad(*resize(image, target, (96, 96)), (SIZE, SIZE), (0.2, 0.2)),
    "brightness 0.5": brightness(image, target, 0.5),
}
print({name: len(moved["labels"]) for name, (_, moved) in views.items()})
figure, axes = viz.image_panels(8, SIZE, SIZE, columns=4, side=190)
for ax, (name, (view, moved)) in zip(axes, views.items()):
    viz.draw_detections(view, moved["boxes"], masks=moved["masks"], ax=ax, title=name)
figure

# %% [markdown]
# A colour is an object (its place in the target); printed is how many there are. Look at the crop: the box of an object that is
# cut goes around what is left of it. Had nothing been left, it would be gone from the target. And if we forget the target? We flip
# the image alone, in the usual half-awake way:

# %%
flipped, moved = flip_horizontal(image, target)
assert check_target(flipped.shape[:2], target, len(mine.class_names), 0) is None     # every training step asks: no complaint
overlap = np.concatenate([box_iou(t["boxes"], flip_horizontal(p, t)[1]["boxes"]).diagonal() for p, t in mine])
print(f"IoU of the forgotten box with the right one: mean over {len(overlap)} figures {overlap.mean():.2f}")
figure, axes = viz.image_panels(2, SIZE, SIZE, side=190)
viz.draw_detections(flipped, moved["boxes"], masks=moved["masks"], ax=axes[0], title="right")
viz.draw_detections(flipped, target["boxes"], masks=target["masks"], ax=axes[1], title="the target forgotten")
figure

# %% [markdown]
# No error, no warning: every box is inside of the image, every mask has its size. The training would only
# be worse, without a word. So **look at what comes out of your augmentation**, with its targets drawn.
#
# `augment` draws at random among the changes that an `Augment` allows. The same generator gives the same picture:

# %%
SETTINGS = Augment(flip=0.5, flip_vertical=0.5, quarter_turns=True, scale=(0.8, 1.25), brightness=0.2)
again = [augment(image, target, SETTINGS, np.random.default_rng(3))[0] for _ in range(2)]
assert np.array_equal(*again)
figure, axes = viz.image_panels(8, SIZE, SIZE, columns=4, side=150)
for k, ax in enumerate(axes):
    view, moved = augment(image, target, SETTINGS, np.random.default_rng(k))
    viz.draw_detections(view, moved["boxes"], ax=ax, title=f"rng {k}")
figure

# %% [markdown]
# Allow only what could have been a photo of yours. Nuclei have no upside, faces do, and the digit 6 must not be turned.
#
# ## 5  The loader: a function of (seed, step)
#
# Which images does step 17 see, and how are they changed? In nprcnn the answer is a function of the seed and of 17, not of what was
# drawn before. Nothing has to be remembered: whoever wants to go on at step 17 begins there.

# %%
train_source = open_source("coco:my_set/annotations.json", held_out=24, part="train")
held_out = open_source("coco:my_set/annotations.json", held_out=24, part="held_out")
names = [{source.name(i) for i in range(len(source))} for source in (train_source, held_out)]
assert not names[0] & names[1]
print(f"{len(train_source)} photos to train on, {len(held_out)} held out, none in both")

loader = Loader(train_source, batch_size=2, seed=0, augment=SETTINGS)
for epoch in range(2):
    order = [loader.indices(step) for step in range(12 * epoch, 12 * epoch + 12)]
    assert sorted(sum(order, ())) == list(range(24))
    print(f"epoch {epoch}:", " ".join(f"{i},{j}" for i, j in order))

# %%
def same(a, b):
    """Are two batches equal in every number?"""
    return a.indices == b.indices and all(np.array_equal(p, q) for p, q in zip(a.images, b.images)) and all(
        np.array_equal(p[key], q[key]) for p, q in zip(a.targets, b.targets) for key in ("boxes", "labels", "masks"))

in_order = [batch for _, batch in zip(range(18), loader.batches())]
print("step 17 alone, from a new loader:", same(Loader(train_source, 2, 0, SETTINGS).batch(17), in_order[17]))
from_15 = [batch for _, batch in zip(range(3), loader.batches(start=15))]
print("begun at step 15:                ", [same(a, b) for a, b in zip(from_15, in_order[15:])])
with Loader(train_source, 2, 0, SETTINGS, workers=1) as other:     # another process reads and augments
    from_worker = [batch for _, batch in zip(range(2), other.batches(start=15))]
print("made by a worker process:        ", [same(a, b) for a, b in zip(from_worker, in_order[15:])])
print("another seed:                    ", same(Loader(train_source, 2, 1, SETTINGS).batch(17), in_order[17]))

# %% [markdown]
# The generator of image i at step s is `default_rng([seed, 2, s, i])`, and the order of epoch e is
# `default_rng([seed, 0, e]).permutation(...)`. That is all there is to it.
#
# ## 6  What can be taken over
#
# The shipped weights know circles, squares, triangles, rings, stars and crosses. What is that worth to somebody with moons? The
# layers up to the last know edges, colours and closed outlines; only the very last ones, **which have a row a class**, know
# names. A detector of ours, and what `start_from` loads into it:

# %%
SMALL = dict(min_size=SIZE, max_size=SIZE, rpn_pre_nms_top_n_train=150, rpn_post_nms_top_n_train=60, rpn_pre_nms_top_n_test=150,
             rpn_post_nms_top_n_test=40, box_batch_size_per_image=24, box_detections_per_img=20)

def new_model(norm, classes=train_source.class_names):
    """A tiny model with random initial values, always the same."""
    return nprcnn.maskrcnn_tiny(len(classes), norm=norm, rng=np.random.default_rng(0), class_names=classes, **SMALL)

def tuned_model(*frozen):
    """The same with the shipped weights, some parts frozen."""
    model = new_model("frozen")
    start_from(model, "shapes")
    freeze(model, frozen)
    return model

model = new_model("frozen")
print("\n".join(start_from(model, "shapes")))
theirs, own = read_weights("shapes"), model.state_dict()
print("\nthe class layer:", theirs["roi_heads.box_predictor.cls_score.weight"].shape, "in the file,",
      own["roi_heads.box_predictor.cls_score.weight"].shape, "in the model")

# %%
PARTS = {"stem": ("backbone.body.conv1", "backbone.body.bn1"), **{f"layer{k}": (f"backbone.body.layer{k}",) for k in (1, 2, 3, 4)},
         "fpn": ("backbone.fpn",), "rpn": ("rpn",), "box head": ("roi_heads.box_head",),
         "mask head": ("roi_heads.mask_head", "roi_heads.mask_predictor.conv5_mask"),
         "class and box rows": ("roi_heads.box_predictor",), "mask rows": ("roi_heads.mask_predictor.mask_fcn_logits",)}
print(f"{'part':20} numbers   from the file")
for part, prefixes in PARTS.items():
    inside = [name for name in own if name.startswith(prefixes)]
    numbers = sum(own[name].size for name in inside)
    loaded = sum(own[name].size for name in inside if name in theirs and np.array_equal(theirs[name], own[name]))
    print(f"{part:20} {numbers:7} {loaded / numbers:12.1%}")

# %% [markdown]
# All but the last layers; those begin anew as a whole, with the row of the background. They are less than one part in a hundred.
#
# Is it worth anything *before* a single step? The RPN has no classes: it asks "is here an object?" We measure how well its
# best proposal fits each figure of the held-out photos.

# %%
def proposal_fit(model):
    """For each held-out object the largest IoU with a proposal."""
    best = []
    for image, target in held_out:
        t = nprcnn.Trace()
        model.predict(image, trace=t)
        best.append(box_iou(target["boxes"], t["rpn.proposals"][0]).max(axis=1))
    return np.concatenate(best)

for name, m in (("random weights", new_model("batch")), ("shipped weights", tuned_model())):
    fit = proposal_fit(m)
    print(f"{name:15}: 40 proposals, best IoU a figure {fit.mean():.2f} on average, {(fit >= 0.5).mean():.0%} of the figures with 0.5")

# %% [markdown]
# That is what is taken over: the shipped network already points at things that it has no name for.
#
# Which rows are taken over is decided by the **names** of the classes, which stand in the file. Here two of six are known, in other
# places:

# %%
six = ("background", "moon", "star", "circle", "leaf", "key", "cup")
by_name = new_model("frozen", six)
print("\n".join(start_from(by_name, "shapes")))
row = "roi_heads.box_predictor.cls_score.weight"
print("row of 'circle' (3) equal to the file's (1):", np.array_equal(by_name.state_dict()[row][3], theirs[row][1]))

# %% [markdown]
# One trap is left: a file without names (.npz, .pth). With as many classes as yours, its rows are taken over by **number**, and the
# note says so. If the layers train, they will forget. If you froze them, a moon would stay a circle.
#
# ## 7  Freezing
#
# A frozen part keeps its weights. Three reasons: few images cannot spoil it; where all layers below are frozen, too, **its
# backward pass is not needed**; and it has no velocities. How much time does that save? The backward pass alone, for four
# photos, and for one of them enlarged to 256 pixels:

# %%
body = ("stem", "layer1", "layer2", "layer3", "layer4")
choices = {"nothing": (), "stem, layer1, layer2": body[:3], "the five stages": body, "backbone": ("backbone",)}
batch = Loader(train_source, 4, 0).batch(0)
models = {name: tuned_model(*frozen) for name, frozen in choices.items()}

def time_backward(images, size):
    """{name: seconds of processor time of one backward pass}, the shorter of two."""
    times = {name: [] for name in models}
    for _ in range(2):                                    # in turn, so that a busy moment hits all
        for name, m in models.items():
            m.min_size = m.max_size = size
            _, cache = m.losses(list(batch.images[:images]), list(batch.targets[:images]), np.random.default_rng(0))
            m.zero_grad()
            start = time.process_time()
            m.backward(cache)
            times[name].append(time.process_time() - start)
    return {name: min(values) for name, values in times.items()}

large, small = time_backward(1, 256), time_backward(4, SIZE)
print(f"{'frozen':22} numbers that train   backward: 4 photos of 64 pixels   1 of 256")
for name, m in models.items():
    print(f"{name:22} {sum(p.data.size for p in m.parameters() if p.trainable):18} "
          f"{small[name] / small['nothing']:33.0%} {large[name] / large['nothing']:11.0%}")

# %% [markdown]
# On small pictures the heads cost most, and they always train. The larger the picture, the more of the time is the backbone's. ("backbone"
# means the five stages and the pyramid above them. The pyramid's own gradients are still computed, and thrown away.)
#
# Where does the gradient pull at the first step? Beside it, the same norms as a part of the weights' own:

# %%
def norms(model):
    """{part: (norm of the gradient, norm of the weights)}; 0 where nothing trains."""
    result = {}
    for part, prefixes in PARTS.items():
        inside = [p for name, p in model.named_parameters() if name.startswith(prefixes)]
        grads = [p.grad for p in inside if p.trainable and p.grad is not None]
        result[part] = tuple(float(np.sqrt(sum((x.astype(float) ** 2).sum() for x in xs))) for xs in (grads, [p.data for p in inside]))
    return result

found = {name: norms(models[name]) for name in ("nothing", "backbone")}
figure, axes = plt.subplots(1, 2, figsize=(8.6, 3.1), layout="constrained", sharey=True)
places = np.arange(len(PARTS))
for k, (name, values) in enumerate(found.items()):
    grad, weight = np.array(list(values.values())).T
    colour = (course.FORWARD, course.YELLOW)[k]
    axes[0].barh(places + 0.4 * k - 0.2, grad, 0.38, color=colour, label=f"frozen: {name}")
    axes[1].barh(places + 0.4 * k - 0.2, grad / weight, 0.38, color=colour)
axes[0].set(yticks=places, yticklabels=list(PARTS), xlabel="norm of the gradient")
axes[0].invert_yaxis()
axes[1].legend(*axes[0].get_legend_handles_labels(), loc="upper right")
axes[1].set(xlabel="norm of the gradient / norm of the weights");

# %% [markdown]
# The last rows are random, and through them goes all that their losses have to say to the layers below. Is it worth hearing? Three
# models that differ in nothing but those rows, the same batch and samples; for each loss alone, in which direction does it pull the
# backbone? If it had to do with the photos, the three would agree.

# %%
def pull(model):
    """The gradient of the backbone's five stages as one vector of length 1, and its norm."""
    g = np.concatenate([p.grad.ravel() for p in model.backbone.body.parameters() if p.grad is not None])
    return g / np.linalg.norm(g), np.linalg.norm(g)

pulls, mask_losses = {}, []
for seed in range(3):
    m = nprcnn.maskrcnn_tiny(4, norm="frozen", rng=np.random.default_rng(seed), **SMALL)
    start_from(m, "shapes")
    for loss in ("loss_objectness", "loss_classifier", "loss_box_reg", "loss_mask"):
        t = nprcnn.Trace()
        values, cache = m.losses(list(batch.images[:2]), list(batch.targets[:2]), np.random.default_rng(0), trace=t)
        m.zero_grad()
        m.backward(cache, weights={name: float(name == loss) for name in values})
        pulls.setdefault(loss, []).append(pull(m))
    mask_losses.append(float(values["loss_mask"]))

print("loss                norm of its pull    cosines between the three pulls")
for loss, found in pulls.items():
    (a, b, c), lengths = zip(*found)
    print(f"{loss:18} {np.mean(lengths):14.2f}               {a @ b:5.2f}  {a @ c:5.2f}  {b @ c:5.2f}")
print("loss_mask:", np.round(mask_losses, 2).tolist(), f"where guessing costs ln 2 = {np.log(2):.2f}")

# %% [markdown]
# The RPN's pull is the same three times, for it has no new rows. Those of class and box are as good as unrelated: **noise**. That of the
# masks is the largest, and there the three agree. On what? New rows give large random logits, whose loss is far above that of guessing. A
# way to make it smaller is to make the features $h$ of the mask head smaller, whatever they show. We look in which direction that
# would pull, with the gradient of $|h|^2 / 2$, which is $h$:

# %%
roi_cache, head_cache, _ = cache.mask                     # of the third model
dlevels = m.mask_features.backward(m.roi_heads.mask_head.backward(t["roi_heads.mask_hidden"], head_cache), roi_cache)
m.zero_grad()
m.backbone.backward([*dlevels, np.zeros_like(t["fpn.p6"])], cache.first_stage[0])
smaller, _ = pull(m)
print("cosine of that pull with the three of loss_mask:", "  ".join(f"{smaller @ p:.2f}" for p, _ in pulls["loss_mask"]))

# %% [markdown]
# Nearly the same. So at the first step nobody tells the backbone about moons: it hears noise, and "less of everything". A frozen one does
# not listen.
#
# ## 8  From scratch, fine-tuned, frozen
#
# The same 24 photos, the same 60 steps, the same rate and the same seed, three beginnings. From scratch batch norm takes its
# statistics from the batch. With weights from elsewhere, whose statistics are good, we leave them as they are (`norm="frozen"`; with 2
# images in a batch they would be poor). We measure on the 24 held-out photos.

# %%
STEPS = 60
RECIPE = dict(steps=STEPS, batch_size=2, lr=0.02, schedule="cosine", warmup_steps=10, seed=0,
              augment=Augment(flip=0.5, flip_vertical=0.5, quarter_turns=True))
runs = {}

def run(name, model, measure=(30, STEPS)):
    """Train; keep the losses, and the AP on the held-out photos after some of the steps."""
    rows, aps = [], {}

    def on_step(step, row):
        rows.append(row)
        if step + 1 in measure:
            aps[step + 1] = evaluate(model, held_out, progress=False)

    start = time.process_time()
    train(model, train_source, progress=False, on_step=on_step, **RECIPE)
    runs[name] = {"model": model, "rows": rows, "aps": aps}
    last = aps[STEPS]
    print(f"{name}: mask AP {last['segm']['AP']:.3f}, AP50 {last['segm']['AP50']:.3f}; box AP {last['bbox']['AP']:.3f}; "
          f"{time.process_time() - start:.0f} s of processor time with the measurements")

run("from scratch", new_model("batch"))

# %%
run("fine-tuned", tuned_model())

# %%
run("fine-tuned, backbone frozen", tuned_model("backbone"))

# %%
figure, axes = plt.subplots(1, 2, figsize=(8.6, 3), layout="constrained")
for (name, result), colour in zip(runs.items(), ("#808080", course.FORWARD, course.YELLOW)):
    losses = np.convolve([row["loss"] for row in result["rows"]], np.full(8, 1 / 8), "valid")
    axes[0].plot(np.arange(8, STEPS + 1), losses, color=colour, label=name)
    steps = [0, *result["aps"]]
    for key, style in (("AP50", "--"), ("AP", "-")):
        axes[1].plot(steps, [0, *(ap["segm"][key] for ap in result["aps"].values())], f"o{style}", markersize=4, color=colour)
axes[0].set(xlabel="step", ylabel="sum of the losses, mean of 8 steps", ylim=0)
axes[0].legend(loc="lower left", fontsize=8)
axes[1].set(xlabel="step", ylabel="on 24 held-out photos", title="masks: AP solid, AP50 dashed", ylim=(-0.03, 1));

# %% [markdown]
# What has become of the backbone, and of the RPN's eye for objects (section 6)?

# %%
for name, result in runs.items():
    state = result["model"].state_dict()
    inside = [n for n in theirs if n.startswith("backbone.body") and n.endswith("weight") and theirs[n].ndim == 4]
    moved = np.sqrt(sum(((state[n] - theirs[n]) ** 2).sum() for n in inside) / sum((theirs[n] ** 2).sum() for n in inside))
    away = "" if name == "from scratch" else f"backbone moved by {moved:.1%} of its norm; "
    print(f"{name:28} {away}best proposal of a figure: IoU {proposal_fit(result['model']).mean():.2f}")

# %% [markdown]
# Three lessons, as far as 24 photos and one seed can teach them.
#
# - **From scratch there is nothing yet**, after 60 steps, though its loss has fallen like that of the others: most of what falls is
#   "nothing here" (notebook 12, section 4). The shipped weights were trained for 10,000 steps of 4 scenes.
# - **What was learnt on other classes is worth more than the 24 photos.** No box of a moon, heart or arrow was in it.
# - **Freezing helps here.** The backbone of the second run has moved by a few hundredths of its norm only, and its proposals are nearly
#   as good as before. It is the AP that shows what that cost.
#
# That is no law. With more images, more steps or a smaller rate the order may turn round. Try it in a new cell:
# `RECIPE["lr"] = 0.005; run("smaller rate", tuned_model())`. (And put 0.02 back: the next sections use RECIPE, too.)
#
# Notebook [13](13_detections_and_ap.ipynb), "How sure is the number?", draws the images again and again. What 24 photos can tell is a
# difference like that between the first run and the last, not one of a few hundredths.
#
# Class by class, for the best one:

# %%
best = runs["fine-tuned, backbone frozen"]
for name, row in best["aps"][STEPS]["per_class"].items():
    print(f"{name:6} {row['objects']:3} figures, mask AP {row['segm']:.2f}")

# %% [markdown]
# ## 9  Hits and misses
#
# Numbers do not say what goes wrong. Pictures do. A detection with a score of at least 0.5 is a hit if its mask has an IoU of 0.5
# with a figure of its class that is still free.

# %%
HIT, WRONG, MISSED = course.GREEN, course.BACKWARD, "#FFFFFF"

def judge(found, target, at_least=0.5):
    """Which detections count (d,), which of them are hits (d,), and which figures are missed (n,)."""
    counts, free = np.flatnonzero(found.scores >= at_least), np.ones(len(target["labels"]), bool)
    hits = np.zeros(len(counts), bool)
    for k, d in enumerate(counts):                        # by descending score
        inter = (target["masks"] & found.masks[d]).sum(axis=(1, 2))
        iou = inter / ((target["masks"] | found.masks[d]).sum(axis=(1, 2)))
        iou[~free | (target["labels"] != found.labels[d])] = 0
        if len(iou) and iou.max() >= 0.5:
            hits[k], free[iou.argmax()] = True, False
    return counts, hits, free

judged = [(image, target, found, *judge(found, target)) for image, target in held_out for found in [best["model"].predict(image)]]
print(f"{sum(j[4].sum() for j in judged)} hits, {sum((~j[4]).sum() for j in judged)} wrong, "
      f"{sum(j[5].sum() for j in judged)} of {sum(len(j[5]) for j in judged)} figures missed")

# %%
order = sorted(range(len(judged)), key=lambda k: (~judged[k][4]).sum() + judged[k][5].sum())
shown = order[:2] + order[-6:]
figure, axes = viz.image_panels(8, SIZE, SIZE, columns=4, side=200)
for ax, k in zip(axes, shown):
    image, target, found, counts, hits, missed = judged[k]
    viz.draw_detections(image, ax=ax, title=held_out.name(k))
    for box in target["boxes"][missed]:
        viz.rectangle(ax, box, MISSED, 1.5)
    colours = [HIT if hit else WRONG for hit in hits]
    for d, colour in zip(counts, colours):
        viz.outline(ax, found.masks[d], colour)
    viz.write_labels(ax, found.boxes[counts], [f"{held_out.class_names[found.labels[d]]} {found.scores[d]:.2f}" for d in counts], colours)
figure

# %% [markdown]
# Green: hits. Orange: wrong. White boxes: missed. The first two are among the best photos, the others are the worst. What is the network's
# difficulty: the class, the place, the clutter, doubles? A count tells:

# %%
confused = {"a figure, under another name": 0, "a figure, but found before or badly outlined": 0, "no figure at all": 0}
for image, target, found, counts, hits, missed in judged:
    for d in counts[~hits]:
        iou = box_iou(found.boxes[d:d + 1], target["boxes"])[0]
        kind = 2 if iou.max(initial=0) < 0.3 else 0 if target["labels"][iou.argmax()] != found.labels[d] else 1
        confused[list(confused)[kind]] += 1
print("of the wrong ones:", confused)

# %% [markdown]
# ## 10  Stop and go on, bit for bit
#
# `train_in_folder` (behind `nprcnn train`) keeps in its folder a log, curves, the best weights, and **checkpoints**. Let us pull the
# plug: six steps, a checkpoint after every third, and in the second folder the machine "dies" after step 4.

# %%
STAGE = {"builder": "maskrcnn_tiny", "arguments": {"num_classes": 4, "class_names": train_source.class_names, "norm": "frozen", **SMALL}}
CONFIG = {"model": STAGE, "data": {"fingerprint": train_source.fingerprint()},
          "training": {**RECIPE, "steps": 6, "warmup_steps": 2, "augment": RECIPE["augment"]._asdict()}}

class Died(Exception):
    pass

def power_cut(model):
    raise Died

def six_steps(folder, **options):
    model = tuned_model("backbone")
    rows = train_in_folder(model, train_source, folder, CONFIG, save_every=3, draw_every=0, progress=False, **options)
    return model, rows

whole, rows = six_steps("undisturbed")
try:
    six_steps("disturbed", validate=power_cut, validate_every=4)     # raises after step 4, before the next checkpoint
except Died:
    print("died. In the folder:", sorted(path.name for path in Path("disturbed").iterdir()))
resumed, rows_again = six_steps("disturbed", resume=True)

a, b = whole.state_dict(), resumed.state_dict()
assert all(np.array_equal(a[name], b[name]) for name in a)
assert [row["loss"] for row in rows] == [row["loss"] for row in rows_again]
print(f"all {len(a)} arrays are equal, bit for bit, and so are the six losses:")
print("   ", [round(row["loss"], 4) for row in rows_again])

# %% [markdown]
# Step 4 had been done and was lost, and was done again, in the same way. The checkpoint has the weights, the step, and one thing more
# that is easily forgotten:

# %%
checkpoint = read_checkpoint("undisturbed/checkpoint-previous.safetensors")
moving = sum(v.size for v in checkpoint.velocity.values())
print(f"step {checkpoint.step}, {len(checkpoint.weights)} arrays of weights, {len(checkpoint.velocity)} velocities of {moving} numbers")

training = {**RECIPE, "steps": 6, "warmup_steps": 2, "start": 3, "progress": False}
for name in ("with its velocity", "without"):
    model = tuned_model("backbone")
    model.load_state_dict(checkpoint.weights)
    optimizer = SGD(model.parameters())
    if name != "without":
        own_names = {id(p): n for n, p in model.named_parameters()}
        optimizer.velocity = [checkpoint.velocity[own_names[id(p)]].copy() for p in optimizer.parameters]
    train(model, train_source, optimizer=optimizer, **training)
    state = model.state_dict()
    print(f"{name:17}: largest difference after step 6 {max(np.abs(a[n] - state[n]).max() for n in a):.2g}")

# %% [markdown]
# No error, without the velocity; just another training. Order, augmentation and sampling need no place in the file: they are
# functions of the step (section 5). And `train_in_folder` refuses to go on with another data set or model, because that would
# not be the same training:

# %%
other = {**CONFIG, "data": {"fingerprint": held_out.fingerprint()}}
try:
    train_in_folder(tuned_model("backbone"), held_out, "undisturbed", other, resume=True, progress=False)
except DataError as error:
    print(error)

# %% [markdown]
# ## 11  A batch that does not fit
#
# A large batch needs memory. It can be computed in parts, whose gradients are added up: **accumulation**. But with which
# weights? A loss of the whole batch is a mean over its $N$ anchors or RoIs; a part has $N_k$ of them:
#
# $$L = \frac{1}{N} \sum_k N_k\, L_k \;=\; \sum_k \frac{N_k}{N}\, L_k . \tag{2}$$
#
# The mean of the $L_k$ is something else, unless all $N_k$ are equal. And each of the five losses has its own $N_k$. We compare
# with the gradient of all four images at once:

# %%
image_names = [train_source.name(i) for i in batch.indices]

def one_step(model, parts):
    """Losses of the batch, computed in so many parts; its gradients are left in the model."""
    model.zero_grad()
    return batch_gradients(model, make_parts(batch, parts, 0, 0, image_names))

def gradient_of(model):
    return np.concatenate([p.grad.ravel() for p in model.parameters() if p.trainable and p.grad is not None]).astype(float)

model = tuned_model("backbone")
model.box_batch_size_per_image = 128                      # more than there are, so that the images differ in what they have
whole_losses = one_step(model, 1)
whole_gradient = gradient_of(model)
print(f"at once: loss {sum(whole_losses.values()):.6f}, norm of the gradient {np.linalg.norm(whole_gradient):.4f}")
for count in (2, 4):
    losses = one_step(model, count)
    error = np.linalg.norm(gradient_of(model) - whole_gradient) / np.linalg.norm(whole_gradient)
    print(f"{count} parts: loss {sum(losses.values()):.6f}, relative error of the gradient {error:.0e}")
    assert error < 1e-4                                   # float32; measured 1e-6 to 1e-5

naive = 0
for part in make_parts(batch, 4, 0, 0, image_names):      # the usual shortcut: the mean of the parts' gradients
    model.zero_grad()
    losses, cache = model.losses(part.images, part.targets, part.rngs)
    model.backward(cache)
    naive = naive + gradient_of(model) / 4
    print("   one image:", {name: n for name, n in model.loss_counts(cache.decisions).items() if name in
                            ("loss_objectness", "loss_classifier", "loss_mask")})
print(f"mean of the four: relative error {np.linalg.norm(naive - whole_gradient) / np.linalg.norm(whole_gradient):.0e}")

# %% [markdown]
# The counts show why the shortcut is off: an image with more positive RoIs has more masks in the mean. (With batch norm that takes
# statistics from the batch no weights help, since each part has its own statistics.)
#
# ## 12  With your own photos
#
# The whole notebook as four commands. We run them here as you would type them, for eight steps:

# %%
COMMANDS = [
    "data check coco:my_set/annotations.json --out sheet.png",
    "train --data coco:my_set/annotations.json --held-out 8 --weights shapes --set norm=frozen min_size=64 max_size=64 "
    "--freeze backbone --augment flip_vertical=0.5 quarter_turns=True --steps 8 --validate-every 8 --warmup 2 --out runs/mine",
    "evaluate --data coco:my_set/annotations.json,held_out=8,part=held_out --weights runs/mine/best.safetensors --json ap.json",
    "predict my_set/images/photo00.png --weights runs/mine/best.safetensors --out found.png",
]
for command in COMMANDS:
    out, bar = io.StringIO(), io.StringIO()               # `bar`: the progress, which a terminal would show
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(bar):
        code = main(command.split())
    assert code == 0, bar.getvalue()
    lines = out.getvalue().strip().splitlines()
    print(f"$ nprcnn {command}\n  ... {lines[-1]}")
print("\nin runs/mine:", sorted(path.name for path in Path("runs/mine").iterdir()))

# %% [markdown]
# For real photos: `--model resnet50_fpn`, weights of a network that was trained on COCO or ImageNet (torchvision's files will do),
# `--freeze stem layer1`, a few hundred to some thousand steps, and `--resume` on the same line when something went wrong. Other
# forms of annotation: `nprcnn data --help`; your own: `--data python:mine.py:FOLDER`.
#
# An order that saves time:
#
# 1. `data check`, and *look* at the contact sheet.
# 2. Hold out images before you do anything else; if photos come in series (the same scene, the same patient), whole series.
# 3. Learn four images by heart (notebook 12, section 4).
# 4. Frozen first. Then let more and more layers train, as long as the held-out AP rises.
# 5. Look at the misses. Often they are annotations.
#
# ## Exercises
#
# Solutions are in `solutions/19_solutions.ipynb`.
#
# ### Exercise 1: flip all three
#
# Without loops. `boxes` may have no row.
#
# <details><summary>Hint 1</summary>Columns are axis 1 of the image and axis 2 of the masks; [::-1] turns an axis over.</details>
# <details><summary>Hint 2</summary>x1, y1, x2, y2 = boxes.T, and np.stack([...], axis=1) puts four columns together again.</details>
# <details><summary>Hint 3</summary>Equation (1). Which of the old edges becomes the left one?</details>

# %%
def flip_target(image, boxes, masks):
    """image (H, W, 3), boxes (n, 4), masks (n, H, W) -> the three, left and right exchanged."""
    ...                                                   # your code; return image, boxes, masks

check_flip_target(flip_target)

# %% [markdown]
# ### Exercise 2: ids with gaps
#
# `categories` are the ids of all categories of a file, in any order. `ids` are those of the objects of one image. The labels go from 1 to
# K - 1, by ascending id.
#
# <details><summary>Hint 1</summary>The label of an id is its place in a sorted list, counted from 1.</details>
# <details><summary>Hint 2</summary>np.searchsorted(sorted list, values) gives places, counted from 0.</details>
# <details><summary>Hint 3</summary>Sort `categories`, not `ids`. An image need not have all classes.</details>

# %%
def labels_of_ids(ids, categories):
    """ids (n,) int, categories (K - 1,) int -> (n,) int."""
    ...                                                   # your code; return the labels

check_labels_of_ids(labels_of_ids)

# %% [markdown]
# ### Exercise 3: find the bug
#
# A crop that somebody wrote. Its boxes look right, and the check of every training step (`check_target`) does not complain. Find
# what it forgets (there are **two things**), and mend it. Look at the picture and at the printed boxes first. An object whose box lies
# wholly inside the window keeps its box, to the fraction of a pixel. `box_around` is there for the others.
#
# <details><summary>Hint 1</summary>Compare each box of the result with the box around its mask. Where do they differ, and are the objects whole or cut there?</details>
# <details><summary>Hint 2</summary>Cut a leg off, and the rest may be narrower, too. A cut object needs a new box around what its mask still shows. Which ones are cut? Those that np.clip has changed.</details>
# <details><summary>Hint 3</summary>What should happen to an object whose box reaches into the window, but none of whose pixels does? masks.any(axis=(1, 2)) knows.</details>
# <details><summary>Hint 4</summary>moved = boxes - corner; boxes = np.clip(moved, 0, size); then a loop over the i whose boxes[i] and moved[i] differ and whose cropped mask is not empty.</details>

# %%
def buggy_crop(boxes, masks, window):
    """boxes (n, 4), masks (n, H, W), window (x1, y1, x2, y2) int -> boxes and masks of what the window still shows."""
    left, top, right, bottom = window
    size = np.array([right - left, bottom - top] * 2)
    boxes = np.clip(boxes - np.array([left, top] * 2), 0, size)
    inside = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    return boxes[inside], masks[inside, top:bottom, left:right]

many = [crop(image, target, (0, 22, 40, 62)) for image, target in mine]
wrong = []
for k, (image, target) in enumerate(mine):
    boxes, masks = buggy_crop(target["boxes"], target["masks"], (0, 22, 40, 62))
    check_target((40, 40), {**target, "boxes": boxes.astype(np.float32), "labels": target["labels"][:len(boxes)], "masks": masks}, 4, k)
    right = many[k][1]["boxes"]
    if len(boxes) != len(right) or np.abs(boxes - right).max(initial=0) > 3:
        wrong.append((k, boxes, masks))
print(f"{len(wrong)} of {len(mine)} photos come out with another number of objects, or a box more than 3 pixels off; the first two:")
figure, axes = viz.image_panels(4, 40, 40, columns=4, side=190)
for row, (k, boxes, masks) in enumerate(wrong[:2]):
    print(f"photo {k}: {boxes.round(1).tolist()}, should be {many[k][1]['boxes'].round(1).tolist()}")
    viz.draw_detections(many[k][0], boxes, masks=masks, ax=axes[2 * row], title=f"photo {k}, buggy")
    viz.draw_detections(many[k][0], many[k][1]["boxes"], masks=many[k][1]["masks"], ax=axes[2 * row + 1], title=f"photo {k}, right")
figure

# %%
def box_around(mask):
    """The tight box of a mask (h, w) that is not empty. A box ends behind its last pixel."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1

def crop_target(boxes, masks, window):
    left, top, right, bottom = window
    ...                                                   # the mended crop; return boxes, masks

check_crop_target(crop_target)

# %% [markdown]
# ## Summary
#
# - A source is `len`, `class_names` and `[i]`. Ten lines are enough for annotations of any form. Labels are 1 .. K - 1 without gaps,
#   whatever the ids are.
# - A program finds faults in the form, eyes find wrong annotations: check, and look.
# - What moves the image moves boxes and masks. A cut object gets a new box, one without a pixel left goes.
# - Order, augmentation and sampling are functions of (seed, step, image). So a training goes on bit for bit from weights, velocities and a
#   number.
# - Of other classes, all layers but those with a row a class are taken over. With few images: freeze, or a small rate.
# - Parts of a batch are weighted with their counts, each loss with its own.
#
# **Read next.** In this course: [20 Common statements](20_common_statements.ipynb). In the code: `nprcnn/data/interface.py`,
# `nprcnn/data/transforms.py`, `nprcnn/train/folder.py`. Elsewhere: Yosinski et al., *How transferable are features in deep neural networks?*,
# arXiv 1411.1792; He, Girshick and Dollár, *Rethinking ImageNet pre-training*, arXiv 1811.08883, for when it does not help; Wu and Johnson,
# *Rethinking "batch" in BatchNorm*, arXiv 2105.07576.
