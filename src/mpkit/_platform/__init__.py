"""What differs by operating system or by version of Python, and nothing else.

Every other module asks here for a kernel feature and lives with ``None`` where the
system has none. ``MPKIT_PORTABLE=1`` in the environment switches the Linux-only ones
off, so that what macOS would run can be tested on Linux.
"""

from __future__ import annotations

import os
import sys
from typing import Final

PORTABLE: Final = os.environ.get("MPKIT_PORTABLE") == "1"
LINUX: Final = sys.platform == "linux" and not PORTABLE
DARWIN: Final = sys.platform == "darwin"
