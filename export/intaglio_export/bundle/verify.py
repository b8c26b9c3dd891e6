"""Compare the written graphs, run by ONNX Runtime, with the torch modules on random inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnxruntime as ort
import torch

from intaglio_export.adapters.packing import positions
from intaglio_export.errors import ExportError
from intaglio_export.graph_specs import ExportUnit, GraphSpec, TensorSpec
from intaglio_export.options import QDQ

# The largest relative error. Low-precision matmuls may round in other places than torch's.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 4e-2}
# The same for quantised products. The measured error is written to the manifest.
QUANTIZED_TOLERANCE = {
    "int8": 0.05,
    "int8-dynamic": 0.15,
    "int4": 0.4,
    "int8-qdq": 0.15,
    "fp8": 0.4,
    "fp4": 0.8,
}
# The largest errors that Q/DQ may have on the model's own runs, of any row: of the forward, and of
# each difference of branches. FP8 with one scale a tensor, without differences, has twice as much.
BUDGET, DIFFERENCE_BUDGET = 0.15, 0.25
# Values of `keep`: full suppression, partial suppression, none.
KEEP_LEVELS = (0.0, 0.3, 1.0)


@dataclass(frozen=True)
class Case:
    """Sizes of the named axes that are tried, in units of their multiples.

    With `branched`, rows are those of D_0, D_c and D_m, as in a run: those of an image share latent
    and timestep, and D_m alone is suppressed.
    """

    rows: int
    base_rows: int
    height: int
    width: int
    text_length: int
    branched: bool = False

    def anchors(self) -> torch.Tensor:
        """Return for each base row the row of D_c of its image. The first half is D_0's."""
        row, half = torch.arange(self.base_rows), self.base_rows // 2
        return torch.where(row < half, row + half, row)

    def sources(self, tokens: int, generator: torch.Generator) -> torch.Tensor:
        """Return 1 + the token whose channels each token gets, or 0 for the reference.

        With `branched` it is the reference, as in DG; else one of all tokens, for half of them.
        """
        shape = (self.rows, tokens)
        index = torch.randint(1, self.base_rows * tokens + 1, shape, generator=generator)
        given = torch.rand(shape, generator=generator) < (0.0 if self.branched else 0.5)
        return torch.where(given, index, 0)

    def branches(self) -> torch.Tensor:
        """Return the row that each row continues."""
        row = torch.arange(self.rows)
        if not self.branched:
            return row % self.base_rows
        half = self.base_rows // 2
        degraded = half + (row - self.base_rows) % (self.base_rows - half)
        return torch.where(row < self.base_rows, row, degraded)


CASES = (
    Case(rows=1, base_rows=1, height=4, width=4, text_length=3),
    Case(rows=3, base_rows=1, height=3, width=5, text_length=7),
    Case(rows=4, base_rows=2, height=6, width=4, text_length=2),
    Case(rows=9, base_rows=6, height=5, width=7, text_length=11),
)


@dataclass(frozen=True)
class Reference:
    """The inputs of a graph in order, and torch's outputs for them. They are random, or those of
    the model's `own` runs. `read` is as in the unit."""

    case: Case
    own: bool
    inputs: Sequence[torch.Tensor]
    outputs: Sequence[torch.Tensor]
    read: torch.Tensor | None = None

    def counted(self, output: torch.Tensor) -> torch.Tensor:
        """Return `output` with zeros for tokens that are not read."""
        if self.read is None or output.ndim != 3:
            return output
        return output.where(self.read[..., None] > 0, torch.zeros(()))


@dataclass(frozen=True)
class Errors:
    """The largest relative errors of a row: of the outputs, and of D_c - D_0 (`unconditional`) and
    D_c - D_m (`degraded`) where the inputs were `branched`.

    They are those on the model's own runs, if the unit has any.
    """

    outputs: float
    differences: dict[str, float]


