"""`nprcnn bench`: where the time goes, how near that is to what the machine can do, and how other systems do on the same work.

    run        the rounds: prediction and training step, stage by stage, all systems in turn
    sweep      cost against image size, RoIs and batch, with a straight line through it
    report     tables, JSON and the plot

All systems get the same weights (by name, see subject), image and number of threads, and run in alternating rounds, so that a busy
minute hits all of them; what is reported is the median.
"""

from .report import format_report, plot
from .run import bench, compare_branches
from .sweep import sweep

__all__ = ["bench", "compare_branches", "format_report", "plot", "sweep"]
