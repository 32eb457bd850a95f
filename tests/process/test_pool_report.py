"""The page of a report: text stays text, its size has bounds, and a real browser shows it."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest

import mpkit
from mpkit._task.options import Options
from mpkit._task.task import Task
from mpkit._watch.recorder import Recorder
from tests import poolwork
from tests.support import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path

#: What a browser may be called here. The tests that need one are skipped where there is none.
BROWSERS = [
    "chromium-headless-shell",
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
]

#: Names that would be more than text if they were put into a page as they are.
EVIL = ["</script><script>document.title = 'taken'</script>", "<img src=x onerror=alert(1)>", "@@DATA@@", "\ud800 &amp; \"'"]  # fmt: skip


class Page(HTMLParser):
    """The elements of a page, the texts of its cells, and its data."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.cells: list[str] = []
        self.data: Any = None
        self._inside: str | None = None
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self._inside = "data" if ("id", "data") in attrs else tag
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside == "td":
            self.cells[-1] += data
        if self._inside == "data":
            self.data = json.loads(data)


def test_names_are_text_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "run.html"
    with mpkit.TaskPool(1) as pool, pool.report(path):
        for name in EVIL:
            pool.options(name=name, label=name).apply(poolwork.square, (2,))
            with pytest.raises(ValueError):
                pool.options(name=name).apply(poolwork.picky, (-1,))
    page = Page(path)
    assert page.elements.count("script") == 2
    assert "img" not in page.elements
    shown = [name.replace("\ud800", "?") for name in EVIL]
    assert page.data["functions"] == shown
    assert set(shown) <= set(page.cells)
    assert sum(len(lane["boxes"]) for lane in page.data["lanes"]) == 8


def test_a_page_needs_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "run.html"
    with mpkit.TaskPool(1) as pool, pool.report(path):
        pass
    text = path.read_text(encoding="utf-8")
    assert len(text) < 50_000
    assert "default-src 'none'" in text
    assert not re.search(r"https?:|//[a-z]|\ssrc=|\shref=|url\(|@import|import\(", text)


def test_the_slowest_are_those_that_took_longest(tmp_path: Path) -> None:
    path = tmp_path / "run.html"
    recorder = recorder_of_one()
    with recorder.report(path):
        for number in range(1000):
            took = (number * 7919 % 1000) / 10
            name = f"took {took}"
            recorder.tasks_ended(1, [(task(name), 1000.0, 1000.0 + took, False)])
    cells = Page(path).cells
    shown = [cell for cell in cells if re.search(r"task \d+ \(took", cell)]
    assert [float(cell.split()[3][:-1]) for cell in shown] == [n / 10 for n in range(999, 899, -1)]


@pytest.mark.any_python
def test_millions_of_tasks_make_no_larger_page_than_thousands(tmp_path: Path) -> None:
    path = tmp_path / "run.html"
    recorder = recorder_of_one()
    report = recorder.report(path)
    began = time.monotonic()
    names = [f"function {n}" for n in range(500)]
    for number in range(2000):
        spans = [
            (task(names[n % 500]), began + n / 1e4, began + (n + 0.5) / 1e4, n % 97 == 0)
            for n in range(100 * number, 100 * number + 100)
        ]
        recorder.tasks_ended(1, spans, [(100, 200)] * 100)
    assert sum(map(len, report._timeline.lanes.values())) <= 10_000
    report.close()
    assert path.stat().st_size < 1_500_000
    page = Page(path)
    assert sum(box[3] for lane in page.data["lanes"] for box in lane["boxes"]) == 200_000
    text = path.read_text(encoding="utf-8")
    assert "These are 200,000 runs of tasks" in text
    assert re.search(r"1,\d{3} more are not shown", text)
    assert "20 MB" in text


def recorder_of_one() -> Recorder:
    recorder = Recorder()
    recorder.worker_started(1)
    return recorder


def task(name: str) -> Task[Any]:
    made: Task[Any] = Task(name, Options())
    made.since = 0.0
    return made


# in a browser

_PROBE_FIRST = """<script>
var problems = [];
addEventListener("error", event => problems.push(String(event.message)));
addEventListener("securitypolicyviolation", event => problems.push("refused " + event.violatedDirective));
</script>"""

