"""Writes parity_predict.npz and parity_losses.npz from torchvision (made with 0.29.2, torch 2.15, on the CPU, one thread): the full-size
Mask R-CNN, ResNet-50-FPN with 91 classes, on the photos, and training steps of it.

    python make_parity.py            needs torch and torchvision; the tests need neither. Names of cases, or "losses", make only these

Everything runs twice, in float64 and in float32, and both are stored, with the distance between them: it is what a float32
implementation can be asked for. Most of it comes from the very first step, whose sampling points are rounded to float32: a pixel at 1000 is
sampled up to 6e-5 pixels off. Inputs come from parity_inputs.py. The script fails unless the reference is alive: in each photo at
least 50 detections of at least 10 classes, and RoIs on every pyramid level; and unless both runs find the same sets.

    <case>.<run>.samples     run float64 or float32; (stages, 300): each stage's values where parity_inputs.sample looks
    <case>.stats             (stages, 5): size, and of the float64 run b: max|b|, mean, mean |b|; and max|a - b| / max|b|, a the float32 run
    <case>.set_errors        (4,): float32 to float64, largest difference of proposals, their scores, detections and their scores
    <case>.<run>.proposals (P, 4), .proposal_scores, .boxes (D, 4) in pixels of the resized image, .labels, .scores, of all the case's
                             images one after the other; <case>.proposal_counts, <case>.counts: how many each image has
    <case>.image_boxes       the float64 run's boxes in pixels of the photo
    <case>.masks             the float64 run's pasted masks at .5, np.packbits of each image's (D, H, W) one after the other

    <variant>.<run>.losses, .gradients (parameters, 3 + samples), .running: see parity_inputs.summary; the rest are its Decisions
    frozen.gradient_errors   (parameters, 3): float32 to float64: of the norm, 1 - cosine, |a - b| / |b|
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.resnet import resnet50
from torchvision.ops import FrozenBatchNorm2d, box_iou

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from reference import parity_inputs as inputs  # noqa: E402

torch.set_num_threads(1)
WEIGHTS = {}


def build(norm, dtype, **settings):
    """torchvision's maskrcnn_resnet50_fpn with the weights of parity_inputs."""
    body = resnet50(weights=None, norm_layer=norm)
    model = MaskRCNN(_resnet_fpn_extractor(body, 5), inputs.NUM_CLASSES, **settings)
    state = model.state_dict()
    for name, value in state.items():
        if name not in WEIGHTS:
            WEIGHTS[name] = value if name.endswith("num_batches_tracked") else torch.tensor(inputs.tensor(name, tuple(value.shape)))
    model.load_state_dict({name: WEIGHTS[name] for name in state})
    return model.to(dtype)


def as_input(image, dtype):
    """(H, W, 3) uint8 -> (3, H, W) in 0..1, divided in the dtype of the run."""
    return torch.tensor(image.transpose(2, 0, 1).copy()).to(dtype) / 255


