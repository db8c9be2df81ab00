"""The training's loss curve as read by the report, with validation losses."""

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from diffusion.system.errors import DiffctlError, UsageError
from diffusion.train.train_config import BAND_NAMES

Values = NDArray[np.float64]
VALIDATION, RAW = "val_", "val_raw_"  # prefixes of columns: validation loss of the EMA, of the raw weights
PARTS = {
    "validation mse and vlb, EMA": ("mse", "vlb"),
    "validation loss by band of the log-SNR, EMA": BAND_NAMES,
    "validation loss by quarter of t, EMA": tuple(f"loss_q{quarter}" for quarter in range(4)),  # old curves
}


class TrainingCurve(NamedTuple):
    """`loss` (N,) after `steps`, and validation losses by column, (M,) each, after `val_steps`."""

    steps: Values
    loss: Values
    val_steps: Values
    validation: dict[str, Values]

    def lines(self) -> dict[str, Values]:
        """Return the validation losses to draw, by label."""
        named = {f"{VALIDATION}loss": "validation, EMA", f"{RAW}loss": "validation, raw weights"}
        return {label: self.validation[name] for name, label in named.items() if name in self.validation}

    def facts(self) -> list[tuple[str, str]]:
        """Return names and values of the validation losses."""
        if not len(self.val_steps):
            return []
        loss = self.validation[f"{VALIDATION}loss"]
        least = int(np.nanargmin(loss)) if np.isfinite(loss).any() else 0
        text = f"{loss[-1]:.4g}, least {loss[least]:.4g} after step {self.val_steps[least]:,.0f}"
        facts = [("validation loss, EMA", text)]
        if f"{RAW}loss" in self.validation:
            facts.append(("validation loss, raw weights", f"{self.validation[f'{RAW}loss'][-1]:.4g}"))
        return facts + [(name, self._last(parts)) for name, parts in PARTS.items() if self._last(parts)]

    def _last(self, parts: tuple[str, ...]) -> str:
        columns = [
            self.validation[f"{VALIDATION}{part}"]
            for part in parts
            if f"{VALIDATION}{part}" in self.validation
        ]
        return ", ".join(f"{column[-1]:.4g}" for column in columns)


def read_curve(path: Path) -> TrainingCurve:
    """Read the training's CSV, with at least `step` and `loss`; DiffctlError for another file."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        names = [name for name in (rows[0] if rows else ()) if name and name.startswith(VALIDATION)]
        columns = {name: np.array([float(row[name]) for row in rows]) for name in ("step", "loss", *names)}
    except FileNotFoundError:
        raise UsageError(f"no loss curve at {path}: make it with `diffctl stage train`") from None
    except (KeyError, TypeError, ValueError) as error:
        raise DiffctlError(f"{path} is no loss curve ({error}): make it with `diffctl stage train`") from None
    if not rows:
        raise DiffctlError(f"{path} holds no step: make it with `diffctl stage train`")
    measured = ~np.isnan(columns.get(f"{VALIDATION}loss", np.full(len(rows), np.nan)))
    trained = ~(measured & np.isnan(columns["loss"]))  # a row may have validation losses only
    return TrainingCurve(
        columns["step"][trained],
        columns["loss"][trained],
        columns["step"][measured],
        {name: columns[name][measured] for name in names},
    )
