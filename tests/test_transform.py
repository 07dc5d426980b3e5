import numpy as np
import pytest
from PIL import Image
from reference import seeded
from small_models import REFERENCE

from nprcnn.models.transform import make_batch, resize_boxes, resize_target, resized_size


def images():
    return [np.floor(seeded.uniform(f"transform {k}", 0, 256, *s, 3)).astype(np.uint8) for k, s in enumerate(((13, 21), (17, 11)))]


def test_sizes_are_torchvisions():
    table = REFERENCE["transform.sizes"]
    for height, width, min_size, max_size, new_height, new_width in table.tolist():
        assert resized_size(height, width, min_size, max_size) == (new_height, new_width), (height, width, min_size, max_size)
    assert (np.minimum(table[:, 4], table[:, 5]) == table[:, 2] - 1).any()  # floor() leaves some short sides at 799
    assert resized_size(1, 5000, 128, 256) == (1, 256)  # never 0


def test_batch_is_torchvisions():
    batch = make_batch(images(), 16, 24, dtype=np.float64)
    assert batch.tensor.shape == (2, 3, 32, 32) and batch.original_sizes == [(13, 21), (17, 11)]
    assert batch.sizes == [(14, 24), (24, 15)]
    np.testing.assert_allclose(batch.tensor, REFERENCE["transform.batch"], rtol=1e-12, atol=1e-13)
    for x, (h, w) in zip(batch.tensor, batch.sizes):
        assert not x[:, h:].any() and not x[:, :, w:].any() and x[:, :h, :w].all()


def test_float32_batch():
    batch = make_batch(images(), 16, 24)
    assert batch.tensor.dtype == np.float32
    np.testing.assert_allclose(batch.tensor, REFERENCE["transform.batch"], rtol=1e-4, atol=1e-5)


def test_an_image_of_the_right_size_is_only_normalised():
    image = images()[0][:, :13]
    batch = make_batch([image], 13, 13, mean=(0, 0, 0), std=(1, 1, 1), size_divisible=1, dtype=np.float64)
    np.testing.assert_array_equal(batch.tensor[0], image.transpose(2, 0, 1) / 255)
    floats = make_batch([image / 255], 13, 13, mean=(0, 0, 0), std=(1, 1, 1), size_divisible=1, dtype=np.float64)
    np.testing.assert_array_equal(floats.tensor, batch.tensor)


@pytest.mark.parametrize("k", [0, 1])
def test_targets_are_torchvisions(k):
    image = images()[k]
    masks = (seeded.uniform(f"transform mask {k}", 0, 1, 2, *image.shape[:2]) > 0.5).astype(np.uint8)
    target = {"boxes": seeded.boxes(f"transform boxes {k}", 2, *image.shape[:2]), "labels": np.array([1, 2]), "masks": masks}
    copies = {key: value.copy() for key, value in target.items()}
    new = resize_target(target, image.shape[:2], resized_size(*image.shape[:2], 16, 24), np.float64)
    np.testing.assert_allclose(new["boxes"], REFERENCE[f"transform.boxes.{k}"], rtol=1e-15)
    np.testing.assert_array_equal(new["masks"], REFERENCE[f"transform.masks.{k}"])
    assert new["masks"].dtype == np.uint8 and new["labels"].tolist() == [1, 2]
    assert all((target[key] == copies[key]).all() for key in target)


def test_a_target_without_objects_and_one_without_masks():
    empty = {"boxes": np.zeros((0, 4), np.float32), "labels": np.zeros(0, np.int64), "masks": np.zeros((0, 10, 20), np.uint8)}
    new = resize_target(empty, (10, 20), (15, 30))
    assert new["boxes"].shape == (0, 4) and new["masks"].shape == (0, 15, 30) and new["boxes"].dtype == np.float32
    assert "masks" not in resize_target({**empty, "masks": None}, (10, 20), (15, 30))
    del empty["masks"]
    assert "masks" not in resize_target(empty, (10, 20), (15, 30))


def test_boxes_scale_by_the_ratio_of_each_axis():
    boxes = np.float32([[1, 2, 3, 4]])
    np.testing.assert_allclose(resize_boxes(boxes, (10, 20), (15, 20)), [[1, 3, 3, 6]], rtol=1e-7)
    assert resize_boxes(boxes, (10, 20), (15, 20)).dtype == np.float32
    back = resize_boxes(resize_boxes(boxes, (333, 500), (799, 1199)), (799, 1199), (333, 500))
    np.testing.assert_allclose(back, boxes, rtol=5e-7)


