"""What is one limit, and what is another: the identity of a call site.

Most of this needs programs of their own, since it is about how a program is started.
They say what they found in lines like ``child <key> <whether it shares the slot>``.
"""

from __future__ import annotations

import importlib
import os
import pathlib
import secrets
import subprocess
import sys
import textwrap
import threading
import zipapp
from typing import TYPE_CHECKING, Any

import pytest

import mpkit
from mpkit._limit import Semaphore, limit
from tests.support import PATIENCE, Spawn, finish, python

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from multiprocessing.context import BaseContext
    from pathlib import Path


# within one process


def test_calls_on_adjacent_lines_are_two() -> None:
    first = limit(1)
    second = limit(1)
    assert first.key != second.key
    with first:
        assert second.available == 1


def test_calls_on_the_same_line_are_two() -> None:
    first, second = limit(1), limit(1)
    third = [limit(1), limit(1)]
    assert len({first.key, second.key, *(each.key for each in third)}) == 4
    with first:
        assert second.available == 1


def test_a_call_in_a_loop_is_one() -> None:
    found = [limit(1) for _ in range(3)]
    for _ in range(2):
        found.append(limit(1))
    assert len({each.key for each in found}) == 2
    assert found[0] is found[1] is found[2]
    assert found[3] is found[4]


def test_a_call_that_spans_lines_is_one_and_its_arguments_do_not_matter() -> None:
    def site(timeout: float | None) -> Semaphore:
        return limit(
            2,
            timeout=timeout,
        )

    assert site(None).key == site(1.0).key
    with site(1.0):
        assert site(None).available == 1


def test_lambdas_and_comprehensions_are_places_like_others() -> None:
    functions: list[Callable[[], Semaphore]] = [lambda: limit(1), lambda: limit(1)]
    made: list[Callable[[], Semaphore]] = []
    for _ in range(2):
        made.append(lambda: limit(1))  # one place, two functions
    in_set, in_dict = {limit(1) for _ in "ab"}, {letter: limit(1) for letter in "ab"}
    in_generator = list(limit(1) for _ in "ab")  # noqa: C400  this is what is tested
    assert functions[0]().key != functions[1]().key
    assert made[0]().key == made[1]().key
    assert len(in_set) == 1
    assert in_dict["a"] is in_dict["b"]
    assert in_generator[0] is in_generator[1]
    keys = [functions[0](), functions[1](), made[0](), *in_set, in_dict["a"], in_generator[0]]
    assert len({each.key for each in keys}) == 6


def test_each_function_of_one_factory_shares_its_place() -> None:
    """A place is code, not a function object: so it is the same in all processes."""

    def factory() -> Callable[[], Semaphore]:
        @limit(1)
        def inner() -> Semaphore:
            return limit(1)

        return inner

    first, second = factory(), factory()
    assert first().key == second().key
    decorating = [function.__closure__[1].cell_contents for function in (first, second)]  # type: ignore[attr-defined]
    assert decorating[0] is decorating[1]
    assert decorating[0].key != first().key


def test_methods_of_two_classes_on_the_same_lines_are_two() -> None:
    source = "class {}:\n    def f(self): return limit(1)\n"
    spaces: dict[str, Any] = {"limit": limit}
    for name in ("A", "B"):
        exec(compile(source.format(name), "/some/file.py", "exec"), spaces)
    assert spaces["A"]().f().key != spaces["B"]().f().key


def test_a_thread_finds_the_same() -> None:
    found: list[Semaphore] = []

    def site() -> None:
        found.append(limit(1))

    thread = threading.Thread(target=site)
    thread.start()
    thread.join(PATIENCE)
    site()
    assert found[0] is found[1]


RELOADED = """
from mpkit._limit import limit
def inline():
    return limit(1)
@limit(1)
def decorated(): pass
"""


