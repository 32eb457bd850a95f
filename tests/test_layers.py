"""Modules are layers: each imports only from those below it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import mpkit

pytestmark = pytest.mark.any_python

SOURCE = Path(mpkit.__file__).parent

#: Lowest first. A module may import only from modules before it in this list.
LAYERS = [
    "_errors",
    "_platform",
    "_platform.descriptors",
    "_platform.memory",
    "_platform.files",
    "_platform.processes",
    "_platform.cores",
    "_platform.mains",
    "_platform.stdlib",
    "_platform.threads",
    "_platform.clocks",
    "_platform.future",
    "_platform.cstdio",
    "_platform.debuggers",
    "_reach",
    "_fork",
    "_runtime",
    "_presence",
    "_wait",
    "_anyof",
    "_signal",
    "_bells",
    "_slotfile",
    "_queue",
    "_slots",
    "_sharing",
    "_waiter",
    "_decorated",
    "_semaphore",
    "_limit",
    "_listing",
    "_frames",
    "_culprit",
    "_mainfile",
    "_reader",
    "_byvalue",
    "_pickling",
    "_link",
    "_streamlink",
    "_links",
    "_segment",
    "_parcel",
    "_codec",
    "_closing",
    "_end",
    "_line",
    "_messages",
    "_port",
    "_channel",
    "_describe",
    "_outcome",
    "_call",
    "_lifeline",
    "_child",
    "_process",
    "_worker",
    "_worker.wire",
    "_worker.slices",
    "_worker.chunks",
    "_worker.packing",
    "_worker.journal",
    "_worker.lent",
    "_worker.packed",
    "_worker.shared",
    "_worker.setup",
    "_worker.logs",
    "_worker.capture",
    "_worker.aside",
    "_worker.worker",
    "_task",
    "_task.context",
    "_task.options",
    "_task.seeds",
    "_task.carriage",
    "_task.task",
    "_task.asked",
    "_watch",
    "_watch.stats",
    "_watch.sketch",
    "_watch.picture",
    "_watch.trace",
    "_watch.timeline",
    "_watch.report",
    "_watch.recorder",
    "_engine",
    "_engine.actions",
    "_engine.queues",
    "_engine.reserve",
    "_engine.starts",
    "_engine.schedule",
    "_engine.settings",
    "_engine.listener",
    "_engine.audience",
    "_engine.feeds",
    "_engine.ledger",
    "_engine.inbox",
    "_engine.crew",
    "_engine.roster",
    "_engine.shortcut",
    "_engine.warden",
    "_engine.paces",
    "_engine.verdict",
    "_engine.dispatch",
    "_engine.mailbox",
    "_engine.intake",
    "_engine.supervisor",
    "_engine.backend",
    "_engine.engine",
    "_pool",
    "_pool.progress",
    "_pool.async_input",
    "_pool.lookahead",
    "_pool.window",
    "_pool.results",
    "_pool.on_executor",
    "_pool.inline",
    "_pool.lazy",
    "_pool.gather",
    "_pool.caller",
    "_pool.executor",
    "_pool.calls",
    "_pool.pool",
    "_selftest",
    "",
    "_doctor",
    "protocols",
    "joblib",
    "dask._client",
    "dask._loop",
    "dask._site",
    "dask._leases",
    "dask._limit",
    "dask._signal",
    "dask._arrival",
    "dask._broker",
    "dask._node",
    "dask._message",
    "dask._state",
    "dask._link",
    "dask._port",
    "dask._channel",
    "dask._job",
    "dask._claims",
    "dask._packet",
    "dask._loads",
    "dask._plan",
    "dask._cluster",
    "dask._lanes",
    "dask._ledger",
    "dask._settling",
    "dask._engine",
    "dask._pool",
    "dask",
    "__main__",
]


def module_name(path: Path) -> str:
    """Return a module's name within mpkit; the package itself is the empty one."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports_of(path: Path) -> set[str]:
    """Return what a module imports from mpkit, wherever the import stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mpkit":
            base = (node.module or "").removeprefix("mpkit").removeprefix(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".removeprefix(".")
                found.add(inner if inner in LAYERS else base)
    return found


MODULES = {module_name(path): path for path in SOURCE.rglob("*.py")}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_only_from_those_below_it(module: str) -> None:
    below = set(LAYERS[: LAYERS.index(module)])
    assert imports_of(MODULES[module]) <= below


def test_every_module_has_a_layer() -> None:
    assert set(MODULES) == set(LAYERS)


def test_the_map_in_the_package_names_every_module_of_the_first_floor() -> None:
    text = (SOURCE / "__init__.py").read_text(encoding="utf-8")
    for module in LAYERS:
        if module and "." not in module:
            assert f"#   {module}" in text or f" {module}" in text, f"{module} is not on the map"


def said_of(package: str) -> str:
    """Return the rows of docs/architecture.md about a package, and the map in itself if it has one."""
    page = Path(__file__).parent.parent / "docs/architecture.md"
    begin = f"| `{package}/`" if package else "|"
    rows = [
        line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith(begin)
    ]
    own = MODULES[package].read_text(encoding="utf-8").splitlines() if package else []
    return "\n".join(rows + [line for line in own if line.startswith("#")])


@pytest.mark.parametrize("module", [module for module in LAYERS if module])
def test_the_page_about_the_architecture_names_every_module(module: str) -> None:
    package, _, name = module.rpartition(".")
    assert re.search(rf"`{name}/?`|^#.*\W{name}\b", said_of(package), re.MULTILINE), (
        f"docs/architecture.md has no {module}: add it to the row of what it belongs to"
    )
