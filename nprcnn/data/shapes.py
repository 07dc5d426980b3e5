"""Built-in scenes: shapes on a textured ground, with exact masks, boxes and classes. No download, no files.

Scene i of (seed, difficulty) is a function of those three alone, and it is the same scene on every machine:
after the random draws everything is integer arithmetic. Lengths are in 1/64 of a pixel, cosines in 1/4096,
colours in 0..255, mixing weights in 0..256. No floating-point number is ever compared with a threshold, so no
last bit of a cosine or of a vector unit can flip a pixel.

How a scene is made: draw a background; for each object draw a class, a size, an angle and a texture; try a few
places and take the first where everything stays well visible; paint it over what is there. Later objects lie on
top. `owner` says which object each pixel shows; the masks are read from it at the end, so they hold visible
pixels only.
"""

import zlib

import numpy as np

from ..errors import ConfigError

CLASS_NAMES = ("background", "circle", "square", "triangle", "ring", "star", "cross")

# Training streams use seeds below this one; it belongs to the held-out scenes.
HELD_OUT_SEED = 2 ** 31

UNIT = 64  # lengths: this many to a pixel
TURN_BITS = 12  # cosines: 2 ** 12 is 1
# By whole degrees. No value lies near a rounding tie, so the table is the same with every library's cosine.
COSINE = np.round(np.cos(np.deg2rad(np.arange(360))) * 2 ** TURN_BITS).astype(np.int32)

# Per difficulty. radius: of the circle of about the same area, in pixels of an image of the default size.
DIFFICULTIES = {
    "easy": dict(size=96, objects=(1, 3), classes=(1, 2, 3), radius=(11, 18), separate=True, noise=(0, 4),
                 ground=("plain", "gradient"),
                 surface=("plain",)),
    "full": dict(size=128, objects=(1, 6), classes=(1, 2, 3, 4, 5, 6), radius=(9, 26), separate=False,
                 noise=(0, 10),
                 ground=("plain", "gradient", "stripes", "checker", "clouds"),
                 surface=("plain", "gradient", "stripes", "checker", "clouds")),
}

MIN_VISIBLE = 60  # pixels of an object that must show
MIN_VISIBLE_PERCENT = 55  # of the whole object, what sticks out of the image counted as hidden
CANDIDATES = 24  # pairs of colours to choose from
CLEAR = 14000  # a weighted squared distance of colours: about 40 levels in each channel
TRIES = 24  # places for an object before it is left out
GAP = 3  # pixels between objects where they are kept apart


class Shapes:
    """A data source of `count` scenes.

    Parameters
    ----------
    count : int
        Number of scenes. A longer source begins with the scenes of a shorter one.
    seed : int
        0 to 2**31 - 1. Different seeds share no scene, and none shares one with `Shapes.held_out`.
    difficulty : "full" or "easy"
        "full": 128x128, 1 to 6 objects of six classes, 16 to 72 pixels, textures, rotation, occlusion, noise.
        "easy": 96x96, 1 to 3 large whole objects that do not touch, circles, squares and triangles only (the
        class list is the same), plain colours, little noise.
    size : int or (height, width), optional
        Another image size, sides of 32 to 1024; objects scale with the shorter side.

    Notes
    -----
    `source[i]` is `(image, target)`: image (H, W, 3) uint8 RGB; target a dict of "boxes" (n, 4) float32, x1, y1,
    x2, y2 with x2 = last column + 1, tight around the visible mask; "labels" (n,) int64, 1 to 6; "masks"
    (n, H, W) uint8 0 or 1; "image_id" i.
    Every scene has at least one object.
    """

    class_names = CLASS_NAMES

    def __init__(self, count, seed, difficulty="full", size=None):
        if difficulty not in DIFFICULTIES:
            raise ConfigError(f"difficulty {difficulty!r} is unknown; choose from {', '.join(DIFFICULTIES)}")
        if count < 0:
            raise ConfigError(f"the number of scenes is {count}; it must be 0 or more")
        if not 0 <= seed < HELD_OUT_SEED:
            raise ConfigError(f"seed {seed} is outside 0..{HELD_OUT_SEED - 1}; for held-out scenes use "
                              "Shapes.held_out(count)")
        default = DIFFICULTIES[difficulty]["size"]
        height, width = np.broadcast_to(default if size is None else size, 2)
        if not (32 <= height <= 1024 and 32 <= width <= 1024):  # the 32-bit integers below hold up to there
            raise ConfigError(f"image size {size} does not suit shapes; both sides must be 32 to 1024")
        self.count, self.seed, self.difficulty = int(count), int(seed), difficulty
        self.size = int(height), int(width)

    @classmethod
    def held_out(cls, count, difficulty="full", size=None):
        """Scenes to evaluate on: a stream of its own, which no seed that `Shapes(...)` accepts can produce."""
        source = cls(count, 0, difficulty, size)
        source.seed = HELD_OUT_SEED
        return source

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        if not 0 <= i < self.count:
            raise IndexError(f"scene {i} of {self.count}")
        return make_scene(self.seed, self.difficulty, int(i), self.size)