def open_session(path: Path, dtype: torch.dtype = torch.float32) -> ort.InferenceSession:
    """Open a CPU session that maps its weights instead of copying them, to save memory.

    `dtype` is the type of the graph's matmuls. Few CPU kernels take low-precision weights, so ONNX
    Runtime's optimizer would keep float32 copies of all of them. Without the optimizer a weight is
    cast when its matmul runs, and the copy is freed.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_prepacking", "1")
    # Spinning threads would take the cores from torch, which runs in turn with ONNX Runtime.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if dtype != torch.float32:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.enable_cpu_mem_arena = False
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@torch.no_grad()
def reference(unit: ExportUnit, seed: int = 0) -> list[Reference]:
    """Return random inputs for each case and those of the model's own runs, or only those that the
    unit is verified on, and the outputs of the torch module for them."""
    generator = torch.Generator().manual_seed(seed)
    cases = [replace(case, branched=_is_branched(unit.spec)) for case in CASES]
    given: list[tuple[Case, Sequence[torch.Tensor]]]
    if unit.verified_on:
        given = [(cases[0], unit.verified_on)]
    else:
        given = [(case, _case_inputs(unit, case, generator)) for case in cases]
    given += [(_case_of(run), [run[spec.role] for spec in unit.spec.inputs]) for run in unit.runs]
    references: list[Reference] = []
    for case, inputs in given:
        outputs = unit.module(*inputs)
        outputs = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
        if not all(output.isfinite().all() for output in outputs):
            why = "its weights are damaged; download it again."
            if unit.spec.dtype != torch.float32:
                why = "it overflows, or its weights are damaged; try --dtype float32."
            raise ExportError(f"The part for {unit.spec.path} gives NaN or infinity itself: {why}")
        own = len(references) >= len(CASES)
        references.append(Reference(case, own, inputs, outputs, unit.read))
    return references


def _case_of(run: Mapping[str, torch.Tensor]) -> Case:
    """Return the rows of a forward of the model's own runs. Only random inputs need sizes."""
    return Case(len(run["branch"]), len(run["anchor"]), 0, 0, 0, branched=True)


def verify(spec: GraphSpec, folder: Path, references: Sequence[Reference]) -> Errors:
    """Return the largest relative errors ||onnx - torch|| / ||torch|| of a row in all cases.

    This covers the graph and its other forms. Those that compute in low precision are not run,
    because the CPU does not run them.

    Raises:
        ExportError: it exceeds the tolerance of its precision, or a graph does not run.
    """
    paths = [spec.path] if spec.dtype == torch.float32 and not spec.simulated else []
    paths += [spec.simulated] if spec.simulated else []
    paths += [spec.cpu] if spec.cpu else []
    paths += [spec.decomposed] if spec.decomposed and spec.dtype != torch.float16 else []
    found = [_verify(path, spec, folder, references) for path in paths]
    errors = Errors(
        max(errors.outputs for errors in found), _largest(errors.differences for errors in found)
    )
    if spec.quantize in QDQ:
        _check_budget(spec.quantize, errors)
    return errors


def _check_budget(scheme: str, errors: Errors) -> None:
    """Check the errors of Q/DQ on the model's own runs.

    Raises:
        ExportError: one exceeds the budget.
    """
    unconditional, degraded = (errors.differences[name] for name in ("unconditional", "degraded"))
    if errors.outputs <= BUDGET and max(unconditional, degraded) <= DIFFERENCE_BUDGET:
        return
    ways = {
        "fp4": "with --quantize fp8, --quantize int8-qdq or ",
        "fp8": "with --quantize int8-qdq or ",
    }
    raise ExportError(
        f"--quantize {scheme} changes this model too much: on its own runs the forward is off by"
        f" up to {errors.outputs:.1%}, D_c - D_0 by {unconditional:.1%} and D_c - D_m by"
        f" {degraded:.1%}, where {BUDGET:.0%} of the forward and {DIFFERENCE_BUDGET:.0%} of each"
        f" difference are allowed; export {ways.get(scheme, '')}without --quantize."
    )


def _verify(path: str, spec: GraphSpec, folder: Path, references: Sequence[Reference]) -> Errors:
    try:
        session = open_session(folder / path, spec.dtype)
    except Exception as error:  # ONNX Runtime raises errors of several classes
        raise ExportError(f"ONNX Runtime cannot open {path}: {error}") from error
    found: list[Errors] = []
    for case in references:
        feeds = {s.name: x.numpy() for s, x in zip(spec.inputs, case.inputs, strict=True)}
        try:
            got = session.run([output.name for output in spec.outputs], feeds)
        except Exception as error:
            raise ExportError(f"ONNX Runtime cannot run {path}: {error}") from error
        pairs = [(torch.from_numpy(g), e) for g, e in zip(got, case.outputs, strict=True)]
        branched = case.case.branched
        differences = _difference_errors(*pairs[0], case.case) if branched else {}
        worst = max(_error(case.counted(g), case.counted(e)) for g, e in pairs)
        found.append(Errors(worst, differences))
    worst = max(errors.outputs for errors in found)
    limit = QUANTIZED_TOLERANCE[spec.quantize] if spec.quantize else TOLERANCE[spec.dtype]
    if worst > limit:
        raise ExportError(
            f"The graph {path} differs from the torch model by {worst:.2e} (relative),"
            f" more than {limit:.0e}; nothing was written."
        )
    own = [errors for errors, case in zip(found, references, strict=True) if case.own] or found
    return Errors(
        max(errors.outputs for errors in own), _largest(errors.differences for errors in own)
    )


def _is_branched(spec: GraphSpec) -> bool:
    """Return whether quantised weights may change differences of branches more than branches."""
    return spec.quantize is not None and any(tensor.role == "branch" for tensor in spec.inputs)


