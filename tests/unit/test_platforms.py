"""Where mpkit does not work, importing it says so."""

from __future__ import annotations

import subprocess
import sys


def test_on_windows_the_import_says_what_is_missing() -> None:
    # multiprocessing must not take the system for Windows: it is imported before.
    code = "import sys, multiprocessing; sys.platform = 'win32'; import mpkit"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 1
    assert "ImportError: mpkit needs Linux or macOS" in ran.stderr