# ---- Detectron2's: each argument alone ----

def shortest_edge(h, w, size, max_size):
    """Detectron2's ResizeShortestEdge.get_output_shape."""
    scale = size * 1.0 / min(h, w)
    if h < w:
        newh, neww = size, scale * w
    else:
        newh, neww = scale * h, size
    if max(newh, neww) > max_size:
        scale = max_size * 1.0 / max(newh, neww)
        newh = newh * scale
        neww = neww * scale
    return int(newh + 0.5), int(neww + 0.5)


def test_sizes_with_pil_are_detectron2s():
    differ = 0
    for short in range(200, 700, 7):
        for long in range(short, 3 * short, 13):
            for h, w in ((short, long), (long, short)):
                found = resized_size(h, w, 800, 1333, "pil")
                assert found == shortest_edge(h, w, 800, 1333)
                differ += found != resized_size(h, w, 800, 1333)
    assert differ > 5000  # half of the long sides are rounded up
    assert resized_size(335, 480, 800, 1333, "pil") == (800, 1146) and resized_size(335, 480, 800, 1333)[0] == 799
    assert resized_size(1, 5000, 128, 256, "pil") == (1, 256)  # never 0


def test_pil_resizes_the_bytes():
    """Pillow averages when it shrinks, and rounds to whole numbers."""
    image = images()[0]
    batch = make_batch([image], 6, 24, mean=(0, 0, 0), std=(1, 1, 1), size_divisible=1, dtype=np.float64, pixel_range=255, resize="pil")
    expected = np.asarray(Image.fromarray(image).resize((10, 6), Image.BILINEAR))
    np.testing.assert_array_equal(batch.tensor[0], expected.transpose(2, 0, 1))
    floats = make_batch([image], 6, 24, mean=(0, 0, 0), std=(1, 1, 1), size_divisible=1, dtype=np.float64, pixel_range=255)
    assert np.abs(floats.tensor[:, :, :, :9] - batch.tensor[:, :, :, :9]).max() > 20


def test_pixel_range_channel_order_and_mean():
    image = images()[0][:, :13]
    plain = make_batch([image], 13, 13, mean=(0, 0, 0), std=(1, 1, 1), size_divisible=1, dtype=np.float64)
    wide = make_batch([image], 13, 13, mean=(0, 0, 0), std=(1, 1, 1), size_divisible=1, dtype=np.float64, pixel_range=255)
    np.testing.assert_array_equal(wide.tensor[0], image.transpose(2, 0, 1))
    np.testing.assert_allclose(wide.tensor, 255 * plain.tensor, rtol=1e-15)
    floats = make_batch([image / 255], 13, 13, mean=(0, 0, 0), std=(1, 1, 1), size_divisible=1, dtype=np.float64, pixel_range=255)
    np.testing.assert_allclose(floats.tensor, wide.tensor, rtol=1e-14)
    # mean and std are in the order and the range of what the network is fed with
    bgr = make_batch([image], 13, 13, mean=(1, 2, 3), std=(4, 5, 6), size_divisible=1, dtype=np.float64, pixel_range=255,
                     channel_order="bgr")
    for channel, (source, mean, std) in enumerate([(2, 1, 4), (1, 2, 5), (0, 3, 6)]):
        np.testing.assert_allclose(bgr.tensor[0, channel], (image[:, :, source] - float(mean)) / std, rtol=1e-15)


@pytest.mark.parametrize("size", [(8, 20), (30, 31), (13, 40)])
def test_masks_with_pil_are_pillows_nearest(size):
    masks = (seeded.uniform("transform mask 0", 0, 1, 2, 13, 21) > 0.5).astype(np.uint8)
    target = {"boxes": np.float32([[1, 2, 8, 9]] * 2), "labels": np.array([1, 2]), "masks": masks}
    found = resize_target(target, (13, 21), size, resize="pil")
    expected = [np.asarray(Image.fromarray(mask).resize(size[::-1], Image.NEAREST)) for mask in masks]
    np.testing.assert_array_equal(found["masks"], expected)
    plain = resize_target(target, (13, 21), size)
    assert found["masks"].dtype == np.uint8 and (found["masks"] != plain["masks"]).any()
    np.testing.assert_array_equal(found["boxes"], plain["boxes"])
