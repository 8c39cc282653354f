"""Strict reading of YAML: each problem is collected with its path, so that an operator meets all of them at once."""

import difflib
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar
from urllib.parse import urlsplit

import yaml

from app.core.errors import ConfigError
from app.core.evm import NATIVE_ASSET, to_bytes20

_VARIABLE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_DECIMAL: Final = re.compile(r"[0-9]{1,78}(\.[0-9]{1,77})?")
_INTEGER: Final = re.compile(r"[0-9]{1,20}")
_BOOLEANS: Final = {"true": True, "false": False}

Choice = TypeVar("Choice", bound=str)
Value = TypeVar("Value")


class _Absent:
    """No such key, or null; `known` when its problem is told already (or, on a disabled chain, forgiven)."""

    def __init__(self, known: bool) -> None:
        self.known = known


_MISSING: Final = _Absent(known=False)
_UNRESOLVED: Final = _Absent(known=True)


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice: YAML's own rule, where PyYAML keeps the last one in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # the parent says that better
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def read_yaml(path: Path) -> object:
    """The document of a YAML file; None when it is empty. Raises ConfigError with the file and the line."""

    def fail(message: str) -> NoReturn:
        raise ConfigError(f"{path}: {message}") from None

    try:
        return yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)  # noqa: S506 (a SafeLoader)
    except FileNotFoundError:
        fail("no such file")
    except OSError as error:
        fail(f"cannot be read: {error.strerror}")
    except UnicodeDecodeError:
        fail("not UTF-8 text")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        fail(f"{line}{error.problem or error.context}")
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        fail(f"not YAML: {' '.join(str(error).split())}")


