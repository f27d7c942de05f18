"""Labels that can agree with no prediction are named, and not taken for an accuracy of 0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from streamproc.matching import Mismatch, mismatches
from tests.core.make import BEGIN_US, MINIMUM, SECOND, batch, config, pipeline, prediction
from tests.core.test_cli import said, streamproc


def answers(labels: list[Any], model: str = "fraud") -> list[dict[str, Any]]:
    return [
        prediction(BEGIN_US + i * SECOND, model=model, id=str(i), prediction={"label": label})
        for i, label in enumerate(labels)
    ]


def truths(labels: list[Any], model: str = "fraud") -> list[dict[str, Any]]:
    return [
        {"prediction_id": str(i), "label": label, "model": {"name": model}, "time": BEGIN_US + i * SECOND}
        for i, label in enumerate(labels)
    ]


def found(asked: list[dict[str, Any]], told: list[dict[str, Any]]) -> list[Mismatch]:
    sides = pipeline(config()), pipeline(config(), kind="labels")
    for side, events in zip(sides, (asked, told), strict=True):
        if events:
            side.process(batch(events, topic=side.topic))
    return list(mismatches(sides[0].models, sides[1].models))


@pytest.mark.parametrize(
    ("labels", "known"), [([0, 1, 1, 0], "`0`, `1`"), ([True, False, True, True], "`True`, `False`")]
)
def test_classes_of_which_none_is_the_same_are_named(labels: list[Any], known: str) -> None:
    (one,) = found(answers(["no", "yes", "yes", "no"]), truths(labels))
    assert (one.kind, one.model) == ("other_classes", "fraud")
    assert one.message.startswith(f"labels of fraud are {known}, and its answers `no`, `yes`: none is the same")


@pytest.mark.parametrize("labels", [["yes", "no"], ["no", "maybe"], ["NO", "Yes"], ["maybe"]])
def test_classes_that_meet_or_are_only_one_are_no_news(labels: list[str]) -> None:
    assert found(answers(["no", "yes"]), truths(labels)) == []


def test_numbers_are_the_same_however_written() -> None:
    assert found(answers(["1.0", "2.0"]), truths([1, 2])) == []


def test_labels_of_a_model_that_makes_no_predictions_are_named() -> None:
    (one,) = found(answers(["no", "yes"], model="fraud-eu"), truths(["no"], model="fraud_eu"))
    assert one.kind == "unknown_model"
    assert one.message == "labels are of model fraud_eu, which makes no predictions; did you mean fraud-eu?"
    assert found([], truths(["no"])) == []  # no prediction was read yet, of whatever model


def test_replay_names_them(tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_text(MINIMUM)
    for name, events in (("p", answers(["no", "yes"] * 40)), ("l", truths([0, 1] * 40) + truths([1], model="frud"))):
        (tmp_path / f"{name}.jsonl").write_bytes(b"\n".join(map(orjson.dumps, events)))
    text = said(
        streamproc("replay", "-f", tmp_path / "p.jsonl", "--labels", tmp_path / "l.jsonl", "-c", tmp_path / "w.yaml")
    )
    assert "warning: labels of fraud are `0`, `1`, and its answers `no`, `yes`" in text
    assert "warning: labels are of model frud, which makes no predictions; did you mean fraud?" in text


def test_replay_says_where_most_labels_found_no_prediction(tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_text(MINIMUM + "models: [{match: {}, labels: {max_delay: 1m}}]\n")
    labels = [{**label, "prediction_id": f"x-{label['prediction_id']}"} for label in truths(["no", "yes"] * 200)]
    for name, events in (("p", answers(["no", "yes"] * 200)), ("l", labels)):
        (tmp_path / f"{name}.jsonl").write_bytes(b"\n".join(map(orjson.dumps, events)))
    text = said(
        streamproc("replay", "-f", tmp_path / "p.jsonl", "--labels", tmp_path / "l.jsonl", "-c", tmp_path / "w.yaml")
    )
    assert "warning: most labels found no prediction: is their `prediction_id` the prediction's `id`?" in text
