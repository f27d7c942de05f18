"""How far out a value must be to be as rare as a budget allows, from the tail of its own past.

Six deviations are beyond anything that normal noise does in a lifetime, and once a day in heavy-tailed noise. Of the
distances z (in deviations) of a series those over u are its tail: λ their share, ξ the mean of ln(z / u) over them.
Beyond u the tail is taken to fall as a power (Hill 1975), so a distance that a share a of values exceeds is

    z_a = u · (λ / a)^ξ

the smaller of what u = 2 and u = 3 give: for normal noise some 9 and 5 deviations at a = 1e-6, so both err upwards,
and the nearer one is known sooner; for a power tail both are exact. A series not yet known is taken for a
heavy-tailed one, ξ = 1/2, with the weight of five distances: of its first hundred distances none alarms that is not
beyond comparison, and what it is allowed comes down as it shows itself to be milder.

Distances over u come in runs, in an incident most of all. After the first, those of the next 20 values count for a
sixteenth (declustering), and each for no more than ln 20: an incident hardly widens the tail it is measured by.
Weights halve every 20,000 values. Beyond 100 deviations one distance says no more than another.

A score that is itself of many values, such as a distance between stretches, stays up once it is up, and enters a run
near u: its first distances say nothing of how far it gets. For such there are blocks: of the largest score in each
`length` values the mean m and deviation s give Gumbel's distribution, and the score that a share a of values alarms at,
at most once in a block, is

    x_a = m - 0.5772 β - β ln(a · length),   β = s·√6 / π

Blocks start from a mean of 1.3 and a deviation of 0.4, with the weight of five, and halve every 200; a block's largest
counts for no more than m + 3 s, so that an incident is not taken for the tail. β is raised by 1.5 of its errors.

References
----------
[^1]: Hill, B., 1975. A simple general approach to inference about the tail of a distribution. Annals of Statistics 3.
[^2]: Ferro, C. and Segers, J., 2003. Inference for clusters of extreme values. Journal of the Royal Statistical
Society B 65 (declustering).
[^3]: Gumbel, E., 1958. Statistics of Extremes. Columbia University Press (block maxima, by moments).
"""

from __future__ import annotations

import math
from typing import Annotated, Final, TypeAlias

import msgspec

from detectors.kernels import kernel
from detectors.protocol import F64

__all__ = ["BLOCKS", "FURTHEST", "TAIL", "Alpha", "block_limit", "learn_block", "learn_tail", "tail_limit"]

#: Numbers of one tail: values; for each u the weight of those over it and the sum of their logarithms; values since
#: the last over the smaller u.
TAIL: Final = 6

#: The parameter of the detectors that learn a tail.
Alpha: TypeAlias = Annotated[
    Annotated[float, msgspec.Meta(gt=0, lt=1)] | None,
    msgspec.Meta(
        description="share of values that may score 1.0: raises the limit where the series' own tail is heavy; "
        "null: the limit is never raised"
    ),
]

_FROM: Final = (2.0, 3.0)
_NORMAL: Final = (0.0455, 0.0027)  # shares of normal noise over them: where a series starts from
_PRIOR: Final = 5.0
_PRIOR_SHAPE: Final = 0.5
_RUN: Final = 20.0
_RUN_WEIGHT: Final = 1.0 / 16.0
_FURTHEST_LOG: Final = math.log(20.0)
_KEPT: Final = 0.5 ** (1.0 / 20_000.0)
#: Distances end here.
FURTHEST: Final = 100.0


@kernel
def tail_limit(tail: F64, alpha: float) -> float:
    """Return the distance, in deviations, that a share `alpha` of values exceeds."""
    least = 10.0 * FURTHEST
    for k in range(len(_FROM)):
        weight = tail[1 + 2 * k] + _PRIOR
        share = weight / (tail[0] + _PRIOR / _NORMAL[k])
        shape = (tail[2 + 2 * k] + _PRIOR * _PRIOR_SHAPE) / weight
        least = min(least, _FROM[k] * math.exp(shape * max(math.log(share / alpha), 0.0)))
    return least


@kernel
def learn_tail(tail: F64, z: float) -> None:
    """Count one more distance."""
    for k in range(TAIL - 1):
        tail[k] *= _KEPT
    tail[0] += 1.0
    tail[TAIL - 1] += 1.0
    weight = 1.0 if tail[TAIL - 1] > _RUN else _RUN_WEIGHT
    for k in range(len(_FROM)):
        if z > _FROM[k]:
            tail[1 + 2 * k] += weight
            tail[2 + 2 * k] += weight * min(math.log(z / _FROM[k]), _FURTHEST_LOG)
    if z > _FROM[0]:
        tail[TAIL - 1] = 0.0


#: Numbers of the blocks of one series: how many, mean and variance of their largest; the open one's largest and size.
BLOCKS: Final = 5

_BLOCK_MEAN: Final = 1.3
_BLOCK_VARIANCE: Final = 0.16
_BLOCK_PRIOR: Final = 5.0
_BLOCK_MEMORY: Final = 200.0 / math.log(2.0)
_BLOCK_CLIP: Final = 3.0
_EULER: Final = 0.5772156649015329


@kernel
def block_limit(blocks: F64, alpha: float, length: int) -> float:
    """Return the score that, at most once in a block of `length`, a share `alpha` of values alarms at."""
    mean, variance = (blocks[1], blocks[2]) if blocks[0] > 0.0 else (_BLOCK_MEAN, _BLOCK_VARIANCE)
    # What so few blocks cannot rule out: a deviation that errs by 1.5 of its own errors.
    beta = math.sqrt(6.0 * variance) / math.pi * (1.0 + 1.5 / math.sqrt(min(blocks[0], _BLOCK_MEMORY) + _BLOCK_PRIOR))
    return mean - _EULER * beta - beta * math.log(min(alpha * length, 1.0))


@kernel
def learn_block(blocks: F64, score: float, length: int) -> None:
    """Count one more score; at the end of its block learn the largest."""
    blocks[3] = score if blocks[4] == 0.0 else max(blocks[3], score)
    blocks[4] += 1.0
    if blocks[4] < length:
        return
    if blocks[0] == 0.0:
        blocks[1], blocks[2] = _BLOCK_MEAN, _BLOCK_VARIANCE
    blocks[0] += 1.0
    share = 1.0 / min(blocks[0] + _BLOCK_PRIOR, _BLOCK_MEMORY)
    step = min(blocks[3] - blocks[1], _BLOCK_CLIP * math.sqrt(blocks[2]))
    blocks[1] += share * step
    blocks[2] = (1.0 - share) * (blocks[2] + share * step * step)
    blocks[4] = 0.0