class Recorder:
    """Collects a model's stages under nprcnn's names. Hooks where there is a module, wrapped methods elsewhere."""

    def __init__(self, model):
        self.stages = {}
        heads, rpn, body = model.roi_heads, model.rpn, model.backbone.body
        self.hook(model.transform, "transform.batch", lambda out: out[0].tensors)
        self.hook(body.relu, "backbone.stem")
        for k in (1, 2, 3, 4):
            self.hook(getattr(body, f"layer{k}"), f"backbone.layer{k}")
        for k, level in enumerate(inputs.LEVELS):
            self.hook(model.backbone.fpn, f"fpn.{level}", lambda out, k=k: list(out.values())[k])
            self.hook(rpn.head, f"rpn.logits.{level}", lambda out, k=k: out[0][k])
            self.hook(rpn.head, f"rpn.deltas.{level}", lambda out, k=k: out[1][k])
        self.hook(rpn.anchor_generator, "rpn.anchors", lambda out: out[0])
        self.hook(heads.box_roi_pool, "roi_heads.box_features")
        self.hook(heads.box_head, "roi_heads.box_hidden")
        self.hook(heads.box_predictor, "roi_heads.class_logits", lambda out: out[0])
        self.hook(heads.box_predictor, "roi_heads.box_deltas", lambda out: out[1])
        self.hook(heads.mask_roi_pool, "roi_heads.mask_features")
        self.hook(heads.mask_head, "roi_heads.mask_hidden")
        self.hook(heads.mask_predictor, "roi_heads.mask_logits")
        self.wrap(rpn, "filter_proposals", lambda out: {"rpn.proposals": out[0], "rpn.proposal_scores": out[1]})
        self.wrap(heads, "postprocess_detections",
                  lambda out: dict(zip(("detections.boxes", "detections.scores", "detections.labels"), out)))
        postprocess = model.transform.postprocess

        def with_probabilities(found, sizes, original_sizes):
            if found and "masks" in found[0]:
                self.stages["roi_heads.mask_probabilities"] = np.concatenate([f["masks"][:, 0].numpy() for f in found])
            return postprocess(found, sizes, original_sizes)
        model.transform.postprocess = with_probabilities

    def hook(self, module, name, pick=lambda out: out):
        # a copy, for torchvision's ReLUs work in place
        module.register_forward_hook(lambda module, args, out: self.stages.__setitem__(name, pick(out).detach().numpy().copy()))

    def wrap(self, owner, method, pick):
        function = getattr(owner, method)

        def wrapped(*args):
            result = function(*args)
            self.stages.update({name: [x.detach().numpy().copy() for x in value] for name, value in pick(result).items()})
            return result
        setattr(owner, method, wrapped)


def levels_of(boxes):
    """Pyramid level of each box (n, 4), 0 for P2."""
    size = np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    return np.clip(np.floor(4 + np.log2(size / 224) + 1e-6), 2, 5).astype(int) - 2


def match_sets(a, b, scores, labels=None):
    """Orders that put the float32 run's boxes beside the float64 run's: one index over all images, and the largest differences."""
    order, start, apart, apart_scores = [], 0, 0.0, 0.0
    for i in range(len(b[scores])):
        boxes = labels.replace("labels", "boxes") if labels else "rpn.proposals"
        one, distance = inputs.pair_up(a[boxes][i], b[boxes][i], *((a[labels][i], b[labels][i]) if labels else ()))
        apart = max(apart, distance.max())
        apart_scores = max(apart_scores, np.abs(a[scores][i][one] - b[scores][i]).max())
        order.append(one + start)
        start += len(one)
    return np.concatenate(order), apart, apart_scores