def make_scene(seed, difficulty, i, size):
    """Scene i: (image, target) as `Shapes` documents them. size is (height, width)."""
    rng = np.random.RandomState([zlib.crc32(f"nprcnn shapes {difficulty}".encode()), seed, i])
    recipe = DIFFICULTIES[difficulty]
    height, width = size
    tones = _pick_tones(rng, ground=True, taken=np.empty((0, 3), np.int32))
    image = _paint(rng, recipe["ground"], tones, height, width).copy()  # (3, H, W): long inner loops
    owner = np.zeros((height, width), np.uint8)  # 0: background, k: the k-th object
    labels, areas, taken = [], [], tones
    scale = min(height, width)
    low, high = (r * UNIT * scale // recipe["size"] for r in recipe["radius"])

    for _ in range(_between(rng, *recipe["objects"])):
        label = recipe["classes"][_between(rng, 0, len(recipe["classes"]) - 1)]
        u = _between(rng, 0, 1023)
        radius = max(low + (high - low) * u * u // 2 ** 20, 8 * UNIT)  # squared: small ones are more frequent
        distance = _trim(_signed_distance(rng, label, radius))
        shape = distance >= 0
        tones = _pick_tones(rng, ground=False, taken=taken)
        paint = _paint(rng, recipe["surface"], tones, *distance.shape)
        place = _find_place(rng, shape, owner, areas, recipe["separate"])
        if place is None:
            continue
        crop, part = place
        weight = _clip(distance[part] * (256 // UNIT) + 128, 0, 256)  # coverage: 1/2 on the outline
        window = image[:, *crop]
        window += ((paint[:, *part] - window) * weight + 128) >> 8
        labels.append(label)
        areas.append(np.count_nonzero(shape))
        owner[crop][shape[part]] = len(labels)
        taken = np.concatenate([taken, tones])

    amplitude = _between(rng, *recipe["noise"])
    image = _clip(image + _noise(rng, image.shape, amplitude), 0, 255).astype(np.uint8)
    image = np.ascontiguousarray(image.transpose(1, 2, 0))
    masks = (owner == np.arange(1, len(labels) + 1)[:, None, None]).astype(np.uint8)
    labels = np.array(labels, np.int64)
    return image, {"boxes": mask_boxes(masks), "labels": labels, "masks": masks, "image_id": i}


def mask_boxes(masks):
    """Tight boxes (n, 4) float32 of masks (n, H, W), none of them empty: first column, row, last ones + 1."""
    height, width = masks.shape[1:]
    columns, rows = masks.any(axis=1), masks.any(axis=2)
    first = columns.argmax(axis=1), rows.argmax(axis=1)
    last = width - columns[:, ::-1].argmax(axis=1), height - rows[:, ::-1].argmax(axis=1)
    return np.stack([*first, *last], axis=1).astype(np.float32)


def _between(rng, low, high):
    """A random integer, both ends included."""
    return int(rng.randint(low, high + 1, dtype=np.int64))


def _clip(x, low, high):
    return np.minimum(np.maximum(x, low), high)  # np.clip takes three times as long on small integer arrays


# ---- geometry: where, and what shape

def _signed_distance(rng, label, radius):
    """Distance to the outline in 1/64 pixel, positive inside, on a pixel grid that holds the shape.

    radius is that of the circle of about the same area. A half-plane at angle a and distance r is
    r - (x cos a + y sin a); a convex shape is the minimum of its half-planes, a union is a maximum.
    """
    name = CLASS_NAMES[label]
    angle = _between(rng, 0, 359)
    stroke = _between(rng, 0, 255)
    half = radius * 26 // 16 // UNIT + 2
    line = np.arange(-half, half + 1, dtype=np.int32) * UNIT
    x = (line + _between(rng, -UNIT // 2, UNIT // 2 - 1))[None, :]
    y = (line + _between(rng, -UNIT // 2, UNIT // 2 - 1))[:, None]

    def planes(count, apothem):
        turns = angle + np.arange(count) * 360 // count
        cosine, sine = COSINE[turns % 360][:, None, None], COSINE[(turns - 90) % 360][:, None, None]
        return apothem - (x * cosine + y * sine >> TURN_BITS)

    def disc(r):
        return (r * r - x * x - y * y) // (2 * r)  # the distance to first order, exact on the outline

    if name == "circle":
        return disc(radius)
    if name == "ring":  # the hole is 45 to 65 % of the outer radius
        outer = radius * 18 // 16
        return np.minimum(disc(outer), -disc(outer * (115 + stroke * 51 // 255) // 256))
    if name == "square":
        return planes(4, radius * 227 // 256).min(axis=0)
    if name == "triangle":
        return planes(3, radius * 199 // 256).min(axis=0)
    if name == "star":  # five points: inside all half-planes of the pentagram but at most one
        return np.partition(planes(5, radius * 120 // 256), 1, axis=0)[1]
    right, down, left, up = planes(4, 0)  # cross: two bars, 34 to 46 % as wide as long
    length = radius * 19 // 16
    width = length * (87 + stroke * 31 // 255) // 256
    bar, beam = np.minimum(right, left), np.minimum(down, up)
    return np.maximum(np.minimum(bar + length, beam + width), np.minimum(bar + width, beam + length))


def _trim(distance):
    """The part of the grid that the shape and its soft edge reach."""
    touched = distance > -UNIT // 2
    rows, columns = np.flatnonzero(touched.any(axis=1)), np.flatnonzero(touched.any(axis=0))
    return distance[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]


def _find_place(rng, shape, owner, areas, separate):
    """The first of a few random places where the shape and every object below stay visible and in one piece.

    Returns the slices of the image and of the shape that meet there, or None. Up to a quarter of the shape's
    sides may stick out of the image, nothing with `separate`.
    """
    (height, width), (h, w) = owner.shape, shape.shape
    out_y, out_x = (0, 0) if separate else (h // 4, w // 4)
    total = np.count_nonzero(shape)
    before = np.bincount(owner.ravel(), minlength=len(areas) + 1)[1:]
    for _ in range(TRIES):
        top, left = _between(rng, -out_y, height - h + out_y), _between(rng, -out_x, width - w + out_x)
        y1, x1, y2, x2 = max(top, 0), max(left, 0), min(top + h, height), min(left + w, width)
        crop = slice(y1, y2), slice(x1, x2)
        part = slice(y1 - top, y2 - top), slice(x1 - left, x2 - left)
        inside = shape[part]
        if separate:
            if not owner[max(y1 - GAP, 0):y2 + GAP, max(x1 - GAP, 0):x2 + GAP].any():
                return crop, part
            continue
        hidden = np.bincount(owner[crop][inside], minlength=len(areas) + 1)[1:]
        visible = np.append(before - hidden, np.count_nonzero(inside))
        enough = np.maximum(MIN_VISIBLE, np.append(areas, total).astype(int) * MIN_VISIBLE_PERCENT // 100)
        covered = hidden.nonzero()[0] + 1
        if (visible >= enough).all() and not any(_falls_apart(owner, k, crop, inside) for k in covered):
            return crop, part
    return None


def _falls_apart(owner, k, crop, cover):
    """Whether object k, once covered, shows in pieces with empty rows or columns between them."""
    left = owner == k
    left[crop] &= ~cover
    for line in (left.any(axis=0), left.any(axis=1)):
        if np.count_nonzero(line[1:] != line[:-1]) + line[0] + line[-1] > 2:
            return True
    return False


# ---- colours and textures

def _pick_tones(rng, ground, taken):
    """Two colours (2, 3) for a texture: of random pairs the first that stands out from `taken`, or the best."""
    # Ranges of hue, saturation, value, and of the steps in value and in hue to the second tone.
    if ground:  # muted, its tones close
        low, high = [0, 0, 50, 25, -90], [1536, 150, 236, 50, 91]
    else:
        low, high = [0, 110, 120, 45, -90], [1536, 256, 256, 90, 91]
    low, high = np.array(low, np.int32)[:, None], np.array(high, np.int32)[:, None]
    u = rng.randint(0, 2 ** 16, size=(5, CANDIDATES), dtype=np.int32)
    hue, saturation, value, step, twist = low + ((high - low) * u >> 16)
    second = np.where(value > 150, value - step, value + step)
    pairs = _hsv(np.stack([hue, hue + twist], axis=1), saturation[:, None], np.stack([value, second], axis=1))
    if len(taken) == 0:
        return pairs[0]
    difference = pairs[:, :, None] - taken
    eye = np.array([2, 4, 2], np.int32)  # sees differences in green best
    contrast = (difference * difference @ eye).min(axis=(1, 2))
    clear = contrast >= CLEAR
    return pairs[clear.argmax() if clear.any() else contrast.argmax()]


def _hsv(hue, saturation, value):
    """RGB (..., 3) of hue 0..1535, saturation and value 0..255."""
    k = (hue[..., None] + np.array([1280, 768, 256], np.int32)) % 1536
    chroma = _clip(np.minimum(k, 1024 - k), 0, 256)
    return value[..., None] - value[..., None] * saturation[..., None] * chroma // (255 * 256)


def _paint(rng, names, tones, height, width):
    """A texture (3, height, width) int32 that mixes two tones; read-only where it is plain."""
    name = names[_between(rng, 0, len(names) - 1)]
    weight = _texture(rng, name, height, width)
    first, second = tones[:, :, None, None]
    return np.broadcast_to(first + ((second - first) * weight + 128 >> 8), (3, height, width))


def _noise(rng, shape, amplitude):
    """Integers of a triangular distribution in -amplitude..amplitude, from two random bytes each."""
    first, second = np.frombuffer(rng.bytes(2 * np.prod(shape)), np.uint8).reshape(2, *shape).astype(np.int16)
    return (first + second - 255) * amplitude >> 8


def _texture(rng, name, height, width):
    """Mixing weights 0..256 of a texture, (height, width) or broadcastable to it."""
    if name == "plain":
        return np.zeros((1, 1), np.int32)
    if name == "clouds":  # random numbers on a coarse grid, bilinear in between
        cell = _between(rng, 5, 16)
        grid = rng.randint(0, 257, size=(height // cell + 2, width // cell + 2), dtype=np.int32)
        (row, v), (column, u) = (np.divmod(np.arange(n, dtype=np.int32), cell) for n in (height, width))
        rows = (grid[row] * (cell - v)[:, None] + grid[row + 1] * v[:, None])
        return (rows[:, column] * (cell - u) + rows[:, column + 1] * u) // (cell * cell)
    angle = _between(rng, 0, 359)
    x = np.arange(width, dtype=np.int32)[None, :] * UNIT
    y = np.arange(height, dtype=np.int32)[:, None] * UNIT
    along = (x * COSINE[angle] + y * COSINE[(angle - 90) % 360]) >> TURN_BITS
    if name == "gradient":
        low, high = int(along.min()), int(along.max())
        return (along - low) * 256 // (high - low)
    period = _between(rng, 8, 20) * UNIT
    if name == "stripes":
        return _wave(along, period)
    across = (y * COSINE[angle] - x * COSINE[(angle - 90) % 360]) >> TURN_BITS
    first, second = _wave(along, period), _wave(across, period)
    return (first * (256 - second) + second * (256 - first)) >> 8  # checker: one of the two, not both


def _wave(along, period):
    """A square wave 0..256 with edges one pixel wide."""
    phase = along % period
    return _clip((period // 4 - np.abs(phase - period // 2)) * (256 // UNIT) + 128, 0, 256)
