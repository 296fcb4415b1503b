"""The network: image features once per window, a light label path at every step.

    features = unet(w_I x_t^I, log_snr_I)                              smp encoder and U-Net decoder, full resolution
    r(l), h  = path(features, w_I x_t^I, log_snr_I, l)                       label path, a small U-Net at stride 4
    logits   = head(features) + r(w_L x_t^L) - r(0)                    (batch, classes, height, width)
    v        = image_head(h, x_t^I, log_snr_I)                         (batch, bands, height, width), full resolution

The noisy inputs w x_t arrive scaled by their Wiener gain w (see `denoiser`), so an input of which nothing is known is
zero, not noise, and the less is known the nearer to zero it is.

What the labels tell enters as a difference: what the path says with them less what it says without. So the less is
known of the labels, the nearer the logits are to the plain U-Net segmenter head(features); where nothing is, they are
it. Without r(0), and told the labels' log-SNR, the path learns to correct the segmenter from the image alone: on
training scenes a little better, on other scenes worse, even where the noisy labels are the truth. The log-SNR it can
see from the labels' size. An item of which no label is known anywhere (t_labels = 1) does without the path, at the
plain segmenter's cost. The labels enter through a zero-initialised convolution, so training starts at the plain
segmenter for all times.

v is the velocity of the image channels (Salimans & Ho 2022); its head works at full resolution, because at little noise
a velocity is mostly noise of the finest scale, which the path's coarse cells can't carry.

Noisy images (no pixel of which is clean) teach the path and the image head, not the U-Net: trained on them too it lost
three points of mIoU where labels are few; where they are many nothing shows. It looks at noisy images as it is, and
the path has a say of its own, the more of one the noisier they are, from the same pass that gives r(0):

    logits = alpha_bar_I head(features) + s(0) + r(w_L x_t^L) - r(0)   features weighed by alpha_bar_I too

A U-Net that knows clean images alone reads images of little noise well: at t_image = 0.1 it loses a point of mIoU. So
noisy pixels beside clean ones go to it as if they were clean.

Encoder and decoder keep smp's BatchNorm, which learns its statistics from clean images, holes and all (in priors that
were trained before, from noisy ones too, of which every batch holds the same share, see `mix.draw_kinds`). The label
path's norms act on each pixel over its channels. At inference all norms are fixed or act on single pixels, so a pixel's
output does not depend on the window's extent beyond the receptive field.
Sides of the input must be multiples of the encoder's stride (32).
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from threading import get_ident
from typing import Any, Self

import torch
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from segmentation_models_pytorch.encoders import get_encoder
from torch import Tensor, nn
from torch.nn import functional

from segprior.prior.image_head import ImageHead
from segprior.prior.label_path import STRIDE, LabelPath
from segprior.prior.schedule import LOG_SNR_LIMIT

CLEAN, UNKNOWN = 1.0, -1.0
"""Log-SNR, in units of its limit, of a pixel without noise and of one of which nothing is known."""


@dataclass(frozen=True, slots=True)
class NetworkShape:
    """What is needed to build the network again.

    label_path: its channels at strides 4, 8 and 16. arch: of a plain segmenter, smp's name; a joint network is a U-Net,
    and `decoder` is for U-Nets. clean: the image network learns from clean images alone, as new priors' do. options:
    what smp is told besides to build a plain segmenter, where it is not smp's default.
    """

    bands: int
    classes: int
    encoder: str = "timm-tf_efficientnet_lite0"
    decoder: tuple[int, int, int, int, int] = (256, 128, 64, 32, 16)
    label_path: tuple[int, int, int] = (96, 160, 224)
    arch: str = "unet"
    clean: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Features:
    """What the image alone gives.

    context: (batch, channels, h/4, w/4). logits: (batch, classes, h, w). silent: the label path's answer to no labels,
    r(0), of noisy images r(0) - s(0), (batch, classes, h, w); None where it was not asked for, and then every draw with
    labels computes it.
    """

    context: Tensor
    logits: Tensor
    silent: Tensor | None = None

    def repeat(self, index: Tensor) -> Self:
        """Pick the features of the items that `index` names, in its order (items may repeat)."""
        silent = None if self.silent is None else self.silent[index]
        return type(self)(self.context[index], self.logits[index], silent)


@dataclass(frozen=True, slots=True)
class ImageInput:
    """The noisy image as networks take it: itself, scaled by its Wiener gain, and its log-SNR / limit map.

    wanted: (batch,), the items whose velocity is asked for.
    """

    noisy: Tensor
    gained: Tensor
    log_snr: Tensor
    wanted: Tensor


@contextmanager
def old_encoder_names() -> Iterator[None]:
    """Let smp's encoders go by their "timm-" names.

    smp prefers the "tu-" spelling, whose first stage has other channels, so trained weights would not fit it.
    """
    with warnings.catch_warnings():  # the new names have other tensors
        warnings.filterwarnings("ignore", message="`timm-` encoders are deprecated", category=DeprecationWarning)
        yield


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Keep a module in eval mode, so that its statistics do not learn."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


class ImageNetwork(nn.Module):
    """smp encoder and U-Net decoder: the plain segmenter, and the context that the label path reads."""

    def __init__(self, shape: NetworkShape, encoder_weights: str | None = None) -> None:
        super().__init__()
        self.entry = nn.Conv2d(shape.bands + 1, shape.bands, 1)
        with torch.no_grad():
            self.entry.weight.copy_(torch.eye(shape.bands, shape.bands + 1)[:, :, None, None])
            nn.init.zeros_(self.entry.bias)  # type: ignore[arg-type]  # a bias is asked for, so it is a tensor
        with old_encoder_names():
            self.encoder = get_encoder(shape.encoder, in_channels=shape.bands, depth=5, weights=encoder_weights)
        self.decoder = UnetDecoder(self.encoder.out_channels, list(shape.decoder))
        self.head = nn.Conv2d(shape.decoder[-1], shape.classes, 3, padding=1)

    def forward(self, image: Tensor, log_snr: Tensor) -> Features:
        """Image (batch, bands, h, w) and its log-SNR / limit map (batch, 1, h, w) to `Features`."""
        pyramid = self.encoder(self.entry(torch.cat([image, log_snr], dim=1)))
        x = pyramid[-1]
        for block, finer in zip(self.decoder.blocks, pyramid[-2::-1], strict=True):
            height, width = finer.shape[2:]
            skip = finer if finer is not pyramid[0] else None
            x = block(x, height, width, skip_connection=skip)
            if height * STRIDE == image.shape[2]:
                context = x
        return Features(context, self.head(x))


class JointNetwork(nn.Module):
    """Image network and label path together."""

    def __init__(self, shape: NetworkShape, encoder_weights: str | None = None) -> None:
        super().__init__()
        self.shape = shape
        self.image = ImageNetwork(shape, encoder_weights)
        self.path = LabelPath(
            shape.bands, shape.classes, context=shape.decoder[2], widths=shape.label_path, own=shape.clean
        )
        self.image_head = ImageHead(shape.bands)
        self._held = False

    def hold(self) -> None:
        """Leave the image network as it is in training: neither its weights nor its statistics learn."""
        self._held = True
        self.image.requires_grad_(requires_grad=False)

    @property
    def later(self) -> list[nn.Parameter]:
        """What draws without noise and without labels do not reach."""
        return [*self.path.parameters(), *self.image_head.parameters()]

    def features(self, image: Tensor, log_snr: Tensor, *, silent: bool = False) -> Features:
        """Features of the (gained) noisy image: computed once, used at every step; `silent` asks for r(0) too."""
        features = (self._apart if self.shape.clean else self._look)(image, log_snr)
        if not silent:
            return features
        return replace(features, silent=self._silent(features.context, torch.cat([image, log_snr], dim=1)))

    def _apart(self, image: Tensor, log_snr: Tensor) -> Features:
        """Features of clean items, which teach the image network, and of noisy ones, which do not."""
        known = log_snr > UNKNOWN
        noisy, shown = self._noisy(log_snr), torch.where(known, CLEAN, UNKNOWN)
        if not noisy.any():
            return self._look(image, shown)
        cells = (image.shape[2] // STRIDE, image.shape[3] // STRIDE)
        context = image.new_zeros(len(image), self.shape.decoder[2], *cells)
        logits = image.new_zeros(len(image), self.shape.classes, *image.shape[2:])
        for chosen, looks in ((~noisy, self._look), (noisy & known.flatten(1).any(dim=1), self._still)):
            if chosen.any():
                some = chosen.nonzero().squeeze(1)
                found = looks(image[some], shown[some])
                context = context.to(found.context.dtype).index_copy(0, some, found.context)
                logits = logits.to(found.logits.dtype).index_copy(0, some, found.logits)
        alpha_bar = torch.where(known, torch.sigmoid(LOG_SNR_LIMIT * log_snr), 0.0)
        weight = torch.where(noisy[:, None, None, None], alpha_bar, 1.0).to(logits.dtype)
        return Features(context * functional.avg_pool2d(weight, STRIDE), logits * weight)

    def _look(self, image: Tensor, log_snr: Tensor) -> Features:
        """The image network, which learns of these items unless it is held."""
        features: Features = (self._still if self._held else self.image)(image, log_snr)
        return features

    def _still(self, image: Tensor, log_snr: Tensor) -> Features:
        """The image network as it is: in training it learns nothing of these items."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.training), evaluating(self.image):
            features: Features = self.image(image, log_snr)
        return features

    def _noisy(self, log_snr: Tensor) -> Tensor:
        """Which items of the batch have no clean pixel."""
        noisy: Tensor = (log_snr < CLEAN).flatten(1).all(dim=1)
        return noisy if self.shape.clean else torch.zeros_like(noisy)

    def forward(self, features: Features, image: ImageInput, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (batch, classes, h, w) and image velocity (batch, bands, h, w), both float32.

        labels: gained noisy labels, 0 where nothing is known. A velocity that is not wanted is not computed (zero): at
        full resolution it costs more than the label path.
        """
        logits, v = features.logits.float(), torch.zeros_like(image.noisy, dtype=torch.float32)
        noisy, informed = self._noisy(image.log_snr), labels.flatten(1).any(dim=1)
        busy = (informed | noisy | image.wanted).nonzero().squeeze(1)
        if len(busy):
            given = torch.cat([image.gained, image.log_snr], dim=1)
            r, cells = self.path(features.context[busy], given[busy], labels[busy])
            told = informed.nonzero().squeeze(1)
            if len(told):
                known = features.repeat(told)
                silent = self._silent(known.context, given[told]) if known.silent is None else known.silent
                logits = logits.index_add(0, told, r[informed[busy]].float() - silent.float())
            untold = noisy & ~informed
            if untold.any():
                own = self.path.own(cells[untold[busy]])
                logits = logits.index_add(0, untold.nonzero().squeeze(1), own.float())
            wanted = image.wanted[busy]
            if wanted.any():
                some = busy[wanted]
                shown = self.image_head(self.path.coarse(cells[wanted]), image.noisy[some], image.log_snr[some])
                v = v.index_copy(0, some, shown.float())
        return logits, v

    def _silent(self, context: Tensor, given: Tensor) -> Tensor:
        """What the path says when it is told nothing, to be taken off: r(0), of noisy images less their own s(0)."""
        r: Tensor
        r, cells = self.path(context, given, given.new_zeros(len(given), self.shape.classes, *given.shape[2:]))
        noisy = self._noisy(given[:, -1:])
        if noisy.any():
            r = r.index_add(0, noisy.nonzero().squeeze(1), self.path.own(cells[noisy]), alpha=-1)
        return r


class PlainNetwork(nn.Module):
    """Any image-to-logits network seen as a joint network that has no label path: the opponent's form.

    Its logits ignore the noisy labels, and its image velocity says nothing (zero).
    """

    def __init__(self, segmenter: nn.Module) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.later: list[nn.Parameter] = []  # draws without noise and without labels reach all of it

    def features(self, image: Tensor, log_snr: Tensor, *, silent: bool = False) -> Features:
        """Compute the segmenter's logits; the log-SNR of the image is not read, and there is no r(0) to ask for.

        The context is what smp's segmentation head reads, brought to cells of STRIDE pixels, or the logits so of a
        network without such a head; none in training.
        """
        if self.training:
            return Features(image.new_zeros(len(image), 0, 1, 1), self.segmenter(image))
        read: dict[int, Tensor] = {}  # by thread: the network may be at work in others, which this hook hears too
        head = getattr(self.segmenter, "segmentation_head", nn.Identity())
        handle = head.register_forward_pre_hook(lambda _, inputs: read.update({get_ident(): inputs[0]}))
        try:
            logits = self.segmenter(image)
        finally:
            handle.remove()
        size = (image.shape[2] // STRIDE, image.shape[3] // STRIDE)
        return Features(functional.adaptive_avg_pool2d(read.get(get_ident(), logits), size), logits)

    def forward(self, features: Features, image: ImageInput, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the segmenter's logits again, and a velocity of zero."""
        return features.logits.float(), torch.zeros_like(image.noisy)
