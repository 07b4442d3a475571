"""Prints the lines of code per folder of the package: without blank lines, comments and docstrings.

python tests/lines.py [FOLDER]
"""

import ast
import io
import sys
import tokenize
from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "chatsmith"
NOTHING = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def code_lines(source: str) -> int:
    """How many lines of a module hold code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NOTHING:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if is_text and isinstance(node.value.value, str):  # docstrings, of attributes too
            lines -= set(range(node.lineno, node.end_lineno + 1))
    return len(lines)


def main(package: Path = PACKAGE) -> None:
    counts: Counter[str] = Counter()
    for file in package.rglob("*.py"):
        folder = file.relative_to(package).parts[0] if file.parent != package else "."
        counts[folder] += code_lines(file.read_text(encoding="utf-8"))
    print("lines of code:", ", ".join(f"{folder} {count:,}" for folder, count in sorted(counts.items())), end="; ")
    print(f"{counts.total():,} in all")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
