"""One image on its way through a model, to look at: a page for a browser, and figures for a notebook.

    from nprcnn.inspect import write_page
    write_page("report.html", model, image, target)        what `nprcnn inspect` does
    trace.show("rpn.proposals")                             one stage as a figure
    trace.stepper()                                         all stages, one after the other

Python prepares everything (forward.py, lineage.py, backward.py: dicts and arrays); the page only draws (page/*.js).
"""

from .page import page, write_page
