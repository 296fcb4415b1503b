"""What a training reveals of the truth: discs, scribbles and patches, as somebody would click, draw and outline.

Mostly where the map is wrong, as interactive segmentation trains (RITM, SimpleClick).
"""

import cv2
import numpy as np
from numpy.typing import NDArray


def reveal(wrong: NDArray[np.bool_], at_errors: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Draw one to six discs, scribbles and patches as a mask, a share `at_errors` of them on pixels that are wrong."""
    canvas = np.zeros(wrong.shape, np.uint8)
    errors = np.argwhere(wrong)
    for _ in range(rng.integers(1, 7)):
        if len(errors) and rng.random() < at_errors:
            row, col = (int(v) for v in errors[rng.integers(len(errors))])
        else:
            row, col = int(rng.integers(wrong.shape[0])), int(rng.integers(wrong.shape[1]))
        _mark(canvas, row, col, rng)
    return canvas.astype(np.bool_)


def _mark(canvas: NDArray[np.uint8], row: int, col: int, rng: np.random.Generator) -> None:
    """Draw one disc, scribble or patch around (row, col) in place."""
    kind = rng.integers(3)
    if kind == 0:
        cv2.circle(canvas, (col, row), int(rng.integers(1, 9)), 1, thickness=-1)
    elif kind == 1:
        walk = np.cumsum(np.vstack([[[col, row]], rng.integers(-12, 13, size=(int(rng.integers(2, 6)), 2))]), axis=0)
        cv2.polylines(canvas, [walk.astype(np.int32)], False, 1, thickness=int(rng.integers(1, 5)))
    else:
        half = rng.integers(4, 25, size=2)
        cv2.rectangle(canvas, (col - int(half[1]), row - int(half[0])), (col + int(half[1]), row + int(half[0])), 1, -1)