def test_a_module_that_is_reloaded_unchanged_finds_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"reloaded_{secrets.token_hex(4)}"
    (tmp_path / f"{name}.py").write_text(RELOADED)
    monkeypatch.syspath_prepend(tmp_path)
    module: Any = importlib.import_module(name)
    before, decorated = module.inline(), module.decorated
    with before:
        importlib.reload(module)
        assert module.inline is not None
        assert module.inline().key == before.key
        assert module.inline().available == 0
    assert decorated is not module.decorated
    limits = [each.__closure__[1].cell_contents for each in (decorated, module.decorated)]
    assert limits[0].key == limits[1].key
    # With other lines before it, it is another place; what is held stays held.
    (tmp_path / f"{name}.py").write_text("# one more\n" + RELOADED)
    importlib.invalidate_caches()
    importlib.reload(module)
    assert module.inline().key != before.key


def executed(source: str, filename: str) -> Semaphore:
    names: dict[str, Any] = {"limit": limit}
    exec(compile(textwrap.dedent(source), filename, "exec"), names)
    found: Semaphore = names["inline"]()
    return found


@pytest.mark.parametrize("filename", ["<string>", "<ipython-input-3-0123456789ab>", "<stdin>"])
def test_code_that_has_no_file_is_told_apart_by_what_it_does(filename: str) -> None:
    source = "def inline():\n    with limit({}) as found: {}()\n    return found"
    text = source.format(1, "print")
    assert executed(text, filename).key == executed(text, filename).key
    others = [source.format(1, "str"), source.format(1, "print") + " if 1 else 2\n    len()"]
    others += [text.replace("print()", "print('x')"), text.replace("print()", "print('y')")]
    others += [text.replace("print()", f"print(1 in {{{n}, 8, 9}})") for n in (6, 7)]
    others += [text.replace("print()", f"print((lambda: {n}))") for n in (1000, 2000)]
    keys = {executed(each, filename).key for each in [text, *others]}
    assert len(keys) == 1 + len(others)


def test_what_has_no_file_is_the_same_whatever_the_hash_seed() -> None:
    code = """
from mpkit._limit import limit
print((limit(1) if 'a' in {'a', 'b', 'c', ('d', 'e')} else 0).key)
"""
    assert len({said(python(code, PYTHONHASHSEED=seed)) for seed in "123"}) == 1


def said(program: subprocess.Popen[str]) -> str:
    with program:
        out, _ = program.communicate(timeout=PATIENCE)
    assert program.returncode == 0
    return out


def test_two_cells_of_a_notebook_are_two_and_a_cell_run_again_is_one() -> None:
    source = "def inline(): return limit(1)"
    cells = [f"/tmp/ipykernel_123/{number}.py" for number in (456, 457, 456)]
    first, second, again = (executed(source, cell) for cell in cells)
    assert first.key == again.key != second.key


def test_a_file_whose_path_is_no_text_has_places() -> None:
    filename = os.fsdecode(b"/tmp/\xff\xfe/program.py")
    found = executed("def inline(): return limit(1)", filename)
    with found:
        assert found.available == 0
        assert found.holders()[0].pid == os.getpid()


def test_the_key_is_a_short_word() -> None:
    key = limit(1).key
    assert len(key) == 20
    assert int(key, 16) >= 0


# in processes


def inline() -> Semaphore:
    return limit(1)


def other_line() -> Semaphore:
    return limit(1)


def look(_: object = None) -> tuple[str, bool, str]:
    """Return the key of `inline`, whether a slot is free there, and another key."""
    return inline().key, bool(inline().available), other_line().key


def look_from_a_thread(_: object = None) -> tuple[str, bool, str]:
    found: list[tuple[str, bool, str]] = []
    thread = threading.Thread(target=lambda: found.append(look()))
    thread.start()
    thread.join(PATIENCE)
    return found[0]


def look_from_below(depth: int) -> list[tuple[str, bool, str]]:
    """Look here, and in a line of processes each of which started the next one."""
    found = [look()]
    if depth:
        found += mpkit.start(look_from_below, depth - 1).result(PATIENCE)
    return found