def predict(case):
    names, settings = inputs.CASES[case]
    runs = {}
    for dtype in (torch.float64, torch.float32):
        model = build(FrozenBatchNorm2d, dtype, **settings).eval()
        recorder = Recorder(model)
        with torch.no_grad():
            found = model([as_input(inputs.photo(name), dtype) for name in names])
        runs[dtype] = recorder.stages, found
    (b, found), (a, found32) = runs[torch.float64], runs[torch.float32]

    by_proposal, proposal_error, proposal_score_error = match_sets(a, b, "rpn.proposal_scores")
    by_detection, box_error, score_error = match_sets(a, b, "detections.scores", "detections.labels")
    stats = []
    for stage in inputs.STAGES:
        x, y = a[stage], b[stage]
        if stage in inputs.BY_PROPOSAL:
            x = x[by_proposal]
        elif stage in inputs.BY_DETECTION:
            x = x[by_detection]
        largest = np.abs(y).max()
        stats.append([y.size, largest, y.mean(), np.abs(y).mean(), np.abs(x - y).max() / largest])
        print(f"  {stage:<30} {str(y.shape):<22} max {largest:9.3f}   float32 {stats[-1][-1]:.1e}")
    print(f"  float32: proposals {proposal_error:.1e} px, scores {proposal_score_error:.1e}; "
          f"detections {box_error:.1e} px, scores {score_error:.1e}")

    masks64 = [f["masks"][:, 0].numpy() >= 0.5 for f in found]
    masks32 = [f["masks"][:, 0].numpy() >= 0.5 for f in found32]
    start = 0
    for i, (name, boxes, proposals, labels) in enumerate(zip(names, b["detections.boxes"], b["rpn.proposals"], b["detections.labels"])):
        rois = np.bincount(levels_of(proposals), minlength=4)
        order = by_detection[start:start + len(boxes)] - start
        start += len(boxes)
        differing = (masks32[i][order] != masks64[i]).mean()
        nearest = np.abs(found[i]["masks"].numpy() - 0.5).min()
        print(f"  {name}: {len(boxes)} detections of {len(set(labels))} classes, {len(proposals)} RoIs by level {rois}, "
              f"mask pixels that differ in float32 {differing:.1e}, nearest to .5 {nearest:.1e}")
        # the small images of the batch have no room for the largest RoIs
        if len(boxes) < 50 or len(set(labels)) < 10 or min(rois if case != "batch" else rois[:2]) == 0:
            sys.exit(f"{case}: {name} is not alive")
    # a proposal or detection that only one run has stands beside a box that is not its own
    if max(proposal_error, box_error) > 0.1 or max(proposal_score_error, score_error) > 1e-3:
        sys.exit(f"{case}: torchvision's float32 run has other proposals or detections than its float64 run; choose another photo")
    result = {"stats": np.array(stats), "set_errors": np.array([proposal_error, proposal_score_error, box_error, score_error]),
              "proposal_counts": np.array([len(x) for x in b["rpn.proposals"]]),
              "counts": np.array([len(x) for x in b["detections.boxes"]]),
              "image_boxes": np.concatenate([f["boxes"].numpy() for f in found]),
              "masks": np.concatenate([np.packbits(m) for m in masks64])}
    for run, stages in (("float64", b), ("float32", a)):
        result[f"{run}.samples"] = np.array([inputs.sample(f"{case} {stage}", stages[stage], stages[stage].dtype)
                                             for stage in inputs.STAGES])
        for name, stage in (("proposals", "rpn.proposals"), ("proposal_scores", "rpn.proposal_scores"), ("boxes", "detections.boxes"),
                            ("labels", "detections.labels"), ("scores", "detections.scores")):
            value = np.concatenate(stages[stage])
            result[f"{run}.{name}"] = value.astype(np.uint8) if name == "labels" else value
    return result


# ---- training ----

class Remembering:
    """A Matcher that keeps what it answered."""

    def __init__(self, matcher):
        self.matcher, self.answers = matcher, []

    def __call__(self, quality):
        answer = self.matcher(quality)
        self.answers.append(answer.clone().numpy())
        return answer

    def __getattr__(self, name):
        return getattr(self.matcher, name)


