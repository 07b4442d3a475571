"""One module writes: chatsmith/files/writing.py. Read off the syntax of the whole package."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import chatsmith

PACKAGE = Path(chatsmith.__file__).parent
WRITER = "files/writing.py"

WRITES_OF_OS = {
    *("remove", "unlink", "rename", "renames", "replace", "link", "symlink", "mkdir", "makedirs", "mkfifo", "mknod"),
    *("rmdir", "removedirs", "truncate", "ftruncate", "write", "writev", "pwrite", "sendfile", "copy_file_range"),
    *("chmod", "fchmod", "lchmod", "chown", "fchown", "lchown", "utime", "setxattr", "removexattr", "fdopen"),
}
HARMLESS_OF_SHUTIL = {"which", "disk_usage", "get_terminal_size"}
METHODS = {  # of paths, and of libraries that write to a path which they are given
    *("write_text", "write_bytes", "touch", "unlink", "rename", "mkdir", "rmdir", "symlink_to", "hardlink_to"),
    *("chmod", "lchmod", "makedirs", "rmtree", "copytree", "copyfile"),
    *("save_pretrained", "save_to_disk", "push_to_hub", "save_file", "save_model", "savefig", "savez", "tofile"),
    *("to_json", "to_csv", "to_parquet", "memmap", "write_table", "extractall", "urlretrieve", "copy2"),
}
READING_FLAGS = {"O_RDONLY", "O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_DIRECTORY"}
MODULES = {"os", "shutil", "tempfile", "torch", "np", "numpy", "io", "gzip", "bz2", "lzma", "zipfile", "tarfile"}


def writes(source: str) -> list[int]:
    """Lines of calls that write, and are not part of what `replace_file` or `replace_directory` is handed."""
    return sorted({call.lineno for call, handed in _calls(ast.parse(source), frozenset()) if _writes(call, handed)})


def _calls(node: ast.AST, handed: frozenset[str]) -> Iterator[tuple[ast.AST, frozenset[str]]]:
    """Every call and import with the names that are targets handed out by writing.py where it stands."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        fresh = {each.arg for each in arguments if each.annotation and ast.unparse(each.annotation) == "FreshDirectory"}
        handed = frozenset(fresh | (handed - {each.arg for each in arguments}))
    if isinstance(node, ast.Call | ast.ImportFrom):
        yield node, handed
    is_handing = isinstance(node, ast.Call) and ast.unparse(node.func) in ("replace_file", "replace_directory")
    for child in ast.iter_child_nodes(node):
        given = {each.arg for each in child.args.args} if isinstance(child, ast.Lambda) else set()
        yield from _calls(child, handed | given if is_handing else handed - given)


def _writes(node: ast.AST, handed: frozenset[str]) -> bool:
    if isinstance(node, ast.ImportFrom):  # under a name of their own they would not be recognised
        names = {alias.name for alias in node.names}
        aliased = {alias.name for alias in node.names if alias.asname}
        of_os = node.module in ("os", "posix") and names & WRITES_OF_OS
        of_shutil = node.module == "shutil" and names - HARMLESS_OF_SHUTIL
        return bool(of_os or of_shutil or node.module == "tempfile" or aliased & (METHODS | {"FreshDirectory", "open"}))
    assert isinstance(node, ast.Call)
    return _is_write(node) and not any(
        isinstance(part, ast.Name) and part.id in handed
        for target in (*node.args, *(keyword.value for keyword in node.keywords), node.func)
        for part in ast.walk(target)
    )


def _is_write(call: ast.Call) -> bool:
    name = ast.unparse(call.func)
    owner, _, last = name.rpartition(".")
    if name == "FreshDirectory" or last == "FreshDirectory":  # only writing.py says what is fresh
        return True
    if owner == "os" and last == "open":
        flags = {part.attr for part in ast.walk(call.args[1]) if isinstance(part, ast.Attribute)}
        return not flags <= READING_FLAGS and ast.unparse(call.args[0]) != "os.devnull"
    if owner in ("os", "posix"):
        return last in WRITES_OF_OS or last in ("popen", "system")
    if owner == "shutil":
        return last not in HARMLESS_OF_SHUTIL
    if owner == "tempfile":
        return last != "gettempdir"
    if last in ("open", "FileIO", "fdopen", "GzipFile", "ZipFile", "TarFile"):
        return _opens_to_write(call, is_method=bool(owner) and owner not in MODULES)
    if owner in ("torch", "np", "numpy", "pickle", "joblib") and last.startswith("save"):
        return True
    if last == "replace" and owner:  # of text it takes two
        return len(call.args) == 1 and not call.keywords
    if last == "savefig":  # into memory
        return not (call.args and isinstance(call.args[0], ast.Name) and call.args[0].id == "buffer")
    return last in METHODS or name == "save"


