"""What of the main module a process that will unpickle something has."""

from __future__ import annotations

import functools
import gc
import pickle
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mpkit import NotPicklable, _mainfile, _pickling, _reader
from mpkit._platform import mains


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A main module in the place of that of the tests, as that of ``python -c`` is."""
    made = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", made)
    return made


def define(main: ModuleType, text: str) -> None:
    exec(compile(text, "<typed>", "exec"), vars(main))


# what a file binds

GUARD = "__name__ == '__main__'"
_name = st.sampled_from("abcdefgh")
_binding = _name.flatmap(
    lambda name: st.sampled_from(
        [
            f"def {name}(): inner = 1",
            f"class {name}: inner = 1",
            f"{name} = 1",
            f"{name}: int = 1",
            f"({name}, *other) = 1, 2",
            f"import os.path as {name}",
            f"from os import sep as {name}",
            f"for {name} in '1': pass",
            f"(lambda: 1)(); {name} = lambda inner: inner",
        ]
    )
)


def _block(lines: list[str]) -> str:
    return "".join(f"    {line}\n" for text in lines for line in text.splitlines()) or "    pass\n"


def _compound(inner: st.SearchStrategy[list[str]]) -> st.SearchStrategy[str]:
    test = st.sampled_from(
        [
            GUARD,
            "'__main__' == __name__",
            "__name__ != '__main__'",
            f"True and {GUARD}",
            "True",
        ]
    )
    return st.one_of(
        st.builds(lambda t, a, b: f"if {t}:\n{_block(a)}else:\n{_block(b)}", test, inner, inner),
        st.builds(lambda a: f"try:\n{_block(a)}finally:\n    pass\n", inner),
        st.builds(lambda a: f"with open(os.devnull):\n{_block(a)}", inner),
    )


_statement = st.recursive(
    _binding, lambda inner: _compound(st.lists(inner, max_size=3)), max_leaves=8
)


def bound(text: str, name: str) -> set[str]:
    names: dict[str, Any] = {"__name__": name}
    exec(text, names)
    return set(names) & set("abcdefgh")


@given(st.lists(_statement, max_size=5))
def test_the_source_says_what_is_bound_only_when_it_is_run(statements: list[str]) -> None:
    text = "import os\n" + "\n".join(statements)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "program.py")
        path.write_text(text)
        names = _mainfile.names_of(str(path))
    assert names is not None
    run, imported = bound(text, "__main__"), bound(text, "__mp_main__")
    # What "True" leaves out is in there for the reader of the source; all else is as it happens.
    assert run - imported <= names.when_run | names.always
    assert imported <= names.always
    if "if True:" not in text and "True and" not in text:
        assert names.when_run & run == run - imported
        assert not names.when_run & imported


@pytest.mark.parametrize("content", [b"def f(:", b"\xff\xfe", b"x = '\0'"])
def test_of_what_is_no_python_nothing_is_known(content: bytes, tmp_path: Path) -> None:
    (path := tmp_path / "program").write_bytes(content)
    assert _mainfile.names_of(str(path)) is None
    assert _mainfile.names_of(str(tmp_path / "missing")) is None


def test_a_source_has_its_own_encoding(tmp_path: Path) -> None:
    (path := tmp_path / "program.py").write_bytes("# coding: latin-1\né = 1\n".encode("latin-1"))
    names = _mainfile.names_of(str(path))
    assert names is not None
    assert "é" in names.always


# how a main module came to be


def test_what_new_processes_import(main: ModuleType) -> None:
    assert mains.imported_file() is None
    for path, imported in [
        ("/a/program.py", "/a/program.py"),
        ("program.py", f"{mains.start_directory()}/program.py"),
        ("<stdin>", None),
        ("/usr/bin/ipython", None),
    ]:
        main.__file__ = path
        assert mains.imported_file() == imported
    for name, imported in [
        ("package.__main__", None),
        ("__main__", None),
        ("package.module", "/a/module.py"),
    ]:
        main.__spec__ = _spec(name)
        assert mains.imported_file() == imported


def _spec(name: str) -> Any:
    from importlib.machinery import ModuleSpec

    return ModuleSpec(name, None, origin="/a/module.py")


def test_a_program_that_was_frozen_has_what_it_had(main: ModuleType) -> None:
    """Its source is nowhere, and its main module is run again."""
    main.__file__ = "/nowhere/frozen.py"
    define(main, "def f(): pass")
    reader = _reader.child("spawn")
    assert reader.has("f", main.f)
    assert not reader.may_lack()


# who has what


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_child_of_a_program_without_a_file(main: ModuleType, method: str) -> None:
    define(main, "def f(): pass\nclass C:\n    class D: pass\nx = 1\nfrom os.path import join")
    reader = _reader.child(method)
    forked = method == "fork"
    for thing, name in [(main.f, "f"), (main.C, "C"), (main.C.D, "C.D")]:
        assert _reader.lacks(reader, thing) == (None if forked else name)
    assert reader.may_lack() == (not forked)
    define(main, "def f(): pass\ndef g(): pass")
    assert _reader.lacks(reader, main.f) == "f"
    assert _reader.lacks(reader, main.g) == "g"
    assert reader.may_lack()
    for other in (main.join, len, 3, "f", main, lambda: 1, functools.partial(main.f)):
        assert _reader.lacks(reader, other) is None


def test_what_a_forked_child_has_is_not_kept_alive(main: ModuleType) -> None:
    define(main, "class C: pass")
    reader = _reader.child("fork")
    del main.C
    gc.collect()
    assert reader._had["C"]() is None  # type: ignore[attr-defined]
    define(main, "class C: pass")
    assert _reader.lacks(reader, main.C) == "C"


def test_what_stands_below_the_guard_is_lacked(main: ModuleType, tmp_path: Path) -> None:
    text = f"def f(): pass\nif {GUARD}:\n    def g(): pass\n    x = 1\n"
    (path := tmp_path / "program.py").write_text(text)
    main.__file__ = str(path)
    reader = _reader.child("spawn")
    exec(text.replace(GUARD, "False"), vars(main))
    assert not reader.may_lack()
    exec(text, vars(main))
    assert reader.may_lack()
    assert _reader.lacks(reader, main.f) is None
    assert _reader.lacks(reader, main.g) == "g"
    assert "below `if __name__" in reader.why("g")


def test_what_is_typed_behind_a_program_is_lacked(
    main: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "def f(): pass\ndef g(): pass\nclass C:\n    def m(self): pass\n"
    (path := tmp_path / "program.py").write_text(text)
    main.__file__ = str(path)
    exec(compile(text, str(path), "exec"), vars(main))
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    reader = _reader.child("spawn")
    assert not reader.may_lack()
    define(main, "def g(): pass\ndef h(): pass\nclass C:\n    def m(self): pass\n")
    lacked = [_reader.lacks(reader, thing) for thing in (main.f, main.g, main.h, main.C)]
    assert lacked == [None, "g", "h", "C"]
    assert "typed in" in reader.why("g")


def test_another_main_module_is_not_the_one_that_was_imported(
    main: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    main.__file__ = "/nowhere/program.py"
    define(main, "def f(): pass")
    reader = _reader.child("spawn")
    other = ModuleType("__main__")
    vars(other).update(vars(main))
    monkeypatch.setitem(sys.modules, "__main__", other)
    assert _reader.lacks(reader, main.f) == "f"


# what is in a pickle


def _has_late(shape: Any) -> bool:
    if isinstance(shape, list):
        return any(_has_late(part) for part in shape)
    return shape in (("late",), ("Late",), ("a Late",))


@example([("name of Late",), ("Late",)])
@given(
    st.recursive(
        st.one_of(
            st.sampled_from(
                ["known", "late", "Known", "Late", "a Known", "a Late", "name of Late"]
            ).map(lambda n: (n,)),
            st.text(alphabet="\x93\x94\x8c_main.Late", max_size=300),
            st.binary(max_size=20),
            st.just(b"\x8c\x04Late\x94\x93__main__"),
        ),
        lambda inner: st.lists(inner, max_size=8),
        max_leaves=30,
    )
)
def test_no_name_in_a_pickle_is_overlooked(shape: Any) -> None:
    main = ModuleType("__main__")
    before = sys.modules["__main__"]
    sys.modules["__main__"] = main
    try:
        define(main, "def known(): pass\nclass Known: pass")
        reader = _reader.child("fork")
        define(main, "def late(): pass\nclass Late: pass")

        def made(part: Any) -> Any:
            if isinstance(part, list):
                return [made(inner) for inner in part]
            if isinstance(part, tuple):
                thing = getattr(main, part[0].split()[-1])
                if part[0].startswith("name"):
                    return main.Late.__qualname__  # the very same string, which is named once
                return thing() if part[0].startswith("a ") else thing
            return part

        stream = pickle.dumps(made(shape), 5)
        if _has_late(shape):
            assert _reader.TRACE in stream
            assert _reader.may_miss(reader, stream)
    finally:
        sys.modules["__main__"] = before


def test_names_are_told_from_numbers_in_a_pickle(main: ModuleType) -> None:
    """The number of a string that is used again may look like the beginning of one, and a length
    like a letter of the name."""
    name = "L" * ord("A")
    define(main, "class Known: pass")
    reader = _reader.child("fork")
    define(main, f"class {name}: pass")
    streams = [
        pickle.dumps([[str(number) for number in range(many)], main.Known, getattr(main, name)], 5)
        for many in range(300)
    ]
    assert any(b"h\x8c\x8cAL" in stream for stream in streams)
    assert all(_reader.may_miss(reader, stream) for stream in streams)


def test_what_others_lack_is_no_matter_of_a_pickle_without_it(main: ModuleType) -> None:
    define(main, "class Known: pass")
    reader = _reader.child("fork")
    define(main, "class Late: pass")
    assert reader.may_lack()
    assert not _reader.may_miss(reader, pickle.dumps([main.Known(), "text"], 5))
    assert _reader.may_miss(reader, pickle.dumps([main.Known(), main.Late()], 5))


# what is done about it


def travelled(thing: object, reader: Any) -> Any:
    stream, buffers = _pickling.dumps(thing, "it", reader=reader)
    return pickle.loads(stream, buffers=buffers)


def test_what_a_reader_has_goes_by_name_beside_what_it_lacks(main: ModuleType) -> None:
    """So that a class is the one that the reader's own functions know."""
    pytest.importorskip("cloudpickle")
    define(main, "class Known: pass")
    reader = _reader.child("fork")
    define(main, "def late(): return Known")
    stream, _ = _pickling.dumps((main.late, main.Known()), "it", reader=reader)
    assert b"_make_function" in stream
    assert b"class" not in stream  # as in all that cloudpickle calls to make one
    late, known = pickle.loads(stream)
    assert late is not main.late
    assert late() is main.Known
    assert type(known) is main.Known


