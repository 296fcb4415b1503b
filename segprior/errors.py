"""The exceptions of segprior.

    SegpriorError               everything segprior raises on purpose
    ├── SettingError            an argument out of its range
    ├── LegendError             an unknown class, a value that is in no legend
    ├── RasterError             an input raster that cannot be used
    ├── VectorError             polygons that cannot be made or written
    ├── OutputError             a target that cannot be written
    ├── DatasetError            a descriptor or its files
    ├── CheckpointError         a prior file
    └── TrainingError           a run that cannot start or go on

A message is one line: what was wanted, what came, what to do. The library raises; only the command line prints.
"""


class SegpriorError(Exception):
    """Everything segprior raises on purpose; the message is one line fit for a user."""


class SettingError(SegpriorError):
    """An argument is out of its range."""


class LegendError(SegpriorError):
    """A class name or value is in no legend, or a legend contradicts itself."""


class RasterError(SegpriorError):
    """An input raster is missing, unreadable, or lacks what is needed."""


class VectorError(SegpriorError):
    """Polygons cannot be made from this raster or written to this file."""


class OutputError(SegpriorError):
    """A target cannot be written: it exists, its folder does not, or the disk refuses."""


class DatasetError(SegpriorError):
    """A data set descriptor is wrong, or its files are missing or altered."""


class CheckpointError(SegpriorError):
    """A file is not a prior, or lacks metadata that a prior needs."""


class TrainingError(SegpriorError):
    """A training run cannot start or cannot go on."""