def _opens_to_write(call: ast.Call, *, is_method: bool) -> bool:
    named = [keyword.value for keyword in call.keywords if keyword.arg == "mode"]
    places = call.args[0:1] if is_method else call.args[1:2]
    mode = (named + places or [ast.Constant("r")])[0]
    to_nowhere = bool(call.args) and not is_method and ast.unparse(call.args[0]) == "os.devnull"
    is_read = isinstance(mode, ast.Constant) and isinstance(mode.value, str) and not set(mode.value) & set("wax+")
    return not is_read and not to_nowhere


def test_nothing_else_in_the_package_writes():
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        name = file.relative_to(PACKAGE).as_posix()
        if name != WRITER and (lines := writes(file.read_text(encoding="utf-8"))):
            found[name] = lines
    assert found == {}


@pytest.mark.parametrize(
    "snippet",
    [
        'open(path, "w")',
        'open(path, mode="ab")',
        "open(path, mode)",
        'path.open("x")',
        'path.open(mode="r+")',
        'io.open(path, "w")',
        'io.FileIO(path, "w")',
        'gzip.open(path, "wb")',
        "os.open(path, os.O_RDWR)",
        "os.open(path, flags | os.O_CREAT)",
        'path.write_text("a")',
        'path.write_bytes(b"a")',
        "path.touch()",
        "path.unlink()",
        "path.unlink(missing_ok=True)",
        "path.rename(other)",
        "path.replace(other)",
        "path.mkdir(parents=True)",
        "path.symlink_to(other)",
        "os.replace(path, other)",
        "os.makedirs(path)",
        "os.remove(path)",
        "shutil.rmtree(path)",
        "shutil.copy(path, other)",
        "tempfile.mkdtemp()",
        "torch.save(state, path)",
        "np.save(path, array)",
        "array.tofile(path)",
        "save_file(tensors, path)",
        "model.save_pretrained(path)",
        "figure.savefig(path)",
        "save_model(FreshDirectory(path))",
        "from os import replace",
        "from shutil import rmtree",
        "from torch import save\nsave(state, path)",
        "from tempfile import NamedTemporaryFile",
        "from safetensors.torch import save_file as keep",
        "def save(path: Path):\n    model.save_pretrained(path)",
        "def save(fresh: FreshDirectory, path: Path):\n    model.save_pretrained(path)",
        "def save(fresh: FreshDirectory):\n    def inner(fresh: Path):\n        fresh.unlink()",
        "keep(path, lambda file: torch.save(state, file))",
        "replace_file(path, lambda file: torch.save(state, path))",
    ],
)
def test_a_call_that_writes_is_seen(snippet):
    assert writes(f"x = 1\n{snippet}")


@pytest.mark.parametrize(
    "snippet",
    [
        "open(path)",
        'path.open("rb")',
        'open(descriptor, "rb")',
        'open(os.devnull, "w")',
        "os.open(os.devnull, os.O_WRONLY)",
        "os.open(path, os.O_RDONLY | os.O_NOFOLLOW)",
        'text.replace("a", "b")',
        "replace(config, seed=1)",
        "dataclasses.replace(config, seed=1)",
        'shutil.which("git")',
        "stream.write(text)",
        "replace_file(path, lambda file: torch.save(state, file))",
        "replace_directory(path, lambda fresh: save_model(model, fresh))",
        "def save(fresh: FreshDirectory):\n    save_file(tensors, fresh / 'a')",
    ],
)
def test_what_reads_or_goes_through_the_one_writer_is_not(snippet):
    assert writes(snippet) == []
