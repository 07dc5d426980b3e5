"""The course's exercises, and the look of its figures.

    from nprcnn import course                       course.style(), course.where_we_are(...), course.show_matrix(...)
    from nprcnn.course.backward import check_bce_backward
    check_bce_backward(bce_backward)                a Result: shows as text; .passed is True or False

One file a topic, each imported by the notebook that needs it, and by its full name: `from nprcnn.course.TOPIC import
check_NAME`. Here are only the things that every notebook uses. The machinery that checks are made of is in
`nprcnn/course/checks.py`; its docstring says how to add an exercise.
"""

from .checks import Result, compare
from .figures import BACKWARD, FORWARD, GREEN, PINK, YELLOW, show_matrix, style, where_we_are
