"""Which diffusers schedulers the runtime samples with; others would give other pictures."""

from __future__ import annotations

import math
from typing import Any

from intaglio_export.errors import ExportError

EULER = "FlowMatchEulerDiscreteScheduler"
HEUN = "FlowMatchHeunDiscreteScheduler"
DPM = "DPMSolverMultistepScheduler"

_NEVER = dict.fromkeys(
    (
        "use_karras_sigmas",
        "use_exponential_sigmas",
        "use_beta_sigmas",
        "invert_sigmas",
        "stochastic_sampling",
    ),
    False,
)
# The one value of each parameter that the runtime samples with; absent from a configuration means
# that the class has no such parameter.
_REQUIRED: dict[str, dict[str, Any]] = {
    EULER: _NEVER,
    HEUN: _NEVER,
    DPM: _NEVER
    | {
        "use_flow_sigmas": True,
        "prediction_type": "flow_prediction",
        "algorithm_type": "dpmsolver++",
        "solver_order": 2,
        "solver_type": "midpoint",
        "thresholding": False,
        "use_lu_lambdas": False,
        "lower_order_final": True,
        "euler_at_final": False,
        "final_sigmas_type": "zero",
    },
}


def check_scheduler(scheduler: Any) -> None:
    """See that the runtime samples as `scheduler` does.

    Raises:
        ExportError: it does not know the class, or a parameter has a value that it does not follow.
    """
    name, config = type(scheduler).__name__, scheduler.config
    if name not in _REQUIRED:
        raise ExportError(
            f"The runtime does not know the pipeline's scheduler {name}; give the pipeline one of"
            f" {', '.join(_REQUIRED)}."
        )
    for key, needed in _REQUIRED[name].items():
        value = config.get(key, needed)
        # Configurations may hold null for false.
        if value != needed and not (value is None and needed is False):
            raise ExportError(
                f"The pipeline's {name} has {key} {value!r}, and the runtime samples only with"
                f" {needed!r}: change scheduler/scheduler_config.json."
            )


def scheduler_entry(scheduler: Any) -> dict[str, Any]:
    """The manifest's `scheduler`: the class name and its parameters, verbatim.

    Infinite parameters are left out: JSON has none, and they mean "no limit".
    """
    entry: dict[str, Any] = {"type": type(scheduler).__name__}
    for key, value in scheduler.config.items():
        if not key.startswith("_") and not (isinstance(value, float) and math.isinf(value)):
            entry[key] = value
    return entry
