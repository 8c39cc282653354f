"""Goal: what is printed for programs is UTF-8, whatever the locale."""

import io
import sys

import pytest

from app.core.terminal import utf_8_output


def test_what_programs_read_is_utf_8_whatever_the_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="latin-1"))
    utf_8_output()
    sys.stdout.write("Café – 注文")
    sys.stdout.flush()
    assert written.getvalue().decode("utf-8") == "Café – 注文"