def _largest(errors: Iterable[dict[str, float]]) -> dict[str, float]:
    largest: dict[str, float] = {}
    for found in errors:
        largest |= {name: max(error, largest.get(name, 0.0)) for name, error in found.items()}
    return largest


def _difference_errors(got: torch.Tensor, expected: torch.Tensor, case: Case) -> dict[str, float]:
    """Return the largest relative errors of D_c - D_0 and of D_c - D_m, by the other branch."""
    row, anchor = torch.arange(case.rows), case.anchors()[case.branches()]
    degraded = row >= case.base_rows
    kinds = {"unconditional": ~degraded & (anchor != row), "degraded": degraded}
    return {
        branch: _error((got[anchor] - got)[rows], (expected[anchor] - expected)[rows])
        for branch, rows in kinds.items()
        if rows.any()
    }


def _error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest relative error of a row, infinity for other shapes or NaN."""
    if got.shape != expected.shape:
        return float("inf")
    difference = (got.double() - expected.double()).flatten(1).norm(dim=1)
    size = expected.double().flatten(1).norm(dim=1)
    error = (difference / size.clamp_min(1e-12)).max().item()
    return error if error == error else float("inf")


def _case_inputs(unit: ExportUnit, case: Case, generator: torch.Generator) -> list[torch.Tensor]:
    """Return random inputs for `case`.

    Inputs that another unit produces are computed by that unit from random inputs.
    """
    computed: dict[str, torch.Tensor] = {}
    if unit.fed_by is not None:
        rows = _sizes(unit, case)[str(unit.spec.inputs[0].axes[0])]
        feeding = replace(case, rows=rows, base_rows=rows)
        outputs = unit.fed_by.module(*_case_inputs(unit.fed_by, feeding, generator))
        roles = [spec.role for spec in unit.fed_by.spec.outputs]
        computed = dict(zip(roles, outputs, strict=True))
    sizes = _sizes(unit, case)
    return [
        computed[spec.role] if spec.role in computed else _input(unit, spec, sizes, case, generator)
        for spec in unit.spec.inputs
    ]


def _input(
    unit: ExportUnit,
    spec: TensorSpec,
    sizes: dict[str, int],
    case: Case,
    generator: torch.Generator,
) -> torch.Tensor:
    """Return random values in the range that the input takes."""
    value = ExportUnit.random_input(spec, sizes, generator)
    if spec.role == "timestep":
        value = torch.rand(value.shape, generator=generator) * 1000
    elif spec.role == "mask":
        value = (torch.rand(value.shape, generator=generator) < 0.1).float()
        if case.branched and unit.spec.exact:
            value = torch.zeros_like(value).index_fill(0, torch.tensor(unit.spec.exact), 1.0)
    elif spec.role == "branch":
        value = case.branches()
    elif spec.role == "anchor":
        value = case.anchors()
    elif spec.role == "keep":
        levels = torch.tensor(KEEP_LEVELS)
        value = levels[torch.randint(len(levels), value.shape, generator=generator)]
        if case.branched:
            value[: case.base_rows] = 1.0
    elif spec.role == "source":
        value = case.sources(value.shape[1], generator)
    elif spec.role in ("token_ids", "class"):
        value = torch.randint(unit.vocabulary, value.shape, generator=generator)
    elif spec.role == "text_mask":
        value = (torch.rand(value.shape, generator=generator) < 0.7).float()
        value[:, 0] = 1.0  # a prompt has at least one token
    elif spec.role == "position":
        value = positions(case.height, case.width)
    elif spec.role == "guidance":
        value = 1 + 4 * torch.rand(value.shape, generator=generator)
    if case.branched and spec.role in ("latent", "timestep", "guidance", "references"):
        value = value[case.anchors()]
    return value


def _sizes(unit: ExportUnit, case: Case) -> dict[str, int]:
    def side(axis: str, units: int) -> int:
        multiple = unit.multiples.get(axis, 1)
        return multiple * min(units, unit.maxima.get(axis, units * multiple) // multiple)

    height, width = side("latent_height", case.height), side("latent_width", case.width)
    patch_y, patch_x = unit.multiples.get("latent_height", 1), unit.multiples.get("latent_width", 1)
    return {
        "rows": case.rows,
        "base_rows": case.base_rows,
        "conditions": case.rows,
        "prompts": case.base_rows,
        "images": case.base_rows if case.base_rows < 3 else 2,
        "text_length": case.text_length,
        "latent_height": height,
        "latent_width": width,
        "tokens": (height // patch_y) * (width // patch_x),
        "references": case.height - 3,  # in one of the cases none
        "image_height": side("image_height", case.height),
        "image_width": side("image_width", case.width),
    }
