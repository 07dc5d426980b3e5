import os
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from nprcnn import viz
from nprcnn.canvas import PALETTE, image_panels, outline, show_image
from nprcnn.data import Shapes, read_image
from nprcnn.errors import DataError
from nprcnn.models.anchors import grid_anchors

NAMES = Shapes.class_names


def pixels(figure):
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[:, :, :3]


def window(figure, ax):
    """The pixels of one axes, rows from the top, the hairline around it left out by the caller."""
    box = ax.get_window_extent()
    height = int(figure.bbox.height)
    x0, x1, y0, y1 = (round(v) for v in (box.x0, box.x1, height - box.y1, height - box.y0))
    return pixels(figure)[y0:y1, x0:x1]


def scene(i=1):
    return Shapes.held_out(50)[i]


def test_small_images_are_enlarged_without_blur():
    image = np.random.RandomState(0).randint(0, 256, (24, 32, 3)).astype(np.uint8)
    figure = viz.draw_detections(image)
    shown = window(figure, figure.axes[0])
    assert shown.shape == (24 * 17, 32 * 17, 3)  # 560 pixels wanted: 17 times 32
    centres = shown[8::17, 8::17]
    np.testing.assert_array_equal(centres, image)
    np.testing.assert_array_equal(shown[8 + 17 * 5 + 6, 8::17], image[5])  # the same 6 pixels lower


def test_masks_are_tinted_and_boxes_drawn_where_they_are():
    image = np.full((40, 60, 3), 100, np.uint8)
    before = image.copy()
    mask = np.zeros((1, 40, 60), bool)
    mask[0, 10:30, 20:50] = True
    figure = viz.draw_detections(image, np.array([[15, 5, 55, 35.]]), np.array([2]), None, mask)
    ax, scale = figure.axes[0], 560 // 60
    shown = window(figure, ax).astype(int)
    color = np.array(to_rgb(PALETTE[1])) * 255
    inside = shown[int(20.5 * scale), int(35.5 * scale)]
    assert np.abs(inside - (0.55 * 100 + 0.45 * color)).max() <= 1
    assert (shown[int(38.5 * scale), int(35.5 * scale)] == 100).all()
    for x, y in ((15, 20), (55, 20), (35, 35)):  # on the box's left, right and lower side
        assert np.abs(shown[y * scale, x * scale] - color).max() <= 60, "anti-aliased, but the line's colour"
    np.testing.assert_array_equal(image, before)


def test_an_outline_runs_along_every_edge_between_mask_and_ground():
    image, target = scene(14)
    figure, (ax,) = image_panels(1, 128, 128)
    show_image(ax, image)
    mask = target["masks"][0]
    outline(ax, mask, "red")
    segments = np.array(ax.collections[0].get_segments())
    padded = np.pad(mask.astype(int), 1)
    perimeter = np.abs(np.diff(padded, axis=0)).sum() + np.abs(np.diff(padded, axis=1)).sum()
    assert len(segments) == perimeter
    assert np.abs(segments[:, 1] - segments[:, 0]).sum(axis=1).max() == 1
    for (xa, ya), (xb, yb) in segments.astype(int)[::7]:
        around = padded[ya:ya + 2, xa:xa + 2]  # the four pixels at the edge's first corner
        one, other = (around[0, 1], around[1, 1]) if ya == yb else (around[1, 0], around[1, 1])
        assert one != other


def test_labels_stay_in_the_picture_and_apart():
    image = np.zeros((100, 100, 3), np.uint8)
    boxes = np.array([[0, 0, 30, 30], [1, 1, 31, 31], [90, 50, 100, 60], [0, 95, 20, 100], [40, 40, 60, 60]])
    figure = viz.draw_detections(image, boxes, np.arange(1, 6), np.linspace(.9, .1, 5), class_names=NAMES)
    pixels(figure)
    frame = figure.axes[0].get_window_extent()
    extents = [text.get_window_extent() for text in figure.axes[0].texts]
    assert [t.get_text() for t in figure.axes[0].texts] == ["circle 0.90", "square 0.70", "triangle 0.50", "ring 0.30", "star 0.10"]
    for i, e in enumerate(extents):
        assert e.x0 >= frame.x0 - 1 and e.x1 <= frame.x1 + 1 and e.y0 >= frame.y0 - 1 and e.y1 <= frame.y1 + 1
        assert not any(e.overlaps(other) for other in extents[:i])


