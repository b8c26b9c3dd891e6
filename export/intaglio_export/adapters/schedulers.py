"""The diffusers schedulers that the runtime supports, and their allowed parameters."""

from __future__ import annotations

import math
from typing import Any

from intaglio_export.errors import ExportError

EULER = "FlowMatchEulerDiscreteScheduler"
HEUN = "FlowMatchHeunDiscreteScheduler"
DPM = "DPMSolverMultistepScheduler"
UNIPC = "UniPCMultistepScheduler"
LCM = "FlowMatchLCMScheduler"
DDIM = "DDIMScheduler"

_SHIFTS = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")

_NEVER = dict.fromkeys(("invert_sigmas", "stochastic_sampling"), (False,))
# With stochastic_sampling Euler's class takes the steps of LCM's.
_EULER: dict[str, tuple[Any, ...]] = _NEVER | {"stochastic_sampling": (False, True)}
_OWN_SIGMAS = dict.fromkeys(
    ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"), (False,)
)
_VARIANCE_PRESERVING: dict[str, tuple[Any, ...]] = {
    "prediction_type": ("epsilon",),
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "trained_betas": (None,),
    "rescale_betas_zero_snr": (False,),
    "timestep_spacing": ("linspace", "leading", "trailing"),
    "thresholding": (False,),
}
_MULTISTEP: dict[str, tuple[Any, ...]] = (
    _NEVER
    | _OWN_SIGMAS
    | {
        "solver_order": (2,),
        "thresholding": (False,),
        "lower_order_final": (True,),
        "final_sigmas_type": ("zero",),
    }
)
_DPM: dict[str, tuple[Any, ...]] = _MULTISTEP | {
    "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"),
    "solver_type": ("midpoint",),
    "use_lu_lambdas": (False,),
    "euler_at_final": (False,),
}
_UNIPC: dict[str, tuple[Any, ...]] = _MULTISTEP | {
    "predict_x0": (True,),
    "solver_type": ("bh2",),
    "solver_p": (None,),
    "disable_corrector": ([],),
}
_FLOW: dict[str, tuple[Any, ...]] = {
    "use_flow_sigmas": (True,),
    "prediction_type": ("flow_prediction",),
}
# For each prediction type, the classes that sample it, and the supported values of each parameter.
# A parameter that is missing in a configuration does not exist in that class.
_ALLOWED: dict[str, dict[str, dict[str, tuple[Any, ...]]]] = {
    "velocity": {
        EULER: _EULER,
        HEUN: _NEVER | _OWN_SIGMAS,
        DPM: _DPM | _FLOW,
        UNIPC: _UNIPC | _FLOW,
        LCM: _NEVER | {"scale_factors": (None,)},
    },
    "epsilon": {
        DDIM: _VARIANCE_PRESERVING | {"clip_sample": (False,)},
        DPM: {"use_flow_sigmas": (False,)}
        | _DPM
        | _VARIANCE_PRESERVING
        | {
            "lambda_min_clipped": (-math.inf,),
            # With another value diffusers would truncate a prediction to three channels.
            "variance_type": (None,),
        },
        UNIPC: {"use_flow_sigmas": (False,)} | _UNIPC | _VARIANCE_PRESERVING,
    },
}


def check_scheduler(scheduler: Any, prediction_type: str) -> None:
    """Check that the runtime can sample as `scheduler` does.

    Args:
        scheduler: diffusers' scheduler of the pipeline.
        prediction_type: what the model predicts, "velocity" or "epsilon".

    Raises:
        ExportError: the class is unknown or does not sample such a model, or a parameter has an
            unsupported value.
    """
    name, config = type(scheduler).__name__, scheduler.config
    classes = _ALLOWED[prediction_type]
    if name not in classes:
        raise ExportError(
            f"The runtime has no scheduler {name} for a model that predicts {prediction_type};"
            f" use a pipeline with one of {', '.join(classes)}."
        )
    for key, allowed in classes[name].items():
        value = config.get(key, allowed[0])
        # Configurations may hold null instead of false.
        if value not in allowed and not (value is None and allowed == (False,)):
            raise ExportError(
                f"The pipeline's {name} has {key} {value!r}, and the runtime supports only"
                f" {' or '.join(map(repr, allowed))}; change scheduler/scheduler_config.json."
            )
    for key in _SHIFTS if config.get("use_dynamic_shifting") else ():
        if not isinstance(config.get(key, 0), int | float):
            raise ExportError(
                f"The pipeline's {name} has {key} {config[key]!r}, which is not a number; correct"
                " scheduler/scheduler_config.json."
            )


def scheduler_entry(scheduler: Any, max_shift: float, mu: float | None = None) -> dict[str, Any]:
    """Return the manifest's `scheduler`: the class name and its unchanged parameters.

    Infinite parameters mean "no limit" and are left out, because JSON has no infinity. A
    timestep_spacing that is only the default of the class is left out too, because `from_config` of
    another class uses that class's default. `max_shift` is the pipeline's, for a scheduler without,
    and `mu` is the pipeline's dynamic shift if that is the same for all sizes.
    """
    entry: dict[str, Any] = {"type": type(scheduler).__name__}
    for key, value in scheduler.config.items():
        if not key.startswith("_") and not (isinstance(value, float) and math.isinf(value)):
            entry[key] = value
    if "timestep_spacing" in scheduler.config.get("_use_default_values", ()):
        del entry["timestep_spacing"]
    if entry.get("use_dynamic_shifting"):
        entry.setdefault("max_shift", max_shift)
        if mu is not None:
            entry |= {"base_shift": mu, "max_shift": mu}
    return entry
