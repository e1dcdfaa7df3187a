"""Tests of costs fit every profile anew."""

from __future__ import annotations

import pytest

from ddsim.cost import model
from ddsim.cost.fit import fit


@pytest.fixture(autouse=True)
def fits_are_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "fit", fit)
