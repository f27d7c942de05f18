"""What the windows say of mixed streams is what a slow, plain reading of each record comes to."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.truth.case import observed
from streamproc import rules
from streamproc.events import RecordBatch
from streamproc.pipeline import Pipeline
from streamproc.rules import RuleBook
from tests.core.make import MINIMUM, cut
from tests.oracles import reading
from tests.oracles.codecs import CODECS
from tests.oracles.reading import Fact, Refused
from tests.oracles.records import BEGIN_S, FORMATS, MET, Draw, Recipe, Record, recipes, seldon, stream

#: A window that takes a whole stream, and another before it in which models are met.
HOURLY = "defaults: {window: 1h, lateness: 5m, min_samples: 1, max_classes: 50}\n"

#: The model's features that are known once it was met.
FEATURES = ("x", "y", "n")

#: A signal of a model: of how many, and their sum.
Tally = dict[tuple[str, str], tuple[int, float]]


# ------------------------------------------------------------------------------ what is right


class Right:
    """What records come to, by their facts."""

    def __init__(self, found: Sequence[Record], topic: str) -> None:
        self.refused: Counter[str] = Counter()
        self.facts: list[Fact] = []
        halves: dict[tuple[str, str], dict[str, Fact]] = defaultdict(dict)
        for record in found:
            try:
                said = reading.read(record.value, record.headers, topic, record.key)
            except Refused as e:
                self.refused[str(e)] += 1
                continue
            if said.unread and not said.facts and not said.ignored:
                self.refused["schema"] += 1
            for fact in said.facts:
                if fact.side:  # one that comes again says nothing new
                    halves[fact.model, fact.exchange].setdefault(fact.side, fact)
                elif not self._told(fact):
                    self.facts.append(fact)
        for pair in halves.values():
            self.facts.append(_put_together(pair, answers=topic.startswith("seldon.")))

    def _told(self, fact: Fact) -> bool:
        """Whether another span has told of this call: one around it, one inside it, or one of the same answer."""
        if not fact.span or fact.kind not in ("call", "embedding"):
            return False
        for other in self.facts:
            if other.model != fact.model or not other.span or other.span == fact.span or other.kind not in _REQUESTS:
                continue
            if other.span == fact.parent or other.parent == fact.span:
                return True
            if fact.response and fact.response == other.response:
                return True
        return False


_REQUESTS = ("call", "embedding")


def _put_together(pair: dict[str, Fact], *, answers: bool) -> Fact:
    """Return the prediction that a request and its response are; a request alone has failed."""
    response = pair.get("response")
    if response is None:
        request = pair["request"]
        request.failed = True
        return request
    if "request" in pair and response.time_s is not None and pair["request"].time_s is not None:
        response.latency_s = response.time_s - pair["request"].time_s
    return response


def tallied(facts: Sequence[Fact]) -> Tally:
    """Return what facts come to, by model and signal."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    classes: dict[str, Counter[str]] = defaultdict(Counter)
    for fact in facts:
        if fact.kind not in _REQUESTS:
            found[fact.model, f"{fact.kind}_failure_rate"].append(fact.failed)
            continue
        if fact.kind == "embedding":
            found[fact.model, "embedding_failure_rate"].append(fact.failed)
        found[fact.model, "error_rate"].append(fact.failed)
        for signal, number in (
            ("prediction_value", fact.value),
            ("tokens_in", fact.tokens_in),
            ("tokens_out", fact.tokens_out),
            ("cost_per_request", fact.cost),
        ):
            if number is not None:
                found[fact.model, signal].append(number)
        if fact.latency_s is not None:
            found[fact.model, "latency_p50"].append(0.0)
        if fact.label is not None:
            classes[fact.model][fact.label] += 1
        if not fact.failed and fact.answer != reading.UNTOLD:
            found[fact.model, "empty_predictions"].append(fact.answer == reading.EMPTY)
            found[fact.model, "unreadable"].append(fact.answer == reading.UNREADABLE)
        if fact.reasons and fact.kind == "call":
            found[fact.model, "unknown_finish_reasons"].append("unknown" in fact.reasons)
            if "unknown" not in fact.reasons or "length" in fact.reasons:
                found[fact.model, "truncated_rate"].append("length" in fact.reasons)
        if fact.features is not None and fact.model in ("m0", "m1", "m2"):
            for name in FEATURES:
                found[fact.model, "missing_features"].append(fact.features.get(name) is None)
    tally = {key: (len(values), math.fsum(values)) for key, values in found.items()}
    for model, counts in classes.items():
        for label, count in counts.items():
            tally[model, f"class_share:{label}"] = (counts.total(), float(count))
    for model in {model for model, _ in tally}:
        n, missing = tally.pop((model, "missing_features"), (0, 0.0))
        requests, failures = tally.get((model, "error_rate"), (0, 0.0))
        if n and failures < requests:  # where nothing was answered the window says nothing of features
            tally[model, "missing_features"] = (n // len(FEATURES), missing)  # of how many events
    return tally


# ------------------------------------------------------------------------------ what is told


def told(found: Sequence[Record], *, topic: str = "predictions", edges: Any = ()) -> tuple[Tally, Counter[str], int]:
    """Return what the windows say of the hour that is compared, what was rejected, and how much was ignored."""
    book = RuleBook(rules.parse(MINIMUM + HOURLY))
    pipeline = Pipeline(book, kind="predictions", topic=topic, codecs=CODECS)
    rejected: Counter[str] = Counter()
    ignored = 0
    with observed() as values:
        for batch in (_batch(MET if topic == "predictions" else [], 0, topic), _batch(found, len(MET), topic)):
            for part in cut(batch, edges):
                out = pipeline.process(part)
                rejected.update(r.error_type for r in out.rejected)
                ignored += out.ignored.total()
                assert sum(out.accounts().values()) == out.came
        for later_s in (3000, 3 * 3600, 6 * 3600):
            pipeline.advance(round((BEGIN_S + later_s) * 1_000_000))
    tally: Tally = {}
    for (model, signal), rows in values.items():
        for end_us, value, n in rows:
            if end_us == round((BEGIN_S + 3600) * 1_000_000):
                cells = n * len(FEATURES) if signal == "missing_features" else n
                tally[model, signal] = (n, value * cells)
    return tally, rejected, ignored


def _batch(found: Sequence[Record], first: int, topic: str) -> RecordBatch:
    return RecordBatch(
        topic,
        0,
        list(range(first, first + len(found))),
        [round(r.stamp_s * 1000) for r in found],
        [r.key for r in found],
        [r.value for r in found],
        [r.headers for r in found],
    )


#: Signals that are compared: those that count or sum what events say, and nothing learned.
COMPARED = {
    "error_rate", "prediction_value", "tokens_in", "tokens_out", "cost_per_request", "latency_p50", "empty_predictions",
    "unreadable", "truncated_rate", "unknown_finish_reasons", "missing_features", "class_share", "agent_failure_rate",
    "tool_failure_rate", "embedding_failure_rate",
}  # fmt: skip


def differences(right: Tally, said: Tally) -> list[str]:
    """Return in words where windows say something else than the facts; nothing said of no events is nothing."""
    found = []
    for model, signal in sorted(right.keys() | said.keys()):
        base = signal.partition(":")[0]
        if base not in COMPARED or (base == "missing_features" and model not in ("m0", "m1", "m2")):
            continue
        n, total = right.get((model, signal), (0, 0.0))
        own_n, own = said.get((model, signal), (0, 0.0))
        if base == "class_share":  # a class that was met before is told of with a share of 0
            n, own_n = (0 if total == 0 else n), (0 if own == 0 else own_n)
        if base == "latency_p50":
            total = own = 0.0
        if n != own_n or not math.isclose(total, own, rel_tol=1e-9, abs_tol=1e-6):
            found.append(f"{model} {signal}: {own_n} events that sum to {own:g}, right are {n} that sum to {total:g}")
    return found


def compare(found: Sequence[Record], *, topic: str = "predictions", edges: Any = ()) -> None:
    right = Right(found, topic)
    tally, rejected, _ = told(found, topic=topic, edges=edges)
    assert differences(tallied(right.facts), tally) == []
    assert rejected.total() == right.refused.total() - right.refused["ignored"], (rejected, right.refused)


# ------------------------------------------------------------------------------ the tests


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_of_each_format_the_windows_say_what_its_records_do(name: str) -> None:
    for seed in range(12):
        rng = random.Random(f"{name}{seed}")
        compare(stream([(name, rng.randrange(1 << 32)) for _ in range(30)]))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(recipe=recipes, edges=st.sets(st.integers(1, 60), max_size=6))
def test_of_mixed_formats_the_windows_say_what_the_records_do_however_they_are_cut(
    recipe: Recipe, edges: set[int]
) -> None:
    compare(stream(recipe), edges=edges)


@pytest.mark.parametrize("binary", [True, False])
def test_of_seldons_responses_the_windows_say_what_they_do(binary: bool) -> None:
    for seed in range(12):
        rng = random.Random(seed)
        found = [seldon(Draw(i, rng.randrange(1 << 32)), binary=binary) for i in range(30)]
        compare(found, topic="seldon.prod.model.iris.outputs")
