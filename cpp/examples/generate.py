"""Draw one image from a bundle. Usage: generate.py BUNDLE PROMPT OUT.png [ONNXRUNTIME_LIBRARY]

generate.cpp is the same program in C++.
"""

import sys

import intaglio


def main(argv: list[str]) -> int:
    if len(argv) < 4:
        return intaglio.UsageError.exit_code
    try:
        onnxruntime = argv[4] if len(argv) > 4 else None
        pipeline = intaglio.Pipeline.open(argv[1], onnxruntime=onnxruntime)

        def on_step(step: intaglio.Step) -> bool:
            print(f"step {step.step + 1} of {step.steps}, sigma {step.sigma:.4f}")
            return True  # to go on; False stops the run

        result = pipeline.generate(argv[2], seeds=7, steps=4, dg_scale=0.5, on_step=on_step)
        result.save(argv[3])
    except intaglio.Error as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
