"""A law's formula as text, once: evaluated here by numpy and on the page by the JavaScript that is made from it.

The text is an expression of a law's inputs and constants in a part of Python that JavaScript shares: + - * / **, unary
minus, numbers, `inf`, `exp log log2 min max`, and `a if x > y else b`. Names in `parts` stand for expressions.
"""

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shared.errors import BitlawError
from shared.laws.law import Array

OPERATORS: dict[type[ast.AST], tuple[str, Callable[..., Any]]] = {
    ast.Add: ("+", np.add),
    ast.Sub: ("-", np.subtract),
    ast.Mult: ("*", np.multiply),
    ast.Div: ("/", np.divide),
    ast.Pow: ("**", np.power),
    ast.Lt: ("<", np.less),
    ast.LtE: ("<=", np.less_equal),
    ast.Gt: (">", np.greater),
    ast.GtE: (">=", np.greater_equal),
}
# Name: (how many arguments, in JavaScript, here).
FUNCTIONS: dict[str, tuple[int, str, Callable[..., Any]]] = {
    "exp": (1, "Math.exp", np.exp),
    "log": (1, "Math.log", np.log),
    "log2": (1, "Math.log2", np.log2),
    "min": (2, "Math.min", np.minimum),
    "max": (2, "Math.max", np.maximum),
}


@dataclass(frozen=True)
class Formula:
    """`text` with `parts`, each of which may use those before it."""

    text: str
    parts: Mapping[str, str] = field(default_factory=dict)

    def tree(self) -> ast.expr:
        """The expression with its parts put in. Raises BitlawError for what is not of the language above."""
        known: dict[str, ast.expr] = {}
        for name, text in self.parts.items():
            known[name] = _Put(known).visit(_parsed(text))
        whole: ast.expr = _Put(known).visit(_parsed(self.text))
        return whole


class _Put(ast.NodeTransformer):
    def __init__(self, known: Mapping[str, ast.expr]) -> None:
        self.known = known

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self.known.get(node.id, node)


def _parsed(text: str) -> ast.expr:
    try:
        return ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise BitlawError(f"formula '{text}': is no expression ({error.msg})") from error


def _wrong(node: ast.AST) -> BitlawError:
    return BitlawError(f"formula: '{ast.unparse(node)}' is not of its language; see shared/report/explorer/formula.py")


def evaluate(formula: Formula, values: Mapping[str, Array | float]) -> Array:
    """The formula's value, with inputs and constants broadcast against each other. Raises BitlawError for a name that
    has no value."""
    with np.errstate(all="ignore"):
        return np.asarray(_evaluate(formula.tree(), values), dtype=float)


def _evaluate(node: ast.expr, values: Mapping[str, Array | float]) -> Any:
    match node:
        case ast.Constant(value=int() | float()):
            return node.value
        case ast.Name(id="inf"):
            return np.inf
        case ast.Name(id=name) if name in values:
            return np.asarray(values[name], dtype=float)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluate(operand, values)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            return OPERATORS[type(op)][1](_evaluate(left, values), _evaluate(right, values))
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in OPERATORS:
            return OPERATORS[type(op)][1](_evaluate(left, values), _evaluate(right, values))
        case ast.IfExp(test=test, body=body, orelse=other):
            return np.where(_evaluate(test, values), _evaluate(body, values), _evaluate(other, values))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in FUNCTIONS:
            if len(args) == FUNCTIONS[name][0]:
                return FUNCTIONS[name][2](*(_evaluate(one, values) for one in args))
    raise _wrong(node)


def javascript(formula: Formula, inputs: Sequence[str], constants: Sequence[str]) -> str:
    """A function of constants c and inputs x. Raises BitlawError for a name that is neither."""
    where = {name: f"x.{name}" for name in inputs} | {name: f"c.{name}" for name in constants}
    return f"(c, x) => {_javascript(formula.tree(), where)}"


def _javascript(node: ast.expr, where: Mapping[str, str]) -> str:
    match node:
        case ast.Constant(value=int() | float()):
            return repr(node.value)
        case ast.Name(id="inf"):
            return "Infinity"
        case ast.Name(id=name) if name in where:
            return where[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return f"(-{_javascript(operand, where)})"
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            return f"({_javascript(left, where)} {OPERATORS[type(op)][0]} {_javascript(right, where)})"
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in OPERATORS:
            return f"{_javascript(left, where)} {OPERATORS[type(op)][0]} {_javascript(right, where)}"
        case ast.IfExp(test=test, body=body, orelse=other):
            return f"({' : '.join((_choice(test, body, where), _javascript(other, where)))})"
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in FUNCTIONS:
            if len(args) == FUNCTIONS[name][0]:
                return f"{FUNCTIONS[name][1]}({', '.join(_javascript(one, where) for one in args)})"
    raise _wrong(node)


def _choice(test: ast.expr, body: ast.expr, where: Mapping[str, str]) -> str:
    return f"{_javascript(test, where)} ? {_javascript(body, where)}"
