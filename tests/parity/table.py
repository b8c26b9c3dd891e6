"""Make the table of docs/parity.md from what the tests measured."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Cell:
    family: str
    layout: str
    mode: str
    dtype: str


@dataclass
class Table:
    """The errors of the cells whose test has passed, in any order."""

    errors: dict[Cell, float] = field(default_factory=dict)

    def add(self, cell: Cell, error: float) -> None:
        self.errors[cell] = error

    def markdown(self) -> str:
        """Return one row for each family, precision and layout, with one column for each mode."""
        modes = sorted({cell.mode for cell in self.errors})
        lines = [
            "# Parity with diffusers",
            "",
            "`make parity` writes this page. It compares whole runs with diffusers' own pipeline in"
            " float32, on small random models of the same classes, with the same noise and the"
            " three-branch formula. The numbers are relative L2 errors of the final latents.",
            "",
            f"| family | precision | layout | {' | '.join(modes)} |",
            "|---" * (3 + len(modes)) + "|",
        ]
        rows = {(cell.family, cell.dtype, cell.layout) for cell in self.errors}
        for family, dtype, layout in sorted(rows):
            cells = (Cell(family, layout, mode, dtype) for mode in modes)
            figures = " | ".join(
                f"{self.errors[cell]:.1e}" if cell in self.errors else "failed" for cell in cells
            )
            lines.append(f"| {family} | {dtype} | {layout} | {figures} |")
        return "\n".join(lines) + "\n"
