"""Print the requirements of the build, of the package and of all its extras.

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
print("\n".join(sorted(r for r in requirements if not r.startswith("intaglio"))))
