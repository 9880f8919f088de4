"""Planted faults: one coefficient, sign or term of one source file changed at a time."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SWAPPED = {ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*"}
# Where numbers are not coefficients: messages, indices, conditions.
SKIPPED = (ast.Raise, ast.Assert, ast.Subscript, ast.Compare, ast.JoinedStr, ast.ImportFrom, ast.Import)


@dataclass(frozen=True)
class Mutant:
    """A file with ``old`` at (line, column) replaced by ``new``.

    ``start`` and ``stop`` are character offsets in the file.
    """

    path: Path
    start: int
    stop: int
    line: int
    old: str
    new: str

    def text(self) -> str:
        """The mutated file."""
        source = self.path.read_text()
        return source[: self.start] + self.new + source[self.stop :]

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.old} -> {self.new}"


def mutants(path: Path) -> Iterator[Mutant]:
    """All mutants of a file, in the order of their places.

    * a number c in an expression becomes ``1.01 c`` and ``-c`` (a zero: 0.01);
    * ``a + b`` and ``a - b``, ``a * b`` and ``a / b`` are exchanged;
    * a sum, difference, product, quotient or power is multiplied by 1.01;
    * a unary minus is dropped.
    """
    source = path.read_text()
    lines = [0]
    for line in source.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))

    def span(node: ast.expr) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return lines[node.lineno - 1] + _column(source, lines, node.lineno, node.col_offset), lines[
            node.end_lineno - 1
        ] + _column(source, lines, node.end_lineno, node.end_col_offset)

    def made(node: ast.expr, new: str) -> Mutant:
        start, stop = span(node)
        return Mutant(path, start, stop, node.lineno, source[start:stop], new)

    for node in _expressions(ast.parse(source)):
        text = ast.get_source_segment(source, node) or ""
        if isinstance(node, ast.Constant):
            yield made(node, f"({text} * 1.01)" if node.value else "0.01")
            if node.value:
                yield made(node, f"(-{text})")
        elif isinstance(node, ast.UnaryOp):
            yield made(node, f"({ast.get_source_segment(source, node.operand)})")
        elif isinstance(node, ast.BinOp):
            left, right = (ast.get_source_segment(source, side) for side in (node.left, node.right))
            if type(node.op) in SWAPPED:
                yield made(node, f"(({left}) {SWAPPED[type(node.op)]} ({right}))")
            yield made(node, f"(1.01 * ({text}))")


def _column(source: str, lines: list[int], line: int, utf8: int) -> int:
    """The syntax tree counts columns in bytes."""
    return len(source[lines[line - 1] : lines[line]].encode()[:utf8].decode())


def _expressions(tree: ast.AST) -> Iterator[ast.expr]:
    """Numbers, negations and arithmetic, but for where they are not the method's."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, SKIPPED) or _annotates(tree, child):
            continue
        number = isinstance(child, ast.Constant) and type(child.value) in (int, float)
        arithmetic = isinstance(child, ast.BinOp) and isinstance(child.op, (*SWAPPED, ast.Pow, ast.MatMult))
        text = isinstance(child, ast.BinOp) and _is_text(child)
        if not text and (number or arithmetic or (isinstance(child, ast.UnaryOp) and isinstance(child.op, ast.USub))):
            yield child
        if not text:
            yield from _expressions(child)


def _is_text(node: ast.BinOp) -> bool:
    sides = (node.left, node.right)
    return any(
        isinstance(side, ast.JoinedStr) or (isinstance(side, ast.Constant) and isinstance(side.value, str))
        for side in sides
    )


def _annotates(parent: ast.AST, child: ast.AST) -> bool:
    return child in (getattr(parent, "annotation", None), getattr(parent, "returns", None)) and child is not None