# Run behind the page's own script: uses the page as a person does, and tells what there is to see.
_PROBE_LAST = """<script>
(() => {
  const canvas = document.getElementById("lanes"), place = canvas.getBoundingClientRect();
  const pixels = () => {
    const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data, found = {};
    for (let n = 0; n < data.length; n += 4) { const key = data.slice(n, n + 3).join(); found[key] = (found[key] || 0) + 1; }
    return found;
  };
  const hover = (x, y) => {
    canvas.dispatchEvent(new PointerEvent("pointermove", { clientX: place.left + x, clientY: place.top + y }));
    return document.getElementById("tip").textContent;
  };
  const key = name => canvas.dispatchEvent(new KeyboardEvent("keydown", { key: name, cancelable: true }));
  const drawn = () => Number(document.body.dataset.drawn);
  const colour = (element, what) => getComputedStyle(element)[what];
  const facts = { drawn: drawn(), pixels: pixels() };
  facts.tips = [];
  for (let y = 2; y < place.height; y += 8)
    for (let x = 77; x < place.width; x += 2) {
      const tip = hover(x, y);
      if (tip && !facts.tips.includes(tip)) facts.tips.push(tip);
    }
  for (let n = 0; n < 12; n++) key("+");
  facts.zoomed = drawn();
  document.getElementById("all").click();
  facts.again = drawn();
  facts.title = document.title;
  facts.scripts = document.scripts.length;
  facts.images = document.images.length;
  facts.rows = [...document.querySelectorAll("table")].map(table => table.tBodies[0].rows.length);
  facts.legend = document.getElementById("legend").innerText;
  facts.colours = [...document.querySelectorAll("body, p, th, td, .bad b")].map(element => {
    let behind = element;
    while (behind && /, 0\\)$/.test(colour(behind, "backgroundColor"))) behind = behind.parentElement;
    return [colour(element, "color"), colour(behind, "backgroundColor")];
  });
  facts.sideways = document.documentElement.scrollWidth - innerWidth;
  facts.problems = problems;
  const told = document.createElement("pre");
  told.id = "facts";
  told.textContent = JSON.stringify(facts);
  document.body.append(told);
})();
</script>"""


def browser() -> str:
    named = os.environ.get("MPKIT_BROWSER")
    found = named or next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("there is no browser here (MPKIT_BROWSER may name one that is like Chromium)")
    return found


def show(path: Path, *, dark: bool = False, width: int = 1200) -> dict[str, Any]:
    """Open a page in a browser without a screen; return what there is to see."""
    text = path.read_text(encoding="utf-8")
    probed = path.with_suffix(".probed.html")
    probed.write_text(
        text.replace("<head>", f"<head>{_PROBE_FIRST}").replace("</body>", f"{_PROBE_LAST}</body>"),
        encoding="utf-8",
    )
    command = [
        browser(),
        "--headless",
        "--no-sandbox",  # it may be root who runs the tests
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--user-data-dir={path.parent / 'profile'}",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        f"--window-size={width},900",
        "--dump-dom",
        probed.as_uri(),
    ]
    ran = subprocess.run(command, capture_output=True, timeout=4 * PATIENCE)
    found = re.search(r'<pre id="facts">(.*?)</pre>', ran.stdout.decode(), re.DOTALL)
    assert found, (ran.stdout.decode()[-2000:], ran.stderr.decode()[-2000:])
    facts: dict[str, Any] = json.loads(html.unescape(found[1]))
    return facts


def luminance(colour: str) -> float:
    channels = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(ink: str, paper: str) -> float:
    lighter, darker = sorted((luminance(ink), luminance(paper)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """Return the report of a pool in which all kinds of things have happened."""
    path = tmp_path / "run.html"
    with mpkit.TaskPool(2, context="fork") as pool, pool.report(path):
        pool.map(poolwork.square, range(30), 1)
        for name in EVIL:
            pool.options(name=name).apply(poolwork.square, (2,))
        with pytest.raises(ValueError):
            pool.apply(poolwork.picky, (-1,))
        with pytest.raises(mpkit.WorkerDied):
            pool.options(retries=1).apply(poolwork.die, ("SIGKILL",))
    return path


@pytest.mark.any_python
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_browser_draws_all_of_it(page: Path, dark: bool) -> None:
    facts = show(page, dark=dark)
    assert facts["problems"] == []
    assert facts["drawn"] == facts["again"] == 30 + len(EVIL) + 1 + 2
    assert facts["zoomed"] < facts["drawn"]
    assert facts["title"].startswith("mpkit report, ")
    assert (facts["scripts"], facts["images"]) == (4, 0), "ours, and those of this test"
    functions, slowest, wrong, workers = facts["rows"]
    assert (functions, slowest) == (3 + len(EVIL), 37)
    assert workers >= 3
    assert wrong == 1 + 2 + 2 + 1, "a failure; two deaths with their tasks; a retry"
    assert EVIL[0] in facts["legend"]
    tips = "\n".join(facts["tips"])
    assert "square" in tips
    assert re.search(r"[\d.]+ (µs|ms|s) to [\d.]+ (µs|ms|s), busy for ", tips)
    # Paper, lanes, lines, text, tasks of several functions, and red.
    assert len([count for count in facts["pixels"].values() if count > 20]) >= 5
    assert facts["sideways"] <= 0
    _, paper = facts["colours"][0]
    assert (luminance(paper) < 0.1) == dark
    assert all(contrast(*pair) >= 4.5 for pair in facts["colours"]), "legible to most"


@pytest.mark.any_python
def test_a_narrow_window_has_room_for_it(page: Path) -> None:
    facts = show(page, width=500)
    assert facts["problems"] == []
    assert facts["sideways"] <= 0


def test_a_report_of_nothing_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "run.html"
    with mpkit.TaskPool(1, context="fork") as pool, pool.report(path):
        pass
    facts = show(path)
    assert facts["problems"] == []
    assert facts["drawn"] == 0
    assert facts["rows"] == [1], "of workers"
