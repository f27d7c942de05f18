from __future__ import annotations

import random

import numpy as np
import pytest
from river import anomaly, preprocessing
from river.tree.padded import make_padded_tree

from detectors import registry
from detectors.half_space_trees import grow
from detectors.state import dumps


def river_scores(rows: np.ndarray, *, seed: int, **params: int) -> np.ndarray:
    model = preprocessing.MinMaxScaler() | anomaly.HalfSpaceTrees(seed=seed, **params)
    scores = []
    for row in rows.tolist():
        x = {f"{j:05d}": value for j, value in enumerate(row)}
        scores.append(float(model.score_one(x)))
        model.learn_one(x)
    return np.array(scores)


@pytest.mark.parametrize(
    ("columns", "params"),
    [
        (1, {}),
        (10, {}),
        (7, {"n_trees": 3, "height": 4, "window_size": 50}),
        (12, {"n_trees": 5, "height": 11, "window_size": 20}),
    ],
)
def test_raw_scores_equal_rivers_to_the_bit(columns: int, params: dict[str, int]) -> None:
    rng = np.random.default_rng(columns)
    rows = rng.normal(size=(2500, columns)) * np.logspace(-3, 3, columns)
    rows[1200] *= 60.0
    rows[700:800] = rows[699]
    rows[1500:1800] += 2.0
    ours = registry.create("half_space_trees", params, columns=columns, seed=11)
    ours.score(rows, np.arange(2500))
    raw = ours.raw  # type: ignore[attr-defined]
    window = params.get("window_size", 250)
    assert np.isnan(raw[:window]).all()
    expected = river_scores(rows, seed=11, **params)
    assert raw[window:].tobytes() == expected[window:].tobytes()


@pytest.mark.parametrize("columns", [1, 4, 11])
def test_the_trees_grown_are_rivers_node_by_node(columns: int) -> None:
    features, thresholds = grow(columns, 4, 6, 5)
    rng = random.Random(5)
    for tree in range(4):
        limits = {f"{j:05d}": (0.0, 1.0) for j in range(columns)}
        nodes = [(make_padded_tree(limits, 6, 0.15, rng, r_mass=0, l_mass=0), 0)]
        while nodes:
            node, at = nodes.pop()
            if at < len(features):
                assert int(node.feature) == features[at, tree]
                assert node.threshold == thresholds[at, tree]
                nodes += [(node.children[0], 2 * at + 1), (node.children[1], 2 * at + 2)]


def test_models_of_one_shape_and_seed_share_their_trees() -> None:
    one, other = (registry.create("half_space_trees", columns=6, seed=2) for _ in range(2))
    assert one._thresholds is other._thresholds  # type: ignore[attr-defined]


def test_evidence_names_the_columns_that_were_planted() -> None:
    rng = np.random.default_rng(8)
    rows = rng.normal(size=(20_000, 4))
    planted = {}
    for at in range(3000, 20_000, 1000):
        first = int(rng.integers(4))
        planted[at] = {first, (first + 1) % 4}
        rows[at, list(planted[at])] = 12.0 * rng.choice([-1.0, 1.0])
    detector = registry.create("half_space_trees", {"n_trees": 50}, columns=4, sensitivity="high", seed=1)
    scores = detector.score(rows, np.arange(20_000))
    found = [at for at in planted if scores[at] >= 1]
    assert len(found) >= 5
    right = sum(detector.explain(at).shares[0][0] in planted[at] for at in found)
    assert right >= 0.9 * len(found)


def test_shares_are_ordered_and_sum_to_at_most_one() -> None:
    rows = np.random.default_rng(9).normal(size=(5000, 4))
    rows[4000] = 20.0
    detector = registry.create("half_space_trees", columns=4, sensitivity="high")
    scores = detector.score(rows, np.arange(5000))
    assert scores[4000] >= 1
    shares = [share for _, share in detector.explain(4000).shares]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) <= 1.0 + 1e-12


def test_a_snapshot_is_small() -> None:
    detector = registry.create("half_space_trees", columns=10)
    detector.score(np.random.default_rng(0).normal(size=(3000, 10)), np.arange(3000))
    assert len(dumps(detector.snapshot())) < 12_000