def test_what_may_be_left_out():
    image, target = scene()
    n = len(target["boxes"])
    assert len(viz.draw_detections(image).axes[0].patches) == 0
    assert len(viz.draw_detections(image, np.zeros((0, 4)), [], [], np.zeros((0, 128, 128), bool)).axes[0].texts) == 0
    figure = viz.draw_detections(image, target["boxes"])
    assert len(figure.axes[0].patches) == n and len(figure.axes[0].texts) == 0
    figure = viz.draw_detections(image, masks=target["masks"])
    assert len(figure.axes[0].patches) == 0 and len(figure.axes[0].collections) == n
    figure = viz.draw_detections(image / 255, target["boxes"], target["labels"])
    assert [t.get_text() for t in figure.axes[0].texts] == [str(label) for label in target["labels"]]
    with pytest.raises(DataError, match="divide it by 255"):
        viz.draw_detections(image.astype(np.float32))


def test_pictures_side_by_side():
    image, target = scene()
    figure, (left, right) = image_panels(2, 128, 128)
    assert viz.draw_detections(image, target["boxes"], ax=left, title="boxes") is figure
    assert viz.draw_boxes(image, target["boxes"], ax=right) is figure
    assert left.get_title(loc="left") == "boxes" and len(left.patches) == len(target["boxes"])
    assert len(right.collections) == 1 and len(figure.axes) == 2
    assert list(left.get_xticks()) == [] and left.get_xlim() == (0, 128) and left.get_ylim() == (128, 0)


def test_boxes_by_value_have_the_best_on_top_and_a_bar():
    image, _ = scene()
    boxes = np.random.RandomState(0).uniform(0, 60, (50, 4)) + [0, 0, 60, 60]
    values = np.random.RandomState(1).permutation(50) / 50
    figure = viz.draw_boxes(image, boxes, values=values)
    ax, bar = figure.axes
    drawn = np.array(ax.collections[0].get_segments())
    np.testing.assert_allclose(drawn[-1, 0], boxes[values.argmax(), :2])
    np.testing.assert_allclose(drawn[0, 2], boxes[values.argmin(), 2:])
    assert bar.get_ylim() == (0.0, 0.98)
    np.testing.assert_array_equal(boxes[0], np.random.RandomState(0).uniform(0, 60, (50, 4))[0] + [0, 0, 60, 60])
    for count in (0, 1):
        pixels(viz.draw_boxes(image, boxes[:count], values=values[:count]))


def test_boxes_by_level_have_a_legend():
    image, _ = scene()
    boxes = np.array([[0, 0, 10, 10], [5, 5, 50, 50], [9, 9, 20, 20.]])
    figure = viz.draw_boxes(image, boxes, levels=np.array([2, 4, 2]))
    ax = figure.axes[0]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["P2", "P4"]
    colors = ax.collections[0].get_colors()[:, :3]
    np.testing.assert_allclose(colors, [to_rgb(PALETTE[0]), to_rgb(PALETTE[2]), to_rgb(PALETTE[0])])
    pixels(viz.draw_boxes(image, boxes[:0], levels=np.zeros(0, int)))


def test_anchors_a_panel_a_level_around_the_point():
    image, _ = scene()
    cell = np.array([[-6, -3, 6, 3], [-4, -4, 4, 4], [-3, -6, 3, 6]], np.float32)
    levels = [grid_anchors(cell * 2 ** k, (32 >> k, 16 >> k), (4 << k, 8 << k)) for k in range(3)]
    figure = viz.draw_anchors(image, np.concatenate(levels) / 1.25, point=(51.2, 51.2))
    assert [ax.get_title(loc="left") for ax in figure.axes] == [
        "P2: 32 x 16 cells of 3 anchors", "P3: 16 x 8 cells of 3 anchors", "P4: 8 x 4 cells of 3 anchors"]
    for k, ax in enumerate(figure.axes):
        drawn = np.array([[p.get_x(), p.get_y(), p.get_x() + p.get_width(), p.get_y() + p.get_height()] for p in ax.patches])
        np.testing.assert_allclose(drawn, (cell * 2 ** k + 64) / 1.25, rtol=1e-6)  # the centre (64, 64) is on every grid
    as_list = viz.draw_anchors(image, [level / 1.25 for level in levels], point=(51.2, 51.2))
    np.testing.assert_array_equal(pixels(figure), pixels(as_list))


def test_anchors_that_leave_the_image_are_seen_to():
    image, _ = scene()
    cell = np.array([[-80, -40, 80, 40]], np.float32)
    figure = viz.draw_anchors(image, grid_anchors(cell, (4, 4), (32, 32)))
    assert figure.axes[0].get_xlim() == (-18, 146) and figure.axes[0].get_ylim() == (128, 0)


