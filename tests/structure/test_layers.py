"""Who may include and import whom (docs/architecture.md)."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLATFORM = "platform"  # what differs between operating systems
LAYERS: dict[str, set[str]] = {
    PLATFORM: set(),
    "core": {PLATFORM},
    "bundle": {PLATFORM, "core", "sampling", "guidance"},
    "backend": {PLATFORM, "core", "bundle"},
    "text": {"core"},
    "sampling": {"core"},
    "guidance": {"core", "sampling"},
    "image": {"core"},
}
LAYERS["pipeline"] = set(LAYERS)
# The public header of each layer, by its name without the folder and ending.
HEADERS = {
    "error": "core", "role": "core", "tensor": "core", "rng": "core", "file": "core",
    "cfg_rule": "core", "bundle": "bundle", "compiled_cache": "backend",
    "backend": "backend", "tokenizer": "text", "sampling": "sampling", "guidance": "guidance",
    "image": "image", "pipeline": "pipeline", "options": "pipeline", "embedding": "pipeline",
    "batch": "pipeline", "generate_options": "pipeline", "validate": "pipeline",
    "memory_plan": "pipeline",
}  # fmt: skip
# Packages of Python's front end that work on diffusers models and not on bundles
# (docs/decisions/0010, 0020).
TORCH_SIDE = {"analysis", "diffusers", "torch_reference"}
# The headers of POSIX.1-2017 that are not those of C, and of Linux and Windows.
SYSTEMS = re.compile(
    r"(aio|cpio|dirent|dlfcn|fcntl|fmtmsg|fnmatch|ftw|glob|grp|iconv|langinfo|libgen|monetary|mqueue"
    r"|ndbm|netdb|nl_types|poll|pthread|pwd|regex|sched|search|semaphore|spawn|strings|stropts"
    r"|syslog|tar|termios|trace|ulimit|unistd|utime|utmpx|wordexp|windows|io|direct|psapi|shellapi"
    r"|winsock2)\.h|(arpa|asm|linux|net|netinet|sys)/.*"
)
VENDORS = re.compile(r"onnxruntime|NvInfer|cuda", re.IGNORECASE)


def includes(path: Path) -> list[str]:
    return re.findall(r'^#include ["<]([^">]+)[">]', path.read_text(), re.MULTILINE)


def sources(*folders: str) -> list[Path]:
    return [p for f in folders for p in (ROOT / f).rglob("*") if p.suffix in {".cpp", ".cu", ".h"}]


def layer_of(include: str) -> str | None:
    """The layer that an include of the project belongs to; None for other libraries."""
    folder, _, name = include.rpartition("/")
    if folder == "intaglio":
        return HEADERS.get(name.removesuffix(".h"), name)
    return folder if folder in LAYERS else None


def test_the_scan_sees_every_layer() -> None:
    assert {p.parent.name for p in sources("cpp/src")} >= set(LAYERS)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_includes_lower_layers_only(layer: str) -> None:
    allowed = LAYERS[layer] | {layer}
    wrong = [
        f"{path.relative_to(ROOT)} includes {include}"
        for path in sources(f"cpp/src/{layer}")
        for include in includes(path)
        if (found := layer_of(include)) and found not in allowed
    ]
    assert not wrong


def test_public_headers_keep_the_direction() -> None:
    wrong = [
        f"{name}.h includes {include}"
        for name, layer in HEADERS.items()
        for include in includes(ROOT / f"cpp/include/intaglio/{name}.h")
        if (found := layer_of(include)) and found not in LAYERS[layer] | {layer}
    ]
    assert not wrong


def test_public_headers_show_no_third_party() -> None:
    for path in sources("cpp/include"):
        for include in includes(path):
            assert include.startswith("intaglio/") or ("/" not in include and "." not in include), (
                path
            )


def test_no_header_includes_itself_by_way_of_others() -> None:
    roots = [ROOT / folder for folder in ("cpp/include", "cpp/src", "cpp", "python/bindings")]

    def found(include: str) -> list[Path]:
        return [root / include for root in roots if (root / include).is_file()][:1]

    headers = [path for path in sources("cpp", "python/bindings") if path.suffix == ".h"]
    graph = {path: [p for i in includes(path) for p in found(i)] for path in headers}
    assert sum(map(len, graph.values())) > 100  # the includes are found
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_vendor_headers_stay_in_backend_and_ops() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} includes {include}"
        for path in sources("cpp", "python/bindings", "tests/cpp")
        if path.relative_to(ROOT).parts[1:3] != ("src", "backend") and path.parent.name != "ops"
        for include in includes(path)
        if VENDORS.search(include) and not (ROOT / "cpp" / "src" / include).exists()
    ]
    assert not wrong


def test_systems_stay_in_the_platform_folder() -> None:
    outside = [
        path
        for path in sources("cpp", "python/bindings", "tests/cpp")
        if path.parent.name not in {"posix", "windows"}
    ]
    wrong = [
        f"{path.relative_to(ROOT)} includes {include}"
        for path in outside
        for include in includes(path)
        if SYSTEMS.fullmatch(include)
    ]
    wrong += [
        f"{path.relative_to(ROOT)}: {line}"
        for path in outside
        for line in re.findall(
            r".*(?:\b(?:_WIN32|__linux__|__unix__|sigaction|setenv|SIGXFSZ)\b).*", path.read_text()
        )
    ]
    assert not wrong


def test_each_concern_of_the_platform_has_both_systems() -> None:
    folder = ROOT / "cpp/src/platform"
    concerns = {path.stem for path in folder.glob("*.h")}
    assert len(concerns) >= 5
    for system in ("posix", "windows"):
        assert {path.stem for path in (folder / system).glob("*.cpp")} == concerns


def test_command_bindings_and_examples_see_public_headers_only() -> None:
    for path in sources("cpp/cli", "cpp/examples", "python/bindings"):
        for include in includes(path):
            public = layer_of(include) is None or include.startswith("intaglio/")
            assert public or (layer_of(include) == PLATFORM and "cli" in path.parts), (
                path,
                include,
            )


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_export_and_runtime_do_not_import_each_other() -> None:
    for path in (ROOT / "export").rglob("*.py"):
        assert "intaglio" not in imports(path), path
    package = ROOT / "python/intaglio"
    for path in package.rglob("*.py"):
        if path.relative_to(package).parts[0] not in TORCH_SIDE:
            assert not imports(path) & {"intaglio_export", "torch", "diffusers"}, path


def module_imports() -> dict[str, set[str]]:
    """The modules of this repository that each of its modules imports, anywhere in its code."""
    roots = {"intaglio": "python", "intaglio_export": "export", "benchmarks": ".", "models": "."}
    names = {}
    for package, root in roots.items():
        for path in (ROOT / root / package).rglob("*.py"):
            parts = path.relative_to(ROOT / root).with_suffix("").parts
            names[".".join(parts).removesuffix(".__init__")] = path
    found: dict[str, set[str]] = {}
    for name, path in names.items():
        imported: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                members = {f"{node.module}.{alias.name}" for alias in node.names}
                imported |= {m if m in names else node.module for m in members}
        # A module may use its own package's name, as in `from intaglio import _core`.
        found[name] = {m for m in imported if m in names and not name.startswith(f"{m}.")} - {name}
    return found


def test_there_is_no_import_circle() -> None:
    graph = module_imports()
    assert sum(map(len, graph.values())) > 300  # the imports are found
    TopologicalSorter(graph).prepare()  # raises CycleError
