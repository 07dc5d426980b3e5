"""Training: the optimiser, the schedule, the loop."""

from .loop import train
from .schedule import step_schedule
from .sgd import SGD, clip_gradients
