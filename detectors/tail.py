"""How far out a value must be to be as rare as a budget allows, from the tail of its own past.

Six deviations are beyond anything that normal noise does in a lifetime, and once a day in heavy-tailed noise. Of the
distances z (in deviations) of a series those over u are its tail: λ their share, ξ the mean of ln(z / u) over them.
Beyond u the tail is taken to fall as a power (Hill 1975), so a distance that a share a of values exceeds is

    z_a = u · (λ / a)^ξ

the smallest of what u = 2, 3, 5 and 8 give: for a power tail each is exact, for a lighter one, whose logarithm bends,
each errs upwards, and the furthest u that was exceeded often enough the least. For normal noise it is some 7
deviations at a = 1e-6. λ and ξ start as if three distances had been over every u, with ξ = 1/2: three of no values is
all of them, so that of its first hundred distances none alarms that is not beyond comparison, and what a series is
allowed comes down as it shows itself to be milder.

Distances over u come in runs, in an incident most of all. So that an incident hardly widens the tail it is measured by
there is an allowance, of at most three distances over the smallest u, which grows by twice the share of those that is
usual: what is within it counts in full, what is not for a sixteenth. Values independent of one another keep within
it, however many of them are far out; to count all but the first of a run for less would find their tail too thin. No
distance counts for more than ln 20. Weights halve every 20,000 values. Beyond 100 deviations one distance says no more
than another.

A score that is itself of many values, such as a distance between stretches, stays up once it is up, and enters a run
near u: its first distances say nothing of how far it gets. For such there are blocks: of the largest score in each
`length` values the mean m and deviation s give Gumbel's distribution, and the score that a share a of values alarms at,
at most once in a block, is

    x_a = m - 0.5772 β - β ln(a · length),   β = max(s·√6 / π, e / 1.144)

where e is the mean of what is over m, less m: 1.144 β for Gumbel's distribution, more where the tail is a heavier one.
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

_FROM: Final = (2.0, 3.0, 5.0, 8.0)
_LEVELS: Final = len(_FROM)

#: Numbers of one tail: values; for each u the weight of those over it and the sum of their logarithms; the allowance.
TAIL: Final = 2 + 2 * _LEVELS

#: The parameter of the detectors that learn a tail.
Alpha: TypeAlias = Annotated[
    Annotated[float, msgspec.Meta(gt=0, lt=1)] | None,
    msgspec.Meta(
        description="share of values that may score 1.0: raises the limit where the series' own tail is heavy; "
        "null: the limit is never raised"
    ),
]

_PRIOR: Final = 3.0
_PRIOR_SHAPE: Final = 0.5
_ALLOWED: Final = 2.0  # growth of the allowance, in usual shares
_MOST_ALLOWED: Final = 3.0
_RUN_WEIGHT: Final = 1.0 / 16.0
_FURTHEST_LOG: Final = math.log(20.0)
_KEPT: Final = 0.5 ** (1.0 / 20_000.0)
#: Distances end here.
FURTHEST: Final = 100.0


@kernel
def tail_limit(tail: F64, alpha: float) -> float:
    """Return the distance, in deviations, that a share `alpha` of values exceeds."""
    least = 10.0 * FURTHEST
    for k in range(_LEVELS):
        if _FROM[k] >= least:
            break  # nothing further out can give less
        weight = tail[1 + 2 * k] + _PRIOR
        share = weight / (tail[0] + _PRIOR)
        shape = (tail[2 + 2 * k] + _PRIOR * _PRIOR_SHAPE) / weight
        least = min(least, _FROM[k] * math.exp(shape * max(math.log(share / alpha), 0.0)))
    return least


@kernel
def learn_tail(tail: F64, z: float) -> None:
    """Count one more distance."""
    last = TAIL - 1
    allowed = min(tail[last] + _ALLOWED * (tail[1] + _PRIOR) / (tail[0] + _PRIOR), _MOST_ALLOWED)
    for k in range(last):
        tail[k] *= _KEPT
    tail[0] += 1.0
    if z > _FROM[0]:
        weight = max(min(allowed, 1.0), _RUN_WEIGHT)
        allowed -= min(allowed, weight)
        for k in range(_LEVELS):
            if z > _FROM[k]:
                tail[1 + 2 * k] += weight
                tail[2 + 2 * k] += weight * min(math.log(z / _FROM[k]), _FURTHEST_LOG)
    tail[last] = allowed


#: Numbers of the blocks of one series: how many, mean and variance of their largest; the open one's largest and size;
#: by how much and how often the largest is over the mean.
BLOCKS: Final = 7

_BLOCK_MEAN: Final = 1.3
_BLOCK_VARIANCE: Final = 0.16
_BLOCK_PRIOR: Final = 5.0
_BLOCK_MEMORY: Final = 200.0 / math.log(2.0)
_BLOCK_CLIP: Final = 3.0
_EULER: Final = 0.5772156649015329
# Of Gumbel's distribution with β = 1: how often it is over its mean, 1 - exp(-exp(-0.5772)), and by how much then.
_OVER: Final = 0.4296
_EXCESS: Final = 1.1441


@kernel
def block_limit(blocks: F64, alpha: float, length: int) -> float:
    """Return the score that, at most once in a block of `length`, a share `alpha` of values alarms at."""
    mean, variance, excess = _BLOCK_MEAN, _BLOCK_VARIANCE, 0.0
    if blocks[0] > 0.0:
        mean, variance, excess = blocks[1], blocks[2], blocks[5] / blocks[6]
    beta = max(math.sqrt(6.0 * variance) / math.pi, excess / _EXCESS)
    # What so few blocks cannot rule out: a deviation that errs by 1.5 of its own errors.
    beta *= 1.0 + 1.5 / math.sqrt(min(blocks[0], _BLOCK_MEMORY) + _BLOCK_PRIOR)
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
        blocks[5], blocks[6] = _OVER * _EXCESS * math.sqrt(6.0 * _BLOCK_VARIANCE) / math.pi, _OVER
    blocks[0] += 1.0
    share = 1.0 / min(blocks[0] + _BLOCK_PRIOR, _BLOCK_MEMORY)
    step = min(blocks[3] - blocks[1], _BLOCK_CLIP * math.sqrt(blocks[2]))
    blocks[1] += share * step
    blocks[2] = (1.0 - share) * (blocks[2] + share * step * step)
    blocks[4] = 0.0
    blocks[5] += share * (max(step, 0.0) - blocks[5])
    blocks[6] += share * ((1.0 if step > 0.0 else 0.0) - blocks[6])