def test_jobs_and_the_jobs_that_they_start_find_the_same(start_method: str) -> None:
    here = (inline().key, False, other_line().key)
    with inline():
        assert look_from_below(2) == [here] * 3
        assert mpkit.start(look_from_a_thread).result(PATIENCE) == here
    assert inline().available == 1


def test_workers_of_every_pool_find_the_same(context: BaseContext, start_method: str) -> None:
    here = (inline().key, False, other_line().key)
    with inline():
        with mpkit.TaskPool(1) as ours:
            assert set(ours.map(look, range(3))) == {here}
            assert set(ours.map(look_from_a_thread, range(3))) == {here}
        with context.Pool(1) as theirs:
            assert set(theirs.map(look, range(3))) == {here}
            theirs.close()
            theirs.join()


def expect(here: tuple[str, bool, str]) -> None:
    assert look() == here


def test_processes_of_every_start_method_find_the_same(spawn: Spawn) -> None:
    with inline():
        finish(spawn(expect, (inline().key, False, other_line().key)))


# in programs

#: What each program does, however it was started. The child says what it found.
WORK = """
import multiprocessing, sys
from mpkit._limit import limit

def inline():
    return limit(1)

def child(queue):
    queue.put((inline().key, inline().acquire(block=False)))

def compare(method):
    context = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    with inline():
        process = context.Process(target=child, args=(queue,))
        process.start()
        process.join()
        assert process.exitcode == 0, "the start method itself does not work here"
        assert queue.get() == (inline().key, False), "the child is at another limit"
    print(inline().key, flush=True)
"""
MAIN = """
if __name__ == "__main__":
    for method in sys.argv[1].split(","):
        compare(method)
"""
ALL = "fork,spawn,forkserver" if sys.platform == "linux" else "fork,spawn"


def keys_of(*words: str, text: str | None = None, cwd: Path | None = None) -> set[str]:
    """Run a program; return the keys that it printed."""
    ran = subprocess.run(
        [sys.executable, *words],
        input=text,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found = set(ran.stdout.split())
    assert found
    return found


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """Return a directory with a package ``app``, which runs the work of its module."""
    package = tmp_path / "app"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "work.py").write_text(WORK)
    (package / "tool.py").write_text(WORK + MAIN)
    (package / "__main__.py").write_text("import sys\nfrom app.work import compare\n" + MAIN)
    return tmp_path


def test_a_module_that_is_run_is_one_place_in_all_processes(program: Path) -> None:
    [key] = keys_of("-m", "app.tool", ALL, cwd=program)
    # The same file, started as a script, and from elsewhere by an absolute path.
    assert keys_of("app/tool.py", ALL, cwd=program) == {key}
    assert keys_of("-O", str(program / "app" / "tool.py"), "fork,spawn", cwd=program) == {key}


def test_a_package_that_is_run_is_one_place_in_all_processes(program: Path) -> None:
    [key] = keys_of("-m", "app", ALL, cwd=program)
    assert keys_of("-O", "-m", "app", "fork,spawn", cwd=program) == {key}


def test_a_zip_application_is_one_place_in_all_processes(program: Path) -> None:
    (program / "zipped").mkdir()
    (program / "app").rename(program / "zipped" / "app")
    main = "from app.work import compare\nimport sys\n" + MAIN
    (program / "zipped" / "__main__.py").write_text(main)
    zipapp.create_archive(program / "zipped", program / "app.pyz")
    assert len(keys_of("app.pyz", ALL, cwd=program)) == 1