@pytest.mark.parametrize("where", ["main", "closure", "lambda"])
def test_a_function_with_a_cache_travels_without_what_is_in_it(
    main: ModuleType, where: str
) -> None:
    pytest.importorskip("cloudpickle")
    if where == "main":
        define(main, "import functools\n@functools.lru_cache(7, True)\ndef f(n): return n + 1")
    elif where == "closure":

        @functools.lru_cache(7, True)
        def f(n: int) -> int:
            return n + 1

        main.f = f
    else:
        main.f = functools.lru_cache(7, True)(lambda n: n + 1)
    assert main.f(1) == 2
    there = travelled(main.f, _reader.child("spawn"))
    assert there is not main.f
    assert there(1) == 2
    assert there.cache_info()[:3] == (0, 1, 7)
    assert there.cache_parameters() == main.f.cache_parameters()


def test_a_function_with_a_cache_of_a_module_goes_by_name(main: ModuleType) -> None:
    pytest.importorskip("cloudpickle")
    define(main, "def f(): pass")
    _, there = travelled((main.f, _byvalue_cached), _reader.child("spawn"))
    assert there is _byvalue_cached


@functools.cache
def _byvalue_cached() -> None:
    """A function that others find by its name."""


def test_what_cloudpickle_has_no_reducer_for_travels_beside_a_function(main: ModuleType) -> None:
    """A connection, say, or a memoryview, which cloudpickle makes bytes of."""
    pytest.importorskip("cloudpickle")
    define(main, "def f(): return 3")
    view = memoryview(bytearray(b"abcd")).cast("H")
    f, there = travelled((main.f, view), _reader.child("spawn"))
    assert f() == 3
    assert type(there) is memoryview
    assert (there.tolist(), there.format) == (view.tolist(), "H")


