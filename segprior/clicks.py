"""Clicks as somebody would set them who corrects a map, made from the truth: for measurements.

Every patch of wrong pixels of one true class is an error; the largest get a click each, where a disc inside them is
largest, as interactive segmentation is evaluated (Xu et al. 2016, Sofiiuk et al. 2021).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from segprior.legend import NO_INDEX

Index = npt.NDArray[np.uint8]
Place = tuple[int, int]
"""Row and column of a pixel."""


def largest_errors(found: Index, truth: Index, count: int) -> list[Place]:
    """Find the middles of the largest errors of a map, largest first: `count` of them, or as many as there are.

    found, truth: class index (height, width); pixels of the truth that are 255 (no label) are no errors.
    """
    wrong = (found != truth) & (truth != NO_INDEX)
    patches: list[tuple[int, Place]] = []
    for value in np.unique(truth[wrong]).tolist():
        labels, number = ndimage.label(wrong & (truth == value))
        sizes = np.bincount(labels.ravel(), minlength=number + 1)
        boxes = ndimage.find_objects(labels)
        for patch in (1 + np.argsort(-sizes[1:], kind="stable")[:count]).tolist():
            box = boxes[patch - 1]
            depth = ndimage.distance_transform_edt(np.pad(labels[box] == patch, 1))[1:-1, 1:-1]
            row, col = np.unravel_index(int(depth.argmax()), depth.shape)
            patches.append((int(sizes[patch]), (int(row) + box[0].start, int(col) + box[1].start)))
    return [place for _, place in sorted(patches, reverse=True)[:count]]


def discs(truth: Index, places: Sequence[Place], radius: int) -> Index:
    """Draw discs of the true class around places, radius in pixels; 255 elsewhere and where the class is another.

    truth: class index (height, width). places: row and column.
    """
    rows, cols = np.ogrid[: truth.shape[0], : truth.shape[1]]
    drawn = np.full(truth.shape, NO_INDEX, np.uint8)
    for row, col in places:
        inside = (rows - row) ** 2 + (cols - col) ** 2 <= radius**2
        drawn[inside & (truth == truth[row, col])] = truth[row, col]
    return drawn