@dataclass(frozen=True)
class Section:
    """One mapping of the file. Each reader takes a key, checks it, and on a problem notes it and answers a stand-in.

    `label` begins every message (`chains.yaml: chain 'base': `) and `prefix` its path within (`tokens[0].`). Strings
    may hold `${VARIABLE}`; an unset or empty one is a problem, unless `lenient`, when the key counts as absent.
    """

    data: Mapping[object, object]
    problems: list[str]
    env: Mapping[str, str]
    label: str
    prefix: str = ""
    lenient: bool = False
    used: set[str] = field(default_factory=set)

    @property
    def keys(self) -> list[str]:
        """The keys, as text."""
        return [str(key) for key in self.data]

    def problem(self, key: str, message: str) -> None:
        """Note what is wrong with `key`; with the section itself when `key` is empty."""
        path = f"{self.prefix}{key}".rstrip(".")
        self.problems.append(f"{self.label}{path}: {message}" if path else f"{self.label}{message}")

    def finish(self) -> None:
        """Note every key that no reader asked for."""
        for key in self.data:
            if key not in self.used:
                near = difflib.get_close_matches(str(key), self.used, n=1)
                self.problem(str(key), "unknown key" + (f"; did you mean {near[0]}?" if near else ""))

    def text(self, key: str, default: str | None = None, pattern: str = r"\S(.*\S)?", form: str = "text") -> str:
        """A string that matches `pattern`, which `form` puts in words; required when there is no default."""
        value = self._value(key)
        if isinstance(value, _Absent):
            return self._absent(key, value, default, "")
        if not isinstance(value, str):
            self.problem(key, f"must be {form}, in quotes: YAML read it as {_kind(value)}")
        elif re.fullmatch(pattern, value) is None:
            self.problem(key, f"must be {form}")
        else:
            return value
        return default or ""

    def choice(self, key: str, default: Choice, choices: Sequence[Choice]) -> Choice:
        """One of `choices`; an unquoted `off`, YAML's false, is off. Required when the default is empty."""
        value = self._value(key)
        if isinstance(value, _Absent):
            return self._absent(key, value, default or None, default)
        for choice in choices:
            if value == choice or (value is False and choice == "off"):
                return choice
        self.problem(key, f"must be one of {', '.join(choices)}")
        return default

    def integer(self, key: str, default: int | None, low: int, high: int) -> int:
        """A whole number within bounds; required when the default is None. `"${VARIABLE}"` may hold its digits."""
        value = self._value(key)
        if isinstance(value, _Absent):
            return self._absent(key, value, default, 0)
        if isinstance(value, str) and _INTEGER.fullmatch(value):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            self.problem(key, f"must be a whole number from {low} to {high}")
            return default or 0
        return value

    def number(self, key: str, default: float, low: float, high: float) -> float:
        """A number within bounds, for durations; not for money."""
        value = self._value(key)
        if isinstance(value, _Absent):
            return default
        if isinstance(value, str) and _DECIMAL.fullmatch(value):
            value = float(value)
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            self.problem(key, f"must be a number from {low:g} to {high:g}")
            return default
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self._value(key)
        if isinstance(value, _Absent):
            return default
        if isinstance(value, str):
            value = _BOOLEANS.get(value.lower(), value)
        if not isinstance(value, bool):
            self.problem(key, "must be true or false")
            return default
        return value

    def amount(self, key: str) -> str:
        """A decimal amount as text; "0" on a problem. A whole number needs no quotes, a fraction does."""
        value = self._value(key)
        if isinstance(value, _Absent):
            return self._absent(key, value, None, "0")
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            value = str(value)
        if isinstance(value, str) and _DECIMAL.fullmatch(value):
            return value
        hint = ", in quotes: YAML read it as a binary fraction" if isinstance(value, float) else ""
        self.problem(key, f'must be a decimal amount such as "0.002"{hint}')
        return "0"

    def decimal(self, key: str) -> Decimal | None:
        """An optional number above zero that is a limit, not money: 0.05 without quotes is what it says."""
        value = self._value(key)
        if isinstance(value, _Absent):
            return None
        text = repr(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
        if not isinstance(text, str) or _DECIMAL.fullmatch(text) is None or Decimal(text) <= 0:
            self.problem(key, "must be a number above zero")
            return None
        return Decimal(text)

    def address(self, key: str, required: bool = True) -> bytes | None:
        """A contract or account address as 20 bytes; None on a problem, or when it is absent and not required."""
        value = self._value(key)
        if isinstance(value, _Absent):
            return self._absent(key, value, None, None) if required else None
        if not isinstance(value, str):
            self.problem(key, "must be an address in quotes: YAML reads an unquoted 0x… as a number")
            return None
        try:
            address = to_bytes20(value)
        except ValueError as error:
            self.problem(key, str(error))
            return None
        if address == NATIVE_ASSET:
            self.problem(key, "must not be the zero address")
            return None
        return address

    def url(self, key: str, schemes: tuple[str, ...], required: bool = True) -> str | None:
        """A URL with one of `schemes`. Its value is in no message, as it may hold a key."""
        value = self._value(key)
        if isinstance(value, _Absent):
            return self._absent(key, value, None, None) if required else None
        if isinstance(value, str) and _is_url(value, schemes):
            return value
        self.problem(key, f"must be a URL that begins with {' or '.join(f'{scheme}://' for scheme in schemes)}")
        return None

    def urls(self, key: str, schemes: tuple[str, ...]) -> tuple[str, ...]:
        """A list of URLs, each as `url` takes one."""
        entries: dict[object, object] = {f"{key}[{index}]": value for index, value in enumerate(self._list(key))}
        section = replace(self, data=entries, used=set())
        return tuple(url for name in section.keys if (url := section.url(name, schemes)) is not None)

    def section(self, key: str, required: bool = False) -> "Section":
        """The mapping under `key`, an empty one when it is absent."""
        value = self._value(key)
        if isinstance(value, _Absent):
            if required:
                self._absent(key, value, None, None)
            value = {}
        return self._inner(key, value)

    def sections(self, key: str) -> list["Section"]:
        """The list of mappings under `key`, an empty one when it is absent."""
        return [self._inner(f"{key}[{index}]", value) for index, value in enumerate(self._list(key))]

    def has(self, key: str) -> bool:
        """Whether `key` is there and not null."""
        return self.data.get(key) is not None

    def _inner(self, key: str, value: object) -> "Section":
        if not isinstance(value, dict):
            self.problem(key, f"must be a mapping, not {_kind(value)}")
            return replace(self, data={}, problems=[], used=set())  # what it lacks is no further news
        return replace(self, data=value, prefix=f"{self.prefix}{key}.", used=set())

    def _list(self, key: str) -> list[object]:
        value = self._value(key)
        if isinstance(value, list):
            return value
        if not isinstance(value, _Absent):
            self.problem(key, f"must be a list, not {_kind(value)}")
        return []

    def _value(self, key: str) -> object:
        """The value with its variables filled in; _MISSING, or _UNRESOLVED when one of them is not set."""
        self.used.add(key)
        value = self.data.get(key)
        if value is None:
            return _MISSING
        if not isinstance(value, str) or "${" not in value:
            return value
        if "${" in _VARIABLE.sub("", value):
            self.problem(key, "a variable is written ${NAME}")
            return _UNRESOLVED
        names: list[str] = _VARIABLE.findall(value)
        unset = [name for name in names if not self.env.get(name)]
        if not unset:
            return _VARIABLE.sub(lambda match: self.env[match[1]], value)
        if not self.lenient:
            for name in dict.fromkeys(unset):
                self.problem(key, f"the environment variable {name} is not set")
        return _UNRESOLVED

    def _absent(self, key: str, value: _Absent, default: Value | None, stand_in: Value) -> Value:
        if default is not None:
            return default
        if not value.known:
            self.problem(key, "is required")
        return stand_in


def _is_url(value: str, schemes: tuple[str, ...]) -> bool:
    try:
        parts = urlsplit(value)
        return parts.scheme in schemes and bool(parts.hostname) and parts.port != 0 and not re.search(r"\s", value)
    except ValueError:  # of a port that is no number, or unbalanced brackets
        return False


def _kind(value: object) -> str:
    if value is None:
        return "nothing"
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "a mapping"}
    return names.get(type(value), f"a {type(value).__name__}")
