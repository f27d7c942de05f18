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

References
----------
[^1]: Hill, B., 1975. A simple general approach to inference about the tail of a distribution. Annals of Statistics 3.
[^2]: Ferro, C. and Segers, J., 2003. Inference for clusters of extreme values. Journal of the Royal Statistical
Society B 65 (declustering).
"""

from __future__ import annotations

import math
from typing import Annotated, Final, TypeAlias

import msgspec

from detectors.kernels import kernel
from detectors.protocol import F64

__all__ = ["FURTHEST", "TAIL", "Alpha", "learn_tail", "tail_limit"]

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
