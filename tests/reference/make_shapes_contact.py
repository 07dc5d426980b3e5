"""Writes shapes_contact_easy.png and shapes_contact_full.png: 24 held-out scenes of each difficulty, no text.

They fix what the two difficulties look like; tests/test_shapes.py compares their pixels. Run from the root of the
repository: python tests/reference/make_shapes_contact.py
"""

from pathlib import Path

import numpy as np
from PIL import Image

from nprcnn.data.shapes import DIFFICULTIES, Shapes


def contact_sheet(difficulty, columns=8, rows=3, gap=4):
    """The sheet as an array (H, W, 3) uint8: scenes in reading order on white."""
    source = Shapes.held_out(columns * rows, difficulty)
    step = source.size[0] + gap
    sheet = np.full((rows * step + gap, columns * step + gap, 3), 255, np.uint8)
    for i in range(len(source)):
        y, x = gap + i // columns * step, gap + i % columns * step
        sheet[y:y + source.size[0], x:x + source.size[1]] = source[i][0]
    return sheet


if __name__ == "__main__":
    for difficulty in DIFFICULTIES:
        path = Path(__file__).parent / f"shapes_contact_{difficulty}.png"
        Image.fromarray(contact_sheet(difficulty)).save(path, optimize=True)
