import numpy as np
import pytest

pytest.importorskip("numba")

from nprcnn import kernel_threads as kt  # noqa: E402
from nprcnn import ops  # noqa: E402
from nprcnn.cli import main  # noqa: E402
from nprcnn.data.images import read_image  # noqa: E402

RECORDED = {}


def record(launch, start=kt.record):
    """kernel_threads.record, once for each launch: the simulator takes seconds."""
    key = launch.kernel, launch.number, launch.scalars
    if key not in RECORDED:
        RECORDED[key] = start(launch)
    return RECORDED[key]


@pytest.mark.parametrize("roi, thread, options", [
    (3, 5, {}),
    (2, 7 * 7 + 12, {}),                                                    # all samples outside
    (2, 11, {}),                                                            # two outside
    (0, 3 * 16 + 15, {"output_size": 4, "sampling_ratio": 0, "aligned": True}),
])
def test_reads_and_weights_of_roi_align(roi, thread, options):
    """The recorded reads are those pixels that have a gradient, by NumPy, and weight * value is NumPy's result."""
    launch = kt.roi_align_launch(roi, thread, **options)
    mine = kt.own(launch, record(launch))
    features, rois, y = (launch.arrays[name] for name in ("features", "rois", "y"))
    arguments = (rois, kt.SCALE, y.shape[2:], *launch.scalars[1:])
    index = np.unravel_index(launch.number, y.shape)
    assert index[0] == roi and np.ravel_multi_index(index[1:], y.shape[1:]) == thread

    writes = [access for access in mine if access.kind == "write"]
    assert [access.index for access in writes] == [index] and mine[-1] is writes[0]
    # float32: coordinates below 100 rounded to 2^-17, on a map with slopes below 1
    assert writes[0].value == pytest.approx(ops.roi_align.roi_align(features, *arguments)[index], abs=2e-5)

    found = kt.samples(launch)
    reads = [access for access in mine if access.array == "features"]
    assert len(reads) == 4 * len(found.points) and [access.kind for access in reads] == ["read"] * len(reads)
    weight = np.zeros(features.shape)
    for access, w in zip(reads, (w for four in found.weights for w in four)):
        assert access.value == pytest.approx(features[access.index])
        weight[access.index] += w
    dy = np.zeros(y.shape)
    dy[index] = 1
    gradient = ops.roi_align.roi_align_grad(dy, rois.astype(float), features.shape, *arguments[1:])
    np.testing.assert_allclose(weight, gradient, rtol=0, atol=1e-6)
    assert (len(found.outside), len(reads)) == {5: (0, 16), 61: (4, 0), 11: (2, 8), 63: (0, 4 * len(found.points))}[thread]


def test_the_two_convolutions_read_differently():
    """Thread 40 of version 1 and thread 680 of version 2 compute the same place of two channels."""
    reads = {}
    for version, thread, index in ((1, 40, (0, 0, 4, 4)), (2, 680, (0, 10, 4, 4))):
        launch = kt.conv2d_launch(thread, version)
        accesses = record(launch)
        mine = kt.own(launch, accesses)
        assert {access.lane for access in accesses} == set(range(32))
        write = mine[-1]
        assert (write.kind, write.index) == ("write", index)
        # 27 products of numbers of at most 1: rounding below 27 * 2^-24
        assert write.value == pytest.approx(ops.conv.conv2d(launch.arrays["x"], launch.arrays["w"], None, 1, 1)[index], abs=1e-5)
        reads[version] = [sum(a.array == name and a.kind == "read" for a in mine) for name in ("x", "w")]
        if version == 1:
            x, w = ([a.value for a in mine if a.array == name] for name in ("x", "w"))
            assert np.dot(x, w) == pytest.approx(write.value, abs=1e-5)
    assert reads == {1: [27, 27], 2: [2, 2]}        # 27 taps: two tiles of 16


def test_the_word_of_nms():
    launch = kt.nms_launch(5)
    mine = kt.own(launch, record(launch))
    boxes = launch.arrays["boxes"]
    over = ops.boxes.box_iou(boxes, boxes)[5] > np.float64(np.float32(0.3))
    expected = sum(1 << int(b) for b in np.flatnonzero(over) if b > 5)
    assert [(access.index, access.value) for access in mine if access.kind == "write"] == [((5, 0), expected)] and expected
    assert [access.index for access in mine if access.kind == "read"] == 2 * [(5, k) for k in range(4)]


@pytest.mark.parametrize("arguments, words", [
    (["roi_align", "--roi", "3", "--thread", "5"],
     ["thread 593 of the grid is thread 81 of block 2: lane 17 of its warp 2", "writes y[3, 0, 0, 5]", "16 reads of 9 pixels",
      "above = (ONE - fx) * plane[top, left] + fx * plane[top, right]", "sectors of 32 bytes"]),
    (["nms", "--thread", "5"], ["the word, bit 63 to bit 0:", "puts out the boxes 17, 23"]),
    (["conv2d", "--thread", "40"], ["27 reads of x, 27 of w", "total += w[o, c, i, j] * x[n, first_c + c, iy, ix]", "more"]),
    (["conv2d", "--thread", "680", "--version", "2"], ["shared memory"]),
])
def test_the_command_prints_and_draws(arguments, words, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(kt, "record", record)
    out = tmp_path / "thread.png"
    assert main(["inspect-kernel", *arguments, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in words), printed
    assert f"wrote {out}" in printed and read_image(out).shape[1] == 1180


@pytest.mark.parametrize("arguments, message", [
    (["roi_align", "--roi", "5"], "--roi 5: the example has 5 RoIs, 0 to 4"),
    (["roi_align", "--thread", "196"], "0 to 195"),
    (["roi_align", "--thread", "-1"], "--thread -1"),
    (["roi_align", "--version", "2"], "--version is no option of roi_align"),
    (["roi_align", "--output-size", "15"], "at most 14"),
    (["nms", "--roi", "0"], "--roi is no option of nms"),
    (["nms", "--thread", "64"], "0 to 63"),
    (["conv2d", "--aligned"], "--aligned is no option of conv2d"),
    (["nms", "--out", "x.jpg"], "ends in .png"),
    (["nms", "--out", "/no such folder/x.png"], "there is no folder"),
])
def test_bad_arguments(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(kt, "record", lambda launch: pytest.fail("the simulator was started"))
    assert main(["inspect-kernel", *arguments]) == 2
    printed = capsys.readouterr()
    assert message in printed.err and len(printed.err.splitlines()) == 1 and not printed.out


def test_without_numba(monkeypatch, capsys):
    monkeypatch.setattr(kt.importlib.util, "find_spec", lambda name: None)
    assert main(["inspect-kernel", "roi_align"]) == 2
    assert "pip install numba" in capsys.readouterr().err