def test_code_given_on_the_command_line_is_one_place_in_forked_processes() -> None:
    [key] = keys_of("-c", WORK + MAIN, "fork")
    assert keys_of("-", "fork", text=WORK + MAIN) != {key}


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_code_given_on_the_command_line_reaches_a_module_in_processes_not_forked(
    program: Path, method: str
) -> None:
    """What is in `__main__` itself multiprocessing cannot find there; a module it can.

    (Of a program that is read from stdin it cannot start any.)
    """
    if method not in ALL:
        pytest.skip("there is no such start method")
    code = f"from app.work import compare\nif __name__ == '__main__': compare({method!r})"
    assert len(keys_of("-c", code, cwd=program)) == 1


NOTEBOOK = """
import sys
exec(compile(sys.argv[1], sys.argv[2], "exec"), globals())
compare("fork")
"""


@pytest.mark.parametrize(
    "filename",
    ["<ipython-input-3-0123456789ab>", "/tmp/ipykernel_123/456.py", "<string>", "<doctest x[0]>"],
)
def test_a_cell_of_a_notebook_is_one_place_in_forked_processes(filename: str) -> None:
    assert len(keys_of("-c", NOTEBOOK, WORK, filename)) == 1


GENERATED = """
import sys
def load():
    names = {"__name__": "generated"}
    exec("from mpkit._limit import limit\\ndef inline():\\n    return limit(1) if 'a' in {'a', 'b', 'c'} else 0", names)
    return names["inline"]
inline = load()
"""


def test_code_that_a_module_generates_is_one_place_in_all_processes(program: Path) -> None:
    """As what dataclasses and named tuples do: each process compiles it anew."""
    work = WORK.replace("def inline():\n    return limit(1)\n", GENERATED)
    (program / "app" / "work.py").write_text(work)
    assert len(keys_of("-m", "app", ALL, cwd=program)) == 1


def test_a_script_in_a_directory_whose_name_is_no_text_is_one_place(program: Path) -> None:
    folder = os.path.join(os.fsencode(program), b"\xff\xfe")
    try:
        os.mkdir(folder)
    except OSError:
        pytest.skip("this file system has only names that are text")
    script = pathlib.Path(os.fsdecode(folder)) / "script.py"
    script.write_text(WORK + MAIN)
    assert len(keys_of(str(script), ALL)) == 1


def test_a_script_that_is_reached_by_a_link_is_one_place(program: Path) -> None:
    (program / "link.py").symlink_to(program / "app" / "tool.py")
    (program / "linked").symlink_to(program / "app")
    assert len(keys_of("link.py", ALL, cwd=program)) == 1
    assert len(keys_of("linked/tool.py", ALL, cwd=program)) == 1


def test_a_script_that_changes_directory_is_one_place(program: Path) -> None:
    start = "import os\nos.chdir('/')\n"  # before multiprocessing can see where we are
    (program / "app" / "tool.py").write_text(start + WORK + MAIN)
    assert len(keys_of("app/tool.py", ALL, cwd=program)) == 1


COPY = """
import sys
from mpkit._limit import limit

def inline(name):
    return limit(1, name=name or None)

found = inline(sys.argv[1])
print(found.key, found.acquire(block=False), flush=True)
sys.stdin.read()
"""


def test_two_copies_of_a_program_share_what_has_a_name_and_nothing_else(tmp_path: Path) -> None:
    script, name = tmp_path / "copy.py", f"test-{secrets.token_hex(6)}"
    script.write_text(COPY)
    runner = f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')"
    assert sorted(answers([python(runner, name), python(runner, name)])) == [
        (name, "False"),
        (name, "True"),
    ]
    first, second = answers([python(runner, ""), python(runner, "")])
    assert first == second
    assert first[1] == "True"


def answers(programs: Iterable[subprocess.Popen[str]]) -> list[tuple[str, str]]:
    """Return what each of some programs said, while all of them ran."""
    programs = list(programs)
    found: list[tuple[str, str]] = []
    for program in programs:
        assert program.stdout
        key, got = program.stdout.readline().split()
        found.append((key, got))
    for program in programs:
        with program:
            program.communicate(timeout=PATIENCE)
    return found
