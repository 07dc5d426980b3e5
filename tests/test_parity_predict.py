"""The full-size Mask R-CNN (ResNet-50-FPN, 91 classes, default settings) beside torchvision 0.29, stage by stage, on photos.

Each run happens once; its stages are compared where parity_inputs.sample looks, and its proposals and detections as sets. Float32 is
compared with torchvision's float32 run, for both round the sampling points of the resized photo to float32 in the same way, which moves
every later stage by 1e-5; float64 is compared with its float64 run. `python tests/parity.py` prints every error. Measured with the NumPy
kernels in float32, on hopper: 7e-7 to 7e-6 of the largest value up to the RPN's outputs, 3e-5 at worst behind it, boxes .0035 pixels, no
mask pixel. In float64 all is below the 1e-9 that is asserted, and the masks are equal.
"""

import numpy as np
import pytest
from parity import FOLDER, Reference, full_model, limits, predict, stage_errors
from reference import parity_inputs as inputs

FILE = np.load(FOLDER / "parity_predict.npz")
RUNS = [*((case, np.float32) for case in inputs.CASES), ("cat", np.float64)]


@pytest.fixture(scope="module", params=RUNS, ids=lambda run: f"{run[0]}-{run[1].__name__}")
def run(request):
    """precision, what we compute, what torchvision computed."""
    case, dtype = request.param
    reference = Reference(FILE, case)
    return np.dtype(dtype).name, predict(case, dtype, reference), reference


def test_the_reference_is_alive():
    for case, (names, settings) in inputs.CASES.items():
        reference = Reference(FILE, case)
        assert (reference["counts"] >= 50).all() and len(reference["counts"]) == len(names)
        for labels in np.split(reference["float64.labels"], np.cumsum(reference["counts"])[:-1]):
            assert len(set(labels)) >= 10


def test_same_proposals(run):
    """As sets: each of torchvision's has its own partner here."""
    precision, result, reference = run
    boxes, scores = (0.02, 1e-4) if precision == "float32" else (1e-9 * reference["float64.proposals"].max(), 1e-9)
    assert result["proposal_counts"] == reference["proposal_counts"].tolist()
    assert len(set(result["proposal_order"])) == len(result["proposal_order"])
    assert result["proposal_distance"].max() <= boxes
    assert np.abs(result["proposal_scores"] - reference[f"{precision}.proposal_scores"]).max() <= scores
    if "batch" not in reference.case:
        assert set(result["levels"]) == {2, 3, 4, 5}


def test_same_detections(run):
    precision, result, reference = run
    boxes, scores = (0.02, 1e-4) if precision == "float32" else (1e-9 * reference["float64.boxes"].max(), 1e-9)
    assert result["counts"] == reference["counts"].tolist()
    assert len(set(result["order"])) == len(result["order"])
    assert result["distance"].max() <= boxes  # infinite where no detection of the same label is left
    assert np.abs(result["scores"] - reference[f"{precision}.scores"]).max() <= scores


def test_order_differs_only_where_scores_nearly_tie(run):
    precision, result, reference = run
    for order, scores, counts in ((result["proposal_order"], reference[f"{precision}.proposal_scores"], reference["proposal_counts"]),
                                  (result["order"], reference[f"{precision}.scores"], reference["counts"])):
        start = 0
        for count in counts:
            places, values = order[start:start + count] - start, scores[start:start + count].astype(np.float64)
            # the detection in place places[i] here is the i-th there: between the two places, all scores are nearly the same
            assert np.abs(values - values[places]).max() < 1e-5
            start += count


def test_every_stage(run):
    """Largest difference / largest value. In float32 at most 1e-4, and at most three times what torchvision's own float32 run differs
    from its float64 run; in float64 at most 1e-9."""
    precision, result, reference = run
    np.testing.assert_array_equal(result["sizes"], reference["stats"][:, 0])
    tolerances = limits(reference, 1e-4) if precision == "float32" else dict.fromkeys(inputs.STAGES, 1e-9)
    errors = stage_errors(result, reference, precision)
    assert len(errors) == len(inputs.STAGES) and np.isfinite(list(errors.values())).all()
    assert not {stage: error for stage, error in errors.items() if error > tolerances[stage]}


def test_means_of_whole_tensors(run):
    """The samples see a thousandth of a tensor; its mean and mean |b| see all of it. Both come from the float64 run."""
    precision, result, reference = run
    errors = np.abs(result["means"] - reference["stats"][:, 2:4]).max(axis=1) / reference["stats"][:, 1]
    tolerance = 1e-4 if precision == "float32" else 1e-9
    assert not {stage: error for stage, error in zip(inputs.STAGES, errors) if error > tolerance}


def test_masks(run):
    precision, result, reference = run
    sizes = [inputs.photo(name).shape[:2] for name in inputs.CASES[reference.case][0]]
    start = 0
    for masks, count, (height, width) in zip(result["masks"], reference["counts"], sizes):
        assert masks.shape == (count, height, width) and masks.dtype == bool
        length = -(-count * height * width // 8)
        wanted = np.unpackbits(reference["masks"][start:start + length])[:masks.size].reshape(masks.shape)
        start += length
        differing = (masks != wanted).sum()
        assert wanted.any()
        if precision == "float64":
            assert differing == 0
        else:
            # of the pixels that are in some mask at all, which is stricter than of all pixels
            assert differing <= 1e-3 * wanted.sum()
    assert start == len(reference["masks"])


def test_boxes_in_the_photo(run):
    """Scaled back by ratios that are float32 in torchvision even in a float64 run: an island, which agrees because ours are, too. The
    stored boxes are the float64 run's, so a float32 run may also differ by what torchvision's own does."""
    precision, result, reference = run
    tolerance = 0.02 + reference["set_errors"][2] if precision == "float32" else 1e-9 * reference["image_boxes"].max()
    assert np.abs(result["image_boxes"] - reference["image_boxes"]).max() <= tolerance


def test_a_batch_of_equal_sizes_gives_what_one_by_one_gives():
    """To rounding: a matrix product over two images adds up in another order than over one, so float32 would differ in its last digits
    (measured on these photos: 2e-4 pixels, scores 1e-5). In float64 nothing else is left to see."""
    model = full_model(np.float64, min_size=160, max_size=240, rpn_post_nms_top_n_test=200, box_detections_per_img=25)
    photo = inputs.photo("astronaut")
    images = [photo, photo[:, ::-1]]
    for found, alone in zip(model.predict(images), [model.predict(image) for image in images]):
        assert len(found.boxes) == 25
        np.testing.assert_array_equal(found.labels, alone.labels)
        np.testing.assert_allclose(found.boxes, alone.boxes, rtol=0, atol=1e-9)
        np.testing.assert_allclose(found.scores, alone.scores, rtol=0, atol=1e-11)
        np.testing.assert_array_equal(found.masks, alone.masks)
