"""Print the requirements of the build, of the package and of its extras.

Providers for NVIDIA's GPUs are left out: they take 2 GB, and onnxruntime-gpu would replace parts of
onnxruntime. `make test-extras` installs each of them into an environment of its own.

Usage: requirements.py pyproject.toml
"""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path(sys.argv[1]).read_text())
extras = project["project"]["optional-dependencies"].values()
requirements = {
    *project["build-system"]["requires"],
    *project["project"]["dependencies"],
    *(requirement for extra in extras for requirement in extra),
}
left_out = ("intaglio", "onnxruntime-gpu", "onnxruntime-ep-nv")
print("\n".join(sorted(r for r in requirements if not r.startswith(left_out))))
