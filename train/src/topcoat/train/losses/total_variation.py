"""Total variation: what keeps the output from flickering between neighbouring pixels."""

from typing import Literal

from torch import Tensor


def total_variation(frame: Tensor, form: Literal["mean", "paper", "l1"] = "mean") -> Tensor:
    """Differences between neighbouring pixels, summed.

    Args:
        frame: (B, C, H, W), RGB nominally in [0, 1]; H, W at least 2.
        form: ``mean``: mean over all squared differences of both directions, on [0, 1].
            ``l1``: mean over their absolute values: the total variation of Rudin, Osher and Fatemi
            1992 in its anisotropic form, which keeps edges.
            ``paper``: half the sum over a picture, on 0-255, over the (H-1)*(W-1) grid where both
            differences exist, mean over the batch: times the batch, its gradient is the one that
            the published strengths, 1e-6 to 1e-4, multiply.

    Returns:
        scalar float32 (float64 for float64).

    Source: Johnson, Alahi, Fei-Fei 2016 (arXiv:1603.08155) §3.2; the authors' code gives the grid.

    >>> total_variation(torch.tensor([[[[0., 1.], [0., 1.]]]])).item()
    0.5
    """
    frame = frame.float() if frame.dtype.itemsize < 4 else frame
    if form == "paper":
        frame = frame * 255
        down = frame[:, :, 1:, :-1] - frame[:, :, :-1, :-1]
        right = frame[:, :, :-1, 1:] - frame[:, :, :-1, :-1]
        return 0.5 * (down.square().sum() + right.square().sum()) / len(frame)
    down = frame[:, :, 1:] - frame[:, :, :-1]
    right = frame[..., 1:] - frame[..., :-1]
    if form == "l1":
        return (down.abs().sum() + right.abs().sum()) / (down.numel() + right.numel())
    return (down.square().sum() + right.square().sum()) / (down.numel() + right.numel())


def batch_total_variation(
    frame: Tensor, form: Literal["mean", "paper", "l1"], batch: int
) -> Tensor:
    """Total variation as an objective counts it beside losses that are means over the batch.

    The published strength multiplies a sum over the batch. Counting the whole batch, not the share
    of this process, keeps that with several processes.

    Args:
        frame: (B, C, H, W), this process's share.
        form: as :func:`total_variation`.
        batch: pictures per step over all processes.
    """
    tv = total_variation(frame, form)
    return tv * batch if form == "paper" else tv
