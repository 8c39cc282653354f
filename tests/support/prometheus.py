"""As much of Prometheus as an alert needs to be asked whether it fires: scrapes over time, and the PromQL of a rule."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

import promql_parser as promql

from tests.support.exposition import Exposition

SCRAPE_EVERY_S: Final = 15.0
STALE_S: Final = 300.0  # a sample that is older is none

Series = frozenset[tuple[str, str]]
Vector = dict[Series, float]


@dataclass
class Prometheus:
    """What it has scraped: (second, instance, answer), in order of time."""

    scrapes: list[tuple[float, str, Exposition]] = field(default_factory=list)

    def scraped(self, at_s: float, exposition: Exposition, instance: str = "one") -> None:
        self.scrapes.append((at_s, instance, exposition))

    def fires(self, rule: Mapping[str, Any]) -> set[Series]:
        """The series for which the rule's expression has been true for its `for`, at any scrape."""
        lasts_s = promql.parse_duration(rule["for"]).total_seconds() if "for" in rule else 0.0
        since: dict[Series, float] = {}
        fired: set[Series] = set()
        for at_s in sorted({at_s for at_s, _, _ in self.scrapes}):
            true = self.ask(rule["expr"], at_s)
            since = {series: since.get(series, at_s) for series in true}
            fired |= {series for series, began_s in since.items() if at_s - began_s >= lasts_s}
        return fired

    def ask(self, query: str, at_s: float) -> Vector:
        found = self._vector(promql.parse(query), at_s)
        assert isinstance(found, dict)
        return found

    def _vector(self, node: promql.Expr, at_s: float) -> Vector | float:
        match node:
            case promql.NumberLiteral():
                return node.val
            case promql.ParenExpr():
                return self._vector(node.expr, at_s)
            case promql.VectorSelector():
                return {series: values[-1][1] for series, values in self._samples(node, at_s - STALE_S, at_s).items()}
            case promql.Call():
                return self._over_time(node, at_s)
            case promql.AggregateExpr():
                return _aggregated(node, self._vector(node.expr, at_s))
            case promql.BinaryExpr():
                return _compared(node, self._vector(node.lhs, at_s), self._vector(node.rhs, at_s))
        raise NotImplementedError(type(node))

    def _over_time(self, call: promql.Call, at_s: float) -> Vector:
        """A series needs one sample for an average, and two for a rate, which is not extrapolated here."""
        [matrix] = call.args
        span: timedelta = matrix.range
        found = self._samples(matrix.vector_selector, at_s - span.total_seconds(), at_s)
        if call.func.name == "avg_over_time":
            return {series: sum(value for _, value in values) / len(values) for series, values in found.items()}
        if call.func.name == "rate":
            return {
                series: (values[-1][1] - values[0][1]) / (values[-1][0] - values[0][0])
                for series, values in found.items()
                if len(values) > 1
            }
        raise NotImplementedError(call.func.name)

    def _samples(
        self, selector: promql.VectorSelector, after_s: float, until_s: float
    ) -> dict[Series, list[tuple[float, float]]]:
        found: dict[Series, list[tuple[float, float]]] = {}
        for at_s, instance, exposition in self.scrapes:
            if after_s < at_s <= until_s:
                for labels, value in exposition.samples.get(selector.name or "", ()):
                    whole = {**labels, "instance": instance}
                    if all(_matches(each, whole) for each in selector.matchers.matchers):
                        found.setdefault(frozenset(whole.items()), []).append((at_s, value))
        return found


def _matches(matcher: promql.Matcher, labels: Mapping[str, str]) -> bool:
    if matcher.op != promql.MatchOp.Equal:
        raise NotImplementedError(matcher.op)
    return labels.get(matcher.name, "") == matcher.value


def _aggregated(node: promql.AggregateExpr, inner: Vector | float) -> Vector:
    assert isinstance(inner, dict)
    joins: dict[str, Callable[[list[float]], float]] = {"max": max, "sum": sum}
    kept = set(node.modifier.labels) if node.modifier is not None else set()
    groups: dict[Series, list[float]] = {}
    for series, value in inner.items():
        groups.setdefault(frozenset(each for each in series if each[0] in kept), []).append(value)
    return {series: joins[str(node.op)](values) for series, values in groups.items()}


def _compared(node: promql.BinaryExpr, left: Vector | float, right: Vector | float) -> Vector:
    assert isinstance(left, dict)
    assert isinstance(right, float)
    if str(node.op) != ">":
        raise NotImplementedError(str(node.op))
    return {series: value for series, value in left.items() if value > right}
