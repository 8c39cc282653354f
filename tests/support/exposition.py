"""Reads Prometheus' text format."""

from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from app.core.metrics import REGISTRY

Labels = Mapping[str, str]


@dataclass(frozen=True)
class Exposition:
    """One answer. `samples` by the name that queries use, as `…_bucket`; `families`: the names with their types."""

    text: str
    samples: Mapping[str, list[tuple[Labels, float]]]
    families: Mapping[str, str]

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples that have these labels; 0 without any."""
        return sum(value for found, value in self.samples.get(name, ()) if labels.items() <= found.items())


def read_exposition(text: str) -> Exposition:
    samples: dict[str, list[tuple[Labels, float]]] = {}
    families: dict[str, str] = {}
    for family in text_string_to_metric_families(text):
        families[family.name] = family.type
        for sample in family.samples:
            samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    return Exposition(text, samples, families)


def counted(name: str, **labels: str) -> float:
    """What this process has counted until now, of a sample by all its labels."""
    return REGISTRY.get_sample_value(name, labels) or 0.0
