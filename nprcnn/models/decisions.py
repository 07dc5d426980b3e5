"""What a training pass decided, and what it keeps for the backward pass."""

from typing import NamedTuple

LOSSES = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask")


class Decisions(NamedTuple):
    """Everything discrete that a training pass decided: lists with one array an image.

    `losses(..., decisions=...)` takes it instead of deciding anew: gradient checks freeze it (between decisions the losses are
    smooth), and another system's decisions can be fed in.
    """

    anchor_positive: list  # (P,) sampled anchors that answer "object"
    anchor_negative: list  # (Q,) sampled anchors that answer "background"
    anchor_matched: list   # (P,) the target of each positive anchor
    proposals: list        # (S, 4) sampled RoIs
    proposal_anchor: list  # (S,) the anchor behind each RoI; -1 for a target box that was added to the proposals
    labels: list           # (S,) the class of each RoI, 0 for background
    matched: list          # (S,) the target of each RoI (0 where the label is background)
    levels: list           # (S,) pyramid level of each RoI, 0 for P2


class LossCache(NamedTuple):
    """What `losses` hands to `backward`: the decisions, and each stage's cache."""

    decisions: Decisions
    first_stage: tuple     # of the backbone, of the RPN
    rpn_loss: tuple
    box: tuple             # RoIAlign, head and predictor of the box branch
    box_loss: tuple
    mask: tuple            # the same of the mask branch; None without one, and so mask_loss
    mask_loss: tuple
