"""The losses of ITRD as pure functions of two tensors, without state or weights; torch only."""

import torch
import torch.nn.functional as F
from torch import Tensor


def correlation_loss(student: Tensor, teacher: Tensor, alpha: float = 1.01) -> Tensor:
    """Correlation loss of ITRD: how far each student feature is from its teacher twin (Miles et al. 2022, eq. 1).

    ``log2 sum_i |v_i - 1|^(2 alpha)``, where ``v_i`` is the correlation of feature ``i`` over the batch. Features are
    standardised by the unbiased deviation and ``v`` divides by ``n``, as the authors do: ``v_i`` stays below
    ``(n-1)/n``, so the loss has the floor ``log2(d) - 2 alpha log2(n)`` where a consistent estimator has none.
    A feature that is constant over the batch counts as uncorrelated (``v_i = 0``).

    Args:
        student: (n, d) features, projected to the teacher's width; or (layers, n, d).
        teacher: features of the same n samples, of the same shape.
        alpha: order of the Renyi entropy, above 1 in the paper.

    Returns:
        Scalar in bits, or one a layer; lower is closer. Half-precision inputs are computed in fp32.

    Raises:
        ValueError: n < 2, the shapes differ, or alpha is not positive.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 1.0], [2.0, -3.0]])
        >>> round(correlation_loss(x, x).item(), 2)  # the floor: log2(2) - 2.02 log2(4)
        -3.04
    """
    if alpha <= 0:
        raise ValueError(f"alpha is {alpha}; the order of the entropy must be positive (the paper uses 1.01 and 1.5)")
    total = (feature_correlations(student, teacher) - 1).abs().pow(2 * alpha).sum(-1)  # sum_i |v_i - 1|^(2 alpha)
    return total.clamp_min(torch.finfo(total.dtype).tiny).log2()


def feature_correlations(student: Tensor, teacher: Tensor) -> Tensor:
    """The ``v`` of eq. 1: the correlation over the batch of each student feature with its teacher twin.

    Args:
        student: (n, d) features, projected to the teacher's width; or (layers, n, d).
        teacher: features of the same n samples, of the same shape.

    Returns:
        (d,) or (layers, d), within ``(n-1)/n`` of 0; 0 for a feature that is constant over the batch.

    Raises:
        ValueError: n < 2, or the shapes differ.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 1.0], [2.0, -3.0]])
        >>> feature_correlations(x, x * torch.tensor([2.0, -1.0]))  # with n = 4, at most 3/4
        tensor([ 0.7500, -0.7500])
    """
    _check(student, teacher, same_width=True)
    s, t = _centre(to_fp32(student)), _centre(to_fp32(teacher))
    n, power = s.shape[-2], s.square().sum(-2) * t.square().sum(-2)  # product of both sums of squares
    varies = power > 0
    # the unbiased deviations divide by n - 1, the mean of their products by n: hence the factor (n - 1) / n
    return torch.where(varies, (s * t).sum(-2) * torch.where(varies, power, 1.0).rsqrt(), 0.0) * ((n - 1) / n)


def mutual_information_loss(student: Tensor, teacher: Tensor, form: str = "log2") -> Tensor:
    """Mutual-information loss of ITRD over the batch's Gram matrices (Miles et al. 2022, eq. 2).

    ``log2 ||G_s||_F^2 - log2 ||G_st||_F^2`` with ``G`` the Gram matrix of L2-normalised rows divided by its trace and
    ``G_st = G_s o G_t``, divided by its trace again. ``form="raw"`` is the same difference without the logarithms,
    which the authors' code and published figures use; its gradient is several times smaller, so a weight tuned for
    one form does not suit the other. It is zero where the student's rows are orthogonal, whatever the teacher: use it
    beside the correlation loss.

    Args:
        student: (n, d_s) features, or (layers, n, d_s).
        teacher: (n, d_t) or (layers, n, d_t) features of the same n samples; the widths may differ.
        form: ``"log2"`` (eq. 2, in bits, within [0, log2 n]) or ``"raw"`` (within [0, 1)).

    Returns:
        Scalar, or one a layer; lower is more shared information. Half-precision inputs are computed in fp32.

    Raises:
        ValueError: n < 2, different n, or an unknown form.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
        >>> [round(mutual_information_loss(x, x, form).item(), 3) for form in ("log2", "raw")]
        [0.322, 0.111]
    """
    _check(student, teacher, same_width=False)
    if form not in ("log2", "raw"):
        raise ValueError(f'form is {form!r}; expected "log2" (eq. 2) or "raw" (no logarithm)')
    gram_s, gram_t = gram_matrix(student), gram_matrix(teacher)
    alone, joint = _purity(gram_s), _purity(gram_s * gram_t)  # ||G_s||_F^2 and ||G_st||_F^2
    if form == "raw":
        return alone - joint
    floor = 0.5 / student.shape[-2]  # a purity is at least 1/n unless every row is zero
    return alone.clamp_min(floor).log2() - joint.clamp_min(floor).log2()


def gram_matrix(x: Tensor) -> Tensor:
    """The ``G`` of eq. 2 before its division by the trace: cosines of all pairs of samples.

    Args:
        x: (n, d) or (layers, n, d) features.

    Returns:
        (n, n) or (layers, n, n), within [-1, 1]; a zero row has the cosine 0 to every row, itself included.

    Example:
        >>> gram_matrix(torch.tensor([[2.0, 0.0], [0.0, 3.0], [0.0, -1.0]])).tolist()
        [[1.0, 0.0, 0.0], [0.0, 1.0, -1.0], [0.0, -1.0, 1.0]]
    """
    x = to_fp32(x)
    size = x.detach().abs().amax(-1, keepdim=True)  # squares of rows divided by it neither overflow nor vanish
    unit = F.normalize(x / torch.where(size > 0, size, 1.0), dim=-1)
    return unit @ unit.mT


def _check(student: Tensor, teacher: Tensor, same_width: bool) -> None:
    shapes = f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)}"
    if student.ndim not in (2, 3) or teacher.ndim != student.ndim:
        raise ValueError(f"{shapes}: expected two (n, d) or (layers, n, d) tensors; pool or flatten other axes first")
    if student.shape[:-1] != teacher.shape[:-1]:
        raise ValueError(f"{shapes}: expected the same n samples in both")
    if same_width and student.shape[-1] != teacher.shape[-1]:
        raise ValueError(f"{shapes}: expected equal widths; project the student to the teacher's width first")
    if student.shape[-2] < 2:
        raise ValueError(f"{shapes}: the statistics of a batch need n >= 2 samples; raise the batch size")


def to_fp32(x: Tensor) -> Tensor:
    """A half-precision tensor in fp32, any other as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _centre(x: Tensor) -> Tensor:
    """Centre columns and divide them by their range, so that squares cannot overflow; a constant one becomes zero."""
    low, high = x.detach().amin(-2, keepdim=True), x.detach().amax(-2, keepdim=True)
    varies = high - low > 8 * torch.finfo(x.dtype).eps * torch.maximum(low.abs(), high.abs())
    return (x - x.mean(-2, keepdim=True)) / torch.where(varies, high - low, torch.inf)


def _purity(gram: Tensor) -> Tensor:
    """Squared Frobenius norm of a Gram matrix divided by its trace: 2^-H2, with H2 the Renyi entropy of order 2."""
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1).clamp_min(1.0)
    return gram.square().sum((-2, -1)) / trace.square()
