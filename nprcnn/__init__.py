"""nprcnn: a Mask R-CNN written from scratch in NumPy, for people who want to understand one.

    model = nprcnn.maskrcnn_tiny(weights="shapes")
    result = model.predict(image)                     boxes, labels, scores, masks
    trace = nprcnn.Trace()
    model.predict(image, trace=trace)                 every stage's tensors, by name
"""

from pathlib import Path as _Path

# The kernels are nprcnn.kernels. Installed, they lie in this folder; in the source tree, in one of their own beside it.
if not (_Path(__file__).parent / "kernels").is_dir():
    __path__.append(str(_Path(__file__).parent.parent))

from .backend import use
from .errors import BackendError, ConfigError, DataError, NprcnnError, WeightsError
from .gradcheck import check_gradients
from .models import (Decisions, Detections, MaskRCNN, fasterrcnn_resnet50_fpn, fasterrcnn_resnet50_fpn_v2, maskrcnn_resnet50_c4,
                     maskrcnn_resnet50_dc5, maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2, maskrcnn_resnet101_c4,
                     maskrcnn_resnet101_fpn, maskrcnn_resnet_fpn, maskrcnn_tiny, maskrcnn_vgg16)
from .threads import get_num_threads, set_num_threads
from .pretrained import load_model
from .trace import Trace
from .weights import load_backbone, load_weights, save_weights

__version__ = "0.1.0"
