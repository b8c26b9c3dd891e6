"""Which diffusers schedulers the runtime samples with; others would give other pictures."""

from __future__ import annotations

import math
from typing import Any

from intaglio_export.errors import ExportError

EULER = "FlowMatchEulerDiscreteScheduler"
HEUN = "FlowMatchHeunDiscreteScheduler"
DPM = "DPMSolverMultistepScheduler"

DDIM = "DDIMScheduler"

_NEVER = dict.fromkeys(
    (
        "use_karras_sigmas",
        "use_exponential_sigmas",
        "use_beta_sigmas",
        "invert_sigmas",
        "stochastic_sampling",
    ),
    (False,),
)
_VARIANCE_PRESERVING: dict[str, tuple[Any, ...]] = {
    "prediction_type": ("epsilon",),
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "trained_betas": (None,),
    "rescale_betas_zero_snr": (False,),
    "timestep_spacing": ("linspace", "leading", "trailing"),
    "thresholding": (False,),
}
_MULTISTEP: dict[str, tuple[Any, ...]] = _NEVER | {
    "algorithm_type": ("dpmsolver++",),
    "solver_order": (2,),
    "solver_type": ("midpoint",),
    "thresholding": (False,),
    "use_lu_lambdas": (False,),
    "lower_order_final": (True,),
    "euler_at_final": (False,),
    "final_sigmas_type": ("zero",),
}
# What a model predicts, then the classes that sample it, then the values of each parameter that the
# runtime samples with; absent from a configuration means that the class has no such parameter.
_ALLOWED: dict[str, dict[str, dict[str, tuple[Any, ...]]]] = {
    "velocity": {
        EULER: _NEVER,
        HEUN: _NEVER,
        DPM: _MULTISTEP | {"use_flow_sigmas": (True,), "prediction_type": ("flow_prediction",)},
    },
    "epsilon": {
        DDIM: _VARIANCE_PRESERVING | {"clip_sample": (False,)},
        DPM: {"use_flow_sigmas": (False,)}
        | _MULTISTEP
        | _VARIANCE_PRESERVING
        | {
            "lambda_min_clipped": (-math.inf,),
            # diffusers would cut a prediction down to three channels.
            "variance_type": (None,),
        },
    },
}


def check_scheduler(scheduler: Any, prediction_type: str) -> None:
    """See that the runtime samples as `scheduler` does.

    Args:
        scheduler: diffusers' scheduler of the pipeline.
        prediction_type: what the model predicts, "velocity" or "epsilon".

    Raises:
        ExportError: it does not know the class, the class does not sample such a model, or a
            parameter has a value that it does not follow.
    """
    name, config = type(scheduler).__name__, scheduler.config
    classes = _ALLOWED[prediction_type]
    if name not in classes:
        raise ExportError(
            f"The runtime has no scheduler {name} for a model that predicts {prediction_type}; give"
            f" the pipeline one of {', '.join(classes)}."
        )
    for key, allowed in classes[name].items():
        value = config.get(key, allowed[0])
        # Configurations may hold null for false.
        if value not in allowed and not (value is None and allowed == (False,)):
            raise ExportError(
                f"The pipeline's {name} has {key} {value!r}, and the runtime samples only with"
                f" {' or '.join(map(repr, allowed))}: change scheduler/scheduler_config.json."
            )


def scheduler_entry(scheduler: Any, max_shift: float) -> dict[str, Any]:
    """The manifest's `scheduler`: the class name and its parameters, verbatim.

    Infinite parameters are left out: JSON has none, and they mean "no limit". So is a
    timestep_spacing that is only the class's own: `from_config` of another class takes that
    class's. `max_shift` is the pipeline's own, for a scheduler that has none.
    """
    entry: dict[str, Any] = {"type": type(scheduler).__name__}
    for key, value in scheduler.config.items():
        if not key.startswith("_") and not (isinstance(value, float) and math.isinf(value)):
            entry[key] = value
    if "timestep_spacing" in scheduler.config.get("_use_default_values", ()):
        del entry["timestep_spacing"]
    if entry.get("use_dynamic_shifting"):
        entry.setdefault("max_shift", max_shift)
    return entry