def test_rois_by_level():
    image, _ = scene()
    rois = np.array([[0, 1, 2, 30, 40], [0, 5, 6, 70, 80], [0, 3, 3, 9, 9.]])
    figure = viz.draw_rois_by_level(image, rois, np.array([2, 4, 2]), title="RoIs")
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["P2: 2 RoIs", "P4: 1 RoIs"]
    np.testing.assert_array_equal(figure.axes[1].collections[0].get_segments()[0][0], (5, 6))
    assert figure.texts[0].get_text() == "RoIs"
    empty = viz.draw_rois_by_level(image, np.zeros((0, 4)), np.zeros(0, int))
    assert empty.axes[0].get_title(loc="left") == "no RoIs"


def test_feature_maps_show_the_channels_that_vary():
    maps = np.random.RandomState(0).normal(size=(20, 6, 9)) * np.arange(20)[:, None, None]
    figure = viz.draw_feature_maps(maps, n=4, title="P2")
    shown = [int(ax.get_title(loc="left").split()[1]) for ax in figure.axes]
    assert shown == list(np.argsort(-maps.std(axis=(1, 2)))[:4])
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), maps[shown[0]])
    box = figure.axes[0].get_window_extent()
    assert box.width / box.height == pytest.approx(9 / 6, rel=0.02)  # whole pixels
    pixels(viz.draw_feature_maps(np.zeros((1, 3, 3))))


def test_mask_logits_have_one_symmetric_scale():
    logits = np.linspace(-3, 5, 2 * 49).reshape(2, 7, 7)
    figure = viz.draw_mask_logits(logits, ["a", "b"])
    assert [ax.get_title(loc="left") for ax in figure.axes[:2]] == ["a", "b"]
    assert [ax.images[0].get_clim() for ax in figure.axes[:2]] == [(-5, 5)] * 2
    assert len(figure.axes[0].collections) == 1 and len(figure.axes[1].collections) == 0, "the line only where it crosses 0"
    assert len(viz.draw_mask_logits(np.zeros((30, 7, 7)), n=5).axes) == 5 + 1
    assert viz.draw_mask_logits(np.zeros((0, 7, 7)), title="none").axes[0].texts[0].get_text() == "no masks"


def test_losses_are_running_means():
    history = [{"loss_mask": 4.0 / (i + 1), "loss_classifier": 1.0, "loss": 4.0 / (i + 1) + 1, "lr": 9.0} for i in range(30)]
    figure = viz.draw_losses(history, window=10)
    ax = figure.axes[0]
    lines = [line for line in ax.lines if len(line.get_xdata()) > 2]
    assert len(lines) == 3, "the learning rate is no loss"
    np.testing.assert_allclose(lines[0].get_ydata()[0], np.mean([h["loss_mask"] for h in history[:10]]))
    assert lines[0].get_xdata()[0] == 10 and lines[0].get_xdata()[-1] == 30
    assert sorted(t.get_text().split()[0] for t in ax.texts) == ["classifier", "mask", "total"]
    pixels(viz.draw_losses(history[:3]))
    pixels(viz.draw_losses([]))


def test_save_writes_the_whole_picture_or_nothing(tmp_path):
    image, target = scene()
    figure = viz.draw_detections(image, target["boxes"])
    viz.save(figure, tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), pixels(figure))
    with pytest.raises(DataError, match="a.pdf.*PNG"):
        viz.save(figure, tmp_path / "a.pdf")
    with pytest.raises(DataError, match="folder exists"):
        viz.save(figure, tmp_path / "no" / "a.png")
    assert os.listdir(tmp_path) == ["a.png"]


def test_a_notebook_can_show_a_figure():
    figure = viz.draw_detections(scene()[0])
    assert isinstance(figure, Figure) and figure._repr_png_().startswith(b"\x89PNG")


def test_nothing_heavy_is_imported_early_and_pyplot_never():
    code = ("import sys, numpy as np, nprcnn, nprcnn.viz, nprcnn.evaluate, nprcnn.data\n"
            "early = {'matplotlib', 'PIL', 'tqdm', 'pycocotools'} & set(sys.modules)\n"
            "assert not early, early\n"
            "nprcnn.viz.draw_detections(np.zeros((9, 9, 3), np.uint8))._repr_png_()\n"
            "assert 'matplotlib.pyplot' not in sys.modules\n")
    screenless = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY", "MPLBACKEND")}
    subprocess.run([sys.executable, "-c", code], check=True, env=screenless)
