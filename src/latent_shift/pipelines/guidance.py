"""Classifier-free guidance (arXiv:2207.12598) of clips, which may be weaker on what moves than on what stands still."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

Prediction = Float[Tensor, "batch channels frames height width"]


def guide(unconditional: Prediction, conditional: Prediction, scale: float, motion_guidance: float = 1.0) -> Prediction:
    """Leads from the prediction without the sentence past that with it.

    The scale acts on the mean over the frames; on what differs between them acts 1 + `motion_guidance` (`scale` - 1).

    Args:
        unconditional: the network's prediction for the negative prompt.
        conditional: for the sentence.
        scale: s of classifier-free guidance; 1 gives `conditional`.
        motion_guidance: how much of guidance's excess motion has, in [0, 1]; 1 is guidance as everyone has it.
    """
    difference = conditional - unconditional
    if motion_guidance == 1:
        return unconditional + scale * difference
    still = difference.mean(dim=2, keepdim=True)
    return conditional + (scale - 1) * (still + motion_guidance * (difference - still))
