"""The denoiser: the posterior mean of x_0 given x_t, and the training loss whose minimiser it is.

For a label pixel i the noise is independent of everything else, so Bayes' rule splits its posterior exactly:

    p(x_0,i = class k | x_t)  ~  p(x_t,i | class k) p(class k | x_t without pixel i),
    log p(x_t,i | class k)    =  2 b sqrt(alpha_bar) / (1 - alpha_bar) x_t,i,k + const.

The network gives the second factor (its logits), this module adds the first. At t_labels = 1 the first vanishes and the
network alone speaks: a plain segmenter. At t_labels = 0 (with log-SNR clamped to LOG_SNR_LIMIT) the first decides: a
known class stays what it is. For image channels the network gives the velocity v = sqrt(alpha_bar) eps -
sqrt(1 - alpha_bar) x_0, so x0_hat = sqrt(alpha_bar) x_t - sqrt(1 - alpha_bar) v, which at t_image = 0 is x_t itself.

Plain cross-entropy on x_0 has the class posterior as its minimiser, and the posterior mean of b (2 onehot - 1) is
b (2 p - 1): one softmax serves both. Tiles drawn so that rare classes are seen tilt the class shares by a known factor;
`log_tilt` is added to the logits inside the loss only (logit adjustment, Menon et al. 2021), so what the denoiser
returns is free of the tilt. `temperature` divides the network's logits, see `segprior.prior.temperature`; training
knows only 1.

The inputs of the network are scaled by their Wiener gain: an input of unit-variance image noise by sqrt(alpha_bar), the
labels by sqrt(alpha_bar) b / (alpha_bar b^2 + 1 - alpha_bar), the best linear estimate of x_0 (labels: in units of b).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from segprior.prior.joint import UNLABELLED, Layout, OneHotLayout, Times
from segprior.prior.network import Features, ImageInput, JointNetwork, PlainNetwork
from segprior.prior.schedule import LOG_SNR_LIMIT, Schedule


class Denoiser(ABC):
    """A prior, seen by the solver: the layout and schedule of x, and the posterior mean of x_0 given x_t."""

    layout: Layout
    schedule: Schedule

    @abstractmethod
    def encode(self, image_t: Tensor, t_image: Tensor, *, silent: bool = False) -> Features | None:
        """Compute what depends on the noisy image alone: once, where the image does not change.

        silent: with what only draws that know something of the labels need; worth it where there are several.
        """

    @abstractmethod
    def x0_hat(self, x_t: Tensor, times: Times, features: Features | None = None) -> Tensor:
        """E[x_0 | x_t], (batch, bands + classes, height, width); `features` as `encode` gives them, else computed."""

    @final
    def eps_hat(self, x_t: Tensor, times: Times, x0_hat: Tensor) -> Tensor:
        """Return the noise that x0_hat implies, (x_t - sqrt(alpha_bar) x0_hat) / sqrt(1 - alpha_bar); 0 where t = 0."""
        t = self.layout.spread(times)
        sigma = self.schedule.sigma(t)
        residual = x_t - torch.sqrt(self.schedule.alpha_bar(t)) * x0_hat
        return torch.where(sigma > 0, residual / torch.where(sigma > 0, sigma, 1.0), 0.0)


@dataclass(frozen=True, slots=True)
class Prediction:
    """The network's answer: `logits` of p(class | x_t), (batch, classes, h, w), and `image`, the bands of x0_hat."""

    logits: Tensor
    image: Tensor


@dataclass(frozen=True, slots=True)
class Loss:
    """Training loss of a batch: `labels`, mean cross-entropy in nats a pixel; `image`, mean squared velocity error."""

    labels: Tensor
    image: Tensor


