"""The options of a training: shared by the analyses that train. No torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

import probekit


class TrainingOptions(probekit.Options):
    """How something is trained."""

    steps: int = Field(2000, ge=1, description="Steps of training; fewer if the seconds are spent before.")
    seconds: float | None = Field(
        None, gt=0, description="Most seconds of one training; unset: no limit. With one, two runs may differ."
    )
    batch: int = Field(512, ge=2, description="Examples in a step.")
    learning_rate: float = Field(2e-3, gt=0, description="AdamW's learning rate η at its highest.")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="How the learning rate falls after the warm-up: to 0, or not at all."
    )
    warmup: float = Field(0.05, ge=0, lt=1, description="Share of the training in which the learning rate rises to η.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay.")
    clip: float = Field(1.0, gt=0, description="Norm to which the gradient is clipped.")
