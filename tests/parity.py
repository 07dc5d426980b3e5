"""The full-size model beside torchvision's: what the tests of parity share.

    python tests/parity.py [case] [float32 | float64]      prints the error of every stage
"""

import sys
from pathlib import Path

import numpy as np
from reference import parity_inputs as inputs

import nprcnn

FOLDER = Path(__file__).parent / "reference"
_weights = {}


def full_model(dtype, norm="frozen", **settings):
    """maskrcnn_resnet50_fpn with 91 classes and the weights of parity_inputs, which are drawn once."""
    model = nprcnn.maskrcnn_resnet50_fpn(inputs.NUM_CLASSES, norm=norm, trainable_backbone_layers=5, **settings)
    for name, tensor in model.named_tensors():
        if name not in _weights:
            _weights[name] = inputs.tensor(name, tensor.data.shape)
        tensor.data = _weights[name].astype(dtype)
    return model


class Reference:
    """The entries of one case in an .npz file: reference["stats"] is the array "<case>.stats"."""

    def __init__(self, file, case):
        self.file, self.case = file, case

    def __getitem__(self, name):
        return self.file[f"{self.case}.{name}"]


def predict(case, dtype, reference):
    """One run of a case, as a dict with the reference's names; rows in the order of the reference's own proposals and detections."""
    names, settings = inputs.CASES[case]
    run = np.dtype(dtype).name
    trace = nprcnn.Trace()
    found = full_model(dtype, **settings).predict([inputs.photo(name) for name in names], trace=trace)

    proposal_order, proposal_distance = _orders(trace["rpn.proposals"], None, reference, run, "proposals", "proposal_counts")
    order, distance = _orders(trace["detections.boxes"], trace["detections.labels"], reference, run, "boxes", "counts")
    samples, sizes, means = [], [], []
    for stage in inputs.STAGES:
        x = trace[stage]
        # these mean what they do only if the sets agree, which a test of its own asserts
        if stage in inputs.BY_PROPOSAL:
            x = x[proposal_order]
        elif stage in inputs.BY_DETECTION:
            x = x[order]
        samples.append(inputs.sample(f"{case} {stage}", x))
        sizes.append(x.size)
        means.append((x.mean(dtype=np.float64), np.abs(x).mean(dtype=np.float64)))
    mask_order, _ = _orders([f.boxes for f in found], [f.labels for f in found], reference, "", "image_boxes", "counts")
    masks = [mask for f in found for mask in f.masks]
    starts = np.concatenate([np.full(len(f.boxes), i) for i, f in enumerate(found)])
    masks = [np.array([masks[j] for j in mask_order if starts[j] == i]) for i in range(len(found))]
    return {
        "samples": np.array(samples), "sizes": np.array(sizes), "means": np.array(means),
        "proposal_counts": [len(p) for p in trace["rpn.proposals"]], "counts": [len(f.boxes) for f in found],
        "proposal_order": proposal_order, "proposal_distance": proposal_distance, "order": order, "distance": distance,
        "proposal_scores": np.concatenate(trace["rpn.proposal_scores"])[proposal_order],
        "scores": np.concatenate(trace["detections.scores"])[order],
        "image_boxes": np.concatenate([f.boxes for f in found])[mask_order], "masks": masks,
        "levels": np.concatenate(trace["roi_heads.levels"]),
    }


def _orders(boxes, labels, reference, run, name, counts):
    """pair_up image by image: which of ours, all images one after the other, is each of the reference's; and how far apart."""
    order, distance, start = [], [], 0
    splits = np.cumsum(reference[counts])[:-1]
    prefix = f"{run}." if run else ""
    wanted = np.split(reference[prefix + name], splits)
    wanted_labels = None if labels is None else np.split(reference[f"{run or 'float64'}.labels"], splits)
    for i, found in enumerate(boxes):
        pair = (None, None) if labels is None else (labels[i], wanted_labels[i])
        one, apart = inputs.pair_up(found, wanted[i], *pair)
        order.append(one + start)
        distance.append(apart)
        start += len(found)
    return np.concatenate(order), np.concatenate(distance)


def stage_errors(result, reference, run):
    """{stage: max|a - b| / max|b| over the sampled positions}; b is torchvision's run of the same precision."""
    wanted = reference[f"{run}.samples"]
    largest = reference["stats"][:, 1]
    with np.errstate(invalid="ignore"):
        errors = np.nanmax(np.abs(result["samples"] - wanted), axis=1) / largest
    return dict(zip(inputs.STAGES, errors))


def limits(reference, fixed):
    """{stage: tolerance in float32}: three times torchvision's own distance from its float64 run, and never more than `fixed`."""
    return {stage: min(fixed, 3 * own) for stage, own in zip(inputs.STAGES, reference["stats"][:, 4])}


def main():
    cases = sys.argv[1:2] or list(inputs.CASES)
    dtype = np.dtype(sys.argv[2] if len(sys.argv) > 2 else "float32").type
    run = np.dtype(dtype).name
    file = np.load(FOLDER / "parity_predict.npz")
    for case in cases:
        reference = Reference(file, case)
        result = predict(case, dtype, reference)
        print(f"{case}: nprcnn in {run} against torchvision in {run}; torchvision's float32 against its float64")
        own = dict(zip(inputs.STAGES, reference["stats"][:, 4]))
        for stage, error in stage_errors(result, reference, run).items():
            print(f"  {stage:<30} {error:.1e}   {own[stage]:.1e}")
        print("  largest difference: proposals {:.1e} px, scores {:.1e}; detections {:.1e} px, scores {:.1e}".format(
            result["proposal_distance"].max(), np.abs(result["proposal_scores"] - reference[f"{run}.proposal_scores"]).max(),
            result["distance"].max(), np.abs(result["scores"] - reference[f"{run}.scores"]).max()))
        print("  torchvision's own:              {:.1e} px         {:.1e};            {:.1e} px         {:.1e}".format(
            *reference["set_errors"]))
        wanted = reference["masks"]
        flat = np.concatenate([np.packbits(m) for m in result["masks"]])
        print("  mask pixels that differ:", np.unpackbits(wanted ^ flat).sum() if wanted.shape == flat.shape else "other shapes",
              "of", 8 * wanted.size)


if __name__ == "__main__":
    main()
