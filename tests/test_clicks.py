"""Simulated clicks: in the middle of what is wrong, the largest first."""

import numpy as np

from segprior.clicks import discs, largest_errors


def test_the_largest_errors_get_a_click_where_they_are_deepest() -> None:
    truth = np.zeros((40, 60), np.uint8)
    truth[:, 30:] = 1
    found = truth.copy()
    found[3:8, 4:9] = 2  # 25 pixels of class 0
    found[10:19, 26:37] = 2  # 36 of class 0, 63 of class 1: two errors, for their truths differ
    found[30:33, 40:43] = 0
    assert largest_errors(found, truth, 3) == [(13, 33), (11, 27), (5, 6)]
    assert len(largest_errors(found, truth, 10)) == 4
    assert largest_errors(truth, truth, 3) == []


def test_pixels_without_a_label_are_no_errors() -> None:
    truth = np.full((16, 16), 255, np.uint8)
    assert largest_errors(np.zeros_like(truth), truth, 3) == []


def test_a_disc_holds_the_class_of_its_middle_alone() -> None:
    truth = np.zeros((9, 9), np.uint8)
    truth[:, 5:] = 1
    drawn = discs(truth, [(4, 4)], 2)
    assert (drawn == 0).sum() == 9  # of the 13 pixels of the disc those on the left of column 5
    assert not (drawn == 1).any()
    assert drawn[4, 4] == 0
    assert drawn[0, 0] == 255