def test_the_class_of_what_is_deep_inside_is_named(main: ModuleType) -> None:
    define(main, "class C: pass")
    thing = {"key": [1, main.C()]}
    with patch.dict(sys.modules, {"cloudpickle": None}):
        with pytest.raises(
            NotPicklable, match=r"the class of \['key'\]\[1\], which is __main__.C,"
        ):
            travelled(thing, _reader.child("spawn"))
        # Who receives a message may be this process.
        assert type(travelled(main.C(), _reader.UNKNOWN)) is main.C


def test_an_error_of_unpickling_says_what_to_do_if_it_is_for_a_missing_name() -> None:
    import __main__

    for error in (AttributeError(f"Can't get attribute 'f' on {__main__}"), AttributeError("x")):
        _reader.note_missing(error)
        assert ("mpkit[cloudpickle]" in str(getattr(error, "__notes__", ""))) == (
            "__main__" in str(error)
        )


def test_a_method_that_is_replaced_while_it_is_pickled_travels_by_value(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As cloudpickle does in another thread, when it unpickles a class that comes back."""
    pytest.importorskip("cloudpickle")
    named: list[str | None] = ["File.__setattr__"]
    monkeypatch.setattr(_reader, "name_in_main", lambda thing: named.pop() if named else None)
    method = lambda: 3  # noqa: E731
    stream, _ = _pickling.dumps((method,), "it", reader=_reader.Foreign())
    assert pickle.loads(stream)[0]() == 3