def train(norm, dtype):
    """One training step: the entries of one variant, and all gradients."""
    images, targets = inputs.training_batch()
    model = build(norm, dtype, **inputs.TRAINING).train()
    rpn, heads = model.rpn, model.roi_heads
    # Ties for the best anchor are equalities to the last bit, so they depend on the precision: float32, as in every real training.
    rpn.box_similarity = lambda a, b: box_iou(a.float(), b.float())
    rpn.proposal_matcher = Remembering(rpn.proposal_matcher)
    out, chosen = {}, {}
    compute_loss, select = rpn.compute_loss, heads.select_training_samples

    def loss_in_one_precision(objectness, deltas, labels, regression_targets):
        # torchvision keeps these labels in float32, and then PyTorch rounds this one loss, and its gradient, to float32. Here they get
        # the precision of the run, so that float64 can be compared in float64.
        out["objectness_as_it_is"] = compute_loss(objectness, deltas, labels, regression_targets)[0].detach().numpy()
        return compute_loss(objectness, deltas, [x.to(objectness.dtype) for x in labels], regression_targets)

    def remember(proposals, wanted):
        result = select(proposals, wanted)
        chosen.update(zip(("proposals", "matched", "labels"), result))
        return result
    rpn.compute_loss, heads.select_training_samples = loss_in_one_precision, remember

    losses = model([as_input(image, dtype) for image in images],
                   [{"boxes": torch.tensor(t["boxes"]).to(dtype), "labels": torch.tensor(t["labels"]), "masks": torch.tensor(t["masks"])}
                    for t in targets])
    sum(losses.values()).backward()
    gradients = {name: p.grad.numpy() for name, p in model.named_parameters()}
    out["losses"] = np.array([losses[name].item() for name in inputs.LOSSES])
    out["gradients"] = np.array([inputs.summary(name, gradient) for name, gradient in gradients.items()])
    out["running"] = np.array([inputs.summary(name, b.numpy()) for name, b in model.named_buffers() if "running" in name])
    out["anchor_matched"] = np.concatenate(rpn.proposal_matcher.answers).astype(np.int8)
    out["proposals"] = np.concatenate([x.detach().numpy() for x in chosen["proposals"]])
    out["matched"], out["labels"] = (np.concatenate([x.numpy() for x in chosen[name]]).astype(np.uint8) for name in ("matched", "labels"))
    out["counts"] = np.array([len(x) for x in chosen["labels"]])
    print("  losses", out["losses"], "objectness as torchvision computes it:", float(out["objectness_as_it_is"]))
    print("  RoIs", out["counts"], "positive", (out["labels"] > 0).sum(), "by level", np.bincount(levels_of(out["proposals"]), minlength=4),
          "positive anchors", (out["anchor_matched"] >= 0).sum(), "ignored", (out["anchor_matched"] == -2).sum())
    norms = out["gradients"][:, 0]
    print("  gradient norms", norms.min(), "to", norms.max())
    if not np.isfinite(norms).all() or norms.min() == 0:
        sys.exit("a parameter has no gradient")
    return out, gradients


def make_losses():
    out = {}
    gradients = {}
    for variant, norm, dtype in (("frozen.float64", FrozenBatchNorm2d, torch.float64), ("frozen.float32", FrozenBatchNorm2d, torch.float32),
                                 ("batch.float64", nn.BatchNorm2d, torch.float64)):
        print(variant)
        entries, gradients[variant] = train(norm, dtype)
        out.update({f"{variant}.{name}": value for name, value in entries.items()})
    # what float32 costs torchvision itself, provided both runs decided the same
    a, b = gradients["frozen.float32"], gradients["frozen.float64"]
    for name in ("anchor_matched", "matched", "labels"):
        if not np.array_equal(out[f"frozen.float32.{name}"], out[f"frozen.float64.{name}"]):
            sys.exit(f"float32 and float64 differ in {name}; choose another seed or image")
    norm = np.linalg.norm
    errors = []
    for x, y in ((a[name].ravel().astype(np.float64), b[name].ravel()) for name in b):
        errors.append((abs(norm(x) / norm(y) - 1), max(0, 1 - x @ y / (norm(x) * norm(y))), norm(x - y) / norm(y)))
    out["frozen.gradient_errors"] = np.array(errors)
    print("float32 against float64, worst of all parameters: norm {:.1e}, 1 - cosine {:.1e}, |a - b| / |b| {:.1e}".format(
        *np.max(errors, axis=0)))
    print("losses", np.abs(out["frozen.float32.losses"] / out["frozen.float64.losses"] - 1))
    np.savez_compressed(HERE / "parity_losses.npz", **out)
    print("parity_losses.npz", (HERE / "parity_losses.npz").stat().st_size, "bytes")


def make_predict(cases):
    path = HERE / "parity_predict.npz"
    out = {} if cases == list(inputs.CASES) else dict(np.load(path))
    for case in cases:
        print(case)
        out.update({f"{case}.{name}": value for name, value in predict(case).items()})
    np.savez_compressed(path, **out)
    print(path.name, path.stat().st_size, "bytes")


if __name__ == "__main__":
    wanted = sys.argv[1:] or [*inputs.CASES, "losses"]
    cases = [case for case in wanted if case != "losses"]
    if cases:
        make_predict(cases)
    if "losses" in wanted:
        make_losses()
