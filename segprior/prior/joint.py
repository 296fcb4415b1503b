"""The joint tensor x = [image channels | label channels], shape (batch, bands + classes, height, width).

Image channels hold the normalised bands (about zero mean, unit variance). Label channels hold a one-hot vector per
pixel, scaled to {-b, b}: b = `label_scale` sets the labels' signal-to-noise ratio b^2 alpha_bar / (1 - alpha_bar).
A vector p of class probabilities is the point b (2 p - 1); the corners of that simplex are the one-hot vectors, and a
pixel without a label sits at its centre, p = 1 / classes.

Each part has its own time, constant or per pixel (`Times`): t_image = 0 where the image is known, 1 where it is missing
(nodata); t_labels = 0 where the class is known, 1 where nothing is.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from segprior.errors import SettingError

UNLABELLED = 255
"""Class index of a pixel without a label."""


@dataclass(frozen=True, slots=True)
class Times:
    """Time maps in [0, 1], each of four axes: (batch, 1, height, width), or 1 in place of any of these."""

    image: Tensor
    labels: Tensor


class Layout(ABC):
    """Which channels are image and which are labels, and on which set the label channels live."""

    bands: int
    classes: int

    @abstractmethod
    def labels_from(self, theta: Tensor) -> Tensor:
        """Label channels for free parameters theta, both (batch, classes, height, width)."""

    @abstractmethod
    def theta_from(self, labels: Tensor) -> Tensor:
        """Free parameters that give these label channels (the inverse of `labels_from` where it has one)."""

    @abstractmethod
    def probabilities(self, labels: Tensor) -> Tensor:
        """Class probabilities for label channels, both (batch, classes, height, width)."""

    @abstractmethod
    def nearest(self, labels: Tensor) -> Tensor:
        """The nearest label channels that x_0 may take: for one-hot labels the nearest corner of the simplex."""

    @abstractmethod
    def onto(self, labels: Tensor) -> Tensor:
        """The nearest point of the set on which label channels live: for one-hot labels of the simplex."""

    @final
    def join(self, image: Tensor, labels: Tensor) -> Tensor:
        """Image and label channels side by side."""
        return torch.cat([image, labels], dim=1)

    @final
    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Image channels and label channels of x."""
        return x[:, : self.bands], x[:, self.bands :]

    @final
    def spread(self, times: Times) -> Tensor:
        """Time of every channel: broadcastable to (batch, bands + classes, height, width)."""
        image, labels = torch.broadcast_tensors(times.image, times.labels)  # type: ignore[no-untyped-call]  # in torch
        return torch.cat([image.expand(-1, self.bands, -1, -1), labels.expand(-1, self.classes, -1, -1)], dim=1)


@final
@dataclass(frozen=True, slots=True)
class OneHotLayout(Layout):
    """Label channels are points b (2 p - 1) of a simplex; theta are logits: p = softmax(theta)."""

    bands: int
    classes: int
    label_scale: float

    def __post_init__(self) -> None:
        if self.bands < 1 or self.classes < 2 or self.label_scale <= 0:
            raise SettingError(f"wanted a joint tensor of >= 1 band, >= 2 classes and a label scale > 0, got {self}")

    def encode(self, index: Tensor) -> Tensor:
        """Class indices (batch, height, width), UNLABELLED where there is none, to label channels."""
        known = index != UNLABELLED
        one_hot = torch.nn.functional.one_hot(torch.where(known, index, 0).long(), self.classes)
        p = torch.where(known[..., None], one_hot.float(), 1.0 / self.classes)
        return self.place(p.permute(0, 3, 1, 2))

    def place(self, p: Tensor) -> Tensor:
        """Probabilities to label channels: b (2 p - 1)."""
        return self.label_scale * (2.0 * p - 1.0)

    def probabilities(self, labels: Tensor) -> Tensor:
        """Label channels to probabilities: (labels / b + 1) / 2, not clamped."""
        return (labels / self.label_scale + 1.0) / 2.0

    def labels_from(self, theta: Tensor) -> Tensor:
        """Logits to label channels: b (2 softmax(theta) - 1)."""
        return self.place(torch.softmax(theta, dim=1))

    def onto(self, labels: Tensor) -> Tensor:
        """Euclidean projection onto the simplex, by sorting (Held, Wolfe & Crowder 1974)."""
        p = self.probabilities(labels)
        ranked = p.sort(dim=1, descending=True).values
        counts = torch.arange(1, self.classes + 1, device=p.device)[:, None, None]
        surplus = (ranked.cumsum(dim=1) - 1.0) / counts  # what to take off, if so many classes are to stay above 0
        kept = (ranked > surplus).sum(dim=1, keepdim=True).clamp(min=1)
        return self.place((p - surplus.gather(1, kept - 1)).clamp(min=0.0))

    def nearest(self, labels: Tensor) -> Tensor:
        """The one-hot vector of the largest channel."""
        return self.encode(labels.argmax(dim=1))

    def theta_from(self, labels: Tensor) -> Tensor:
        """Label channels to logits: log p, with p kept above 1e-4 so that no class is ruled out for good."""
        return torch.log(self.probabilities(labels).clamp(min=1e-4))


@final
@dataclass(frozen=True, slots=True)
class FreeLayout(Layout):
    """Label channels are any real numbers and theta are the channels themselves; for priors that are not one-hot."""

    bands: int
    classes: int

    def labels_from(self, theta: Tensor) -> Tensor:
        """Return theta itself."""
        return theta

    def onto(self, labels: Tensor) -> Tensor:
        """The labels themselves: any numbers will do."""
        return labels

    def nearest(self, labels: Tensor) -> Tensor:
        """The labels themselves."""
        return labels

    def theta_from(self, labels: Tensor) -> Tensor:
        """Return the labels themselves."""
        return labels

    def probabilities(self, labels: Tensor) -> Tensor:
        """Return the labels themselves: there is no simplex to map to."""
        return labels