@final
class NetworkDenoiser(nn.Module, Denoiser):
    """A joint network with its schedule and layout."""

    log_tilt: Tensor

    def __init__(
        self,
        network: JointNetwork | PlainNetwork,
        *,
        layout: OneHotLayout,
        schedule: Schedule,
        log_tilt: Tensor | None = None,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.network = network
        self.layout: OneHotLayout = layout
        self.schedule = schedule
        self.temperature = temperature
        self.register_buffer("log_tilt", torch.zeros(layout.classes) if log_tilt is None else log_tilt)

    def encode(self, image_t: Tensor, t_image: Tensor, *, silent: bool = False) -> Features:
        """Features of the noisy image (batch, bands, h, w) at t_image (batch, 1, h, w); see `Features.silent`."""
        image = self._image_input(image_t, t_image)
        features: Features = self.network.features(image.gained, image.log_snr, silent=silent)
        return features

    def predict(
        self, x_t: Tensor, times: Times, features: Features | None = None, *, image_too: bool = True
    ) -> Prediction:
        """Class logits free of the sampling tilt, and the denoised image, for x_t at `times`.

        image_too: without it the image has no meaning where t_image > 0, and costs nothing.
        """
        image_t, labels_t = self.layout.split(x_t)
        t_image = times.image.expand(len(x_t), 1, *x_t.shape[2:])
        t_labels = times.labels.expand(len(x_t), 1, *x_t.shape[2:])
        image = self._image_input(image_t, t_image, wanted=image_too)
        if features is None:
            features = self.network.features(image.gained, image.log_snr)
        gain, likelihood = self._label_inputs(t_labels)
        logits, v = self.network(features, image, gain * labels_t)
        x0_hat = torch.sqrt(self.schedule.alpha_bar(t_image)) * image_t - self.schedule.sigma(t_image) * v
        return Prediction(logits / self.temperature + likelihood * labels_t, x0_hat)

    def x0_hat(self, x_t: Tensor, times: Times, features: Features | None = None) -> Tensor:
        """Return the posterior mean: denoised image channels and b (2 softmax(logits) - 1)."""
        prediction = self.predict(x_t, times, features)
        return self.layout.join(prediction.image, self.layout.place(torch.softmax(prediction.logits, dim=1)))

    def loss(
        self, prediction: Prediction, image: Tensor, index: Tensor, times: Times, target: Tensor | None = None
    ) -> Loss:
        """Loss of `prediction` against the clean image (batch, bands, h, w) and class indices (batch, h, w).

        Pixels without a label (UNLABELLED) and pixels with t = 0 do not count. The image's error is that of the
        velocity, ||x_0 - x0_hat||^2 / (1 - alpha_bar) (Salimans & Ho 2022). target: what each class is worth at a
        pixel, (batch, classes, h, w), for labels that are not certain: the cross-entropy is - sum_k target_k log p_k,
        for instance with the probabilities of another network; without it, one-hot.
        """
        adjusted = prediction.logits + self.log_tilt[:, None, None]
        asked = torch.where((times.labels > 0).squeeze(1).expand_as(index), index.long(), UNLABELLED)
        if target is None:
            entropy = functional.cross_entropy(adjusted, asked, ignore_index=UNLABELLED, reduction="sum")
        else:
            worth = -(target * functional.log_softmax(adjusted, dim=1)).sum(dim=1)
            entropy = torch.where(asked != UNLABELLED, worth, 0.0).sum()
        noised = (times.image > 0).expand(len(image), 1, *image.shape[2:])
        # the floor keeps rounding errors of nearly clean pixels from being blown up
        variance = (self.schedule.sigma(times.image) ** 2).clamp(min=1e-3)
        error = (prediction.image - image) ** 2 / variance
        squares = torch.where(noised, error, 0.0).sum()
        return Loss(
            entropy / (asked != UNLABELLED).sum().clamp(min=1), squares / (noised.sum() * image.shape[1]).clamp(min=1)
        )

    def _image_input(self, image_t: Tensor, t_image: Tensor, *, wanted: bool = True) -> ImageInput:
        t_image = t_image.expand(len(image_t), 1, *image_t.shape[2:])
        gain = torch.sqrt(self.schedule.alpha_bar(t_image))
        log_snr = self.schedule.log_snr(t_image) / LOG_SNR_LIMIT
        return ImageInput(image_t, gain * image_t, log_snr, wanted & (t_image > 0).flatten(1).any(dim=1))

    def _label_inputs(self, t_labels: Tensor) -> tuple[Tensor, Tensor]:
        b = self.layout.label_scale
        alpha_bar = self.schedule.alpha_bar(t_labels)
        gain = torch.sqrt(alpha_bar) * b / (alpha_bar * b**2 + 1.0 - alpha_bar)
        # sqrt(abar) / (1 - abar) = snr / sqrt(abar); the SNR has an upper limit, for t = 0, and no lower one
        snr = torch.exp(torch.log(self.schedule.snr(t_labels)).clamp(max=LOG_SNR_LIMIT))
        likelihood = 2.0 * b * snr / torch.sqrt(torch.where(alpha_bar > 0, alpha_bar, 1.0))
        return gain, likelihood
