"""Call one function in this process, and print what it returns, as JSON.

``alone.py MODULE FUNCTION ARGUMENT ...``, where the arguments are JSON, too.
`harness.alone` starts it. Under spawn every worker imports this file again before it does
anything; under forkserver, too, unless the server has, which it does only in newer
Pythons. So it stands for the program of a user: it imports at its top the library that it
uses, and next to nothing besides, lest the time for starting a pool be that for importing
the benchmarks.
"""

from __future__ import annotations

import importlib
import json
import os
import sys

# Not from the arguments, which the fork server does not get.
for _name in os.environ.get("BENCHMARKS_IMPORT", "").split():
    importlib.import_module(_name)

if __name__ == "__main__":
    _module, _function, *_arguments = sys.argv[1:]
    _call = getattr(importlib.import_module(_module), _function)
    print(json.dumps(_call(*map(json.loads, _arguments))), flush=True)
