"""The names of COCO's classes (Lin et al. 2014, arXiv 1405.0312), by number.

COCO has 80 classes with ids from 1 to 90: ten ids were given to classes that the data set never got. torchvision's models have an
output for every id, so 91 with the background; Detectron2's count on without gaps, so 81.
"""

import re

# index = COCO's id = label of a model with 91 classes
COCO_91 = (
    "background", "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "N/A", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse",
    "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "N/A", "backpack", "umbrella", "N/A",
    "N/A", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat",
    "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle", "N/A", "wine glass", "cup", "fork", "knife",
    "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza",
    "donut", "cake", "chair", "couch", "potted plant", "bed", "N/A", "dining table", "N/A", "N/A",
    "toilet", "N/A", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven",
    "toaster", "sink", "refrigerator", "N/A", "book", "clock", "vase", "scissors", "teddy bear", "hair drier",
    "toothbrush",
)
# without the gaps = label of a model with 81 classes
COCO_81 = tuple(name for name in COCO_91 if name != "N/A")


def class_names(num_classes):
    """Names for the labels 0 .. num_classes - 1: COCO's for 91 and 81 classes, "class 7" and the like otherwise."""
    known = {len(COCO_91): COCO_91, len(COCO_81): COCO_81}
    return known.get(num_classes) or ("background", *(f"class {k}" for k in range(1, num_classes)))


def say_nothing(names):
    """Are these the names "class 1", "class 2", ... of classes that have none?"""
    return all(re.fullmatch(r"class \d+", name) for name in names[1:])


def some(names, most=5):
    """At most so many names, for a message."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
