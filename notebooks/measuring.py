"""What 02_what_the_losses_measure measures and draws: features of a layer, and ITRD's two losses of them."""

from collections.abc import Mapping

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor, nn

from itrd_nlp.distillation.feature_extractor import FeatureExtractor
from itrd_nlp.distillation.layers import layer_modules
from itrd_nlp.distillation.pooling import Pooling
from itrd_nlp.losses.functional import correlation_loss, feature_correlations, gram_matrix, mutual_information_loss


@torch.no_grad()
def layer_features(model: nn.Module, batch: Mapping[str, Tensor], layer: int = -1, pooling: str = "tokens") -> Tensor:
    """What a loss sees of one layer of a model, in eval mode.

    Args:
        batch: tensors of shape (batch, ...), on any device.
        layer: from 1, 0 is the embedding output, -1 the last.
        pooling: see :class:`Pooling`.

    Returns:
        (n, d) features.
    """
    extractor = FeatureExtractor([layer_modules(model)[layer]], (), Pooling(pooling), stop=True)
    training = model.training
    device = next(model.parameters()).device
    try:
        return extractor(model.eval(), {name: values.to(device) for name, values in batch.items()})[1].features[0]
    finally:
        model.train(training)


def fit_projector(student: Tensor, teacher: Tensor) -> nn.Linear:
    """The projection of ordinary least squares, to measure a student with that has no trained one.

    It maximises the correlation of each feature with its teacher twin: on the samples that it is fitted to, no affine
    map gives a lower correlation loss. Measure on others.

    Args:
        student: (n, d_s) features.
        teacher: (n, d_t) features of the same n samples.

    Returns:
        From d_s to d_t; of several solutions the one of least norm.

    Raises:
        ValueError: different n, or no more samples than the student has features, which would fit anything.
    """
    n, width = student.shape
    if len(teacher) != n or n <= width + 1:
        raise ValueError(
            f"student {n, width}, teacher {tuple(teacher.shape)}: expected the same n samples, n > d_s + 1"
        )
    linear = nn.Linear(width, teacher.shape[1], device=student.device).requires_grad_(False)
    s, t = [x.detach().double().cpu() for x in (student, teacher)]
    slope = torch.linalg.lstsq(s - s.mean(0), t - t.mean(0), driver="gelsd").solution
    linear.weight.copy_(slope.mT)
    linear.bias.copy_(t.mean(0) - s.mean(0) @ slope)
    return linear


def correlation_histogram(students: Mapping[str, Tensor], teacher: Tensor, alpha: float = 1.01) -> Figure:
    """How many features of each student correlate how much with their teacher twins; in the legend their L_corr.

    Args:
        students: name -> (n, d) features, projected to the teacher's width.
        teacher: (n, d) features of the same n samples.
        alpha: as of :func:`itrd_nlp.correlation_loss`.
    """
    figure = Figure((8, 4.5), layout="constrained")
    axis = figure.add_subplot(xlabel="correlation with the teacher's feature", ylabel="features")
    axis.grid(alpha=0.3)
    found = {name: feature_correlations(features, teacher).cpu().numpy() for name, features in students.items()}
    bins = np.linspace(min([0.0, *(values.min() for values in found.values())]), 1, 51)
    for name, values in found.items():
        bits = correlation_loss(students[name], teacher, alpha).item()
        axis.hist(values, bins, alpha=0.6, label=f"{name}: $L_{{corr}}$ = {bits:.2f} bits")
    axis.legend(frameon=False, loc="upper left")
    return figure


def gram_matrices(models: Mapping[str, Tensor], teacher: Tensor) -> Figure:
    """Cosines of all pairs of samples, one image a model; in its title its L_mi with the teacher.

    Args:
        models: name -> (n, d) features; the widths may differ.
        teacher: (n, d_t) features of the same n samples.
    """
    figure = Figure((3.4 * len(models) + 0.9, 3.8), layout="constrained")
    shades = colormaps["RdBu_r"].resampled(40)  # fewer shades, a smaller file
    axes = figure.subplots(1, len(models), squeeze=False)[0]
    for axis, (name, features) in zip(axes, models.items(), strict=True):
        image = axis.imshow(gram_matrix(features).cpu().numpy(), cmap=shades, vmin=-1, vmax=1, interpolation="nearest")
        bits = mutual_information_loss(features, teacher).item()
        axis.set_title(f"{name}\n$L_{{mi}}$ = {bits:.2f} bits", fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
    figure.colorbar(image, ax=list(axes), shrink=0.8, label="cosine")
    return figure
