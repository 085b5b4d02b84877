"""The expressions of rules: arithmetic and comparisons over names, evaluated by simpleeval and never by Python.

What an expression may hold::

    numbers, 'text', True, False, None        + - * / // % **        < <= > >= == !=  in  not in
    and  or  not  x if condition else y       min() max() abs() round() log() log10() exp() sqrt() is_nan()
    names with dots, such as loss, best.loss and parent.peft.r; metric('best.rewards/margins') for those with a slash

There are no other calls, no indexing, no comprehensions and no attributes of Python objects: a dotted name is looked up
in plain mappings.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from simpleeval import InvalidExpression, SimpleEval, safe_add, safe_mult

from rfflow.errors import ConfigError

Names = Callable[[str], Any]
"""Returns the value of a dotted name, or raises :class:`Unknown`."""

MAX_LENGTH = 500
"""Characters in one expression."""

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "min": min,
    "max": max,
    "abs": abs,
    "round": round,
    "log": math.log,
    "log10": math.log10,
    "exp": math.exp,
    "sqrt": math.sqrt,
    "is_nan": math.isnan,
}
_METRIC = "metric"
"""Called with a text, it is the name that the text says."""


class Unknown(LookupError):
    """A name that stands for nothing here, such as a metric that has not been logged yet."""


class Expression:
    """One expression, checked when it is made.

    Raises:
        ConfigError: if it is not in the grammar.
    """

    def __init__(self, text: str, where: str):
        self.text = text
        if len(text) > MAX_LENGTH:
            raise ConfigError(f"{where} is {len(text)} characters long. Allowed: up to {MAX_LENGTH}.")
        try:
            ast.parse(text.strip(), mode="eval")  # simpleeval takes several, and leaves all but one out
            self._parsed = SimpleEval.parse(text.strip())
        except (InvalidExpression, SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ConfigError(f"{where}: {text!r} is not an expression: {error}. {_GRAMMAR}") from error
        self.names: tuple[str, ...] = tuple(dict.fromkeys(_check(self._parsed, text, where)))
        """The dotted names in it."""

    def evaluate(self, names: Names) -> Any:
        """Return its value.

        Raises:
            Unknown: if a name stands for nothing.
            ArithmeticError, TypeError, ValueError: as in Python, such as for a division by zero.
        """
        try:
            return _Evaluator(names).eval(self.text, previously_parsed=self._parsed)
        except InvalidExpression as error:  # too large a power, too long a text
            raise ValueError(str(error)) from error


class _Evaluator(SimpleEval):
    """simpleeval with fewer kinds of nodes, where a dotted name is one name."""

    def __init__(self, names: Names):
        super().__init__(operators=_OPERATORS, functions={**FUNCTIONS, _METRIC: names}, names={})
        self._look_up = names
        self.nodes: dict[Any, Any] = {kind: evaluate for kind, evaluate in self.nodes.items() if kind in _NODES}
        self.nodes[ast.Name] = self.nodes[ast.Attribute] = lambda node: self._look_up(_dotted(node))
        self.nodes[ast.Tuple] = self.nodes[ast.List] = lambda node: [self._eval(item) for item in node.elts]


_OPERATORS = {
    ast.Add: safe_add,
    ast.Sub: operator.sub,
    ast.Mult: safe_mult,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: lambda base, exponent: float(base) ** float(exponent),  # of whole numbers it may never end
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.In: lambda item, items: item in items,
    ast.NotIn: lambda item, items: item not in items,
}
_NODES = (ast.Expr, ast.UnaryOp, ast.BinOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Call, ast.Constant)
_SYNTAX = (*_NODES, *_OPERATORS, ast.Name, ast.Attribute, ast.Tuple, ast.List, ast.Load, ast.And, ast.Or)
_GRAMMAR = (
    "Allowed: numbers, texts, names with dots, + - * / // % **, comparisons, in, and, or, not, 'x if y else z', and "
    f"the functions {', '.join(FUNCTIONS)}, and {_METRIC}('...') for a name with a slash in it."
)


def _check(node: ast.AST, text: str, where: str) -> list[str]:
    """Check a tree, and return the names in it."""
    names: list[str] = []
    if not isinstance(node, _SYNTAX):
        raise ConfigError(f"{where}: {text!r} holds {_words(node)}. {_GRAMMAR}")
    if isinstance(node, ast.Constant) and not isinstance(node.value, (int, float, str, type(None))):
        raise ConfigError(f"{where}: {text!r} holds {node.value!r}. {_GRAMMAR}")
    if isinstance(node, ast.Name | ast.Attribute):
        return [_dotted(node, text, where)]
    children = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == _METRIC and not node.keywords:
        match node.args:
            case [ast.Constant(value=str(name))]:
                return [name]
    if isinstance(node, ast.Call):
        if not isinstance(node.func, ast.Name) or node.func.id not in FUNCTIONS or node.keywords:
            raise ConfigError(f"{where}: {text!r} calls {ast.unparse(node.func)}. {_GRAMMAR}")
        children.remove(node.func)
    for child in children:
        names += _check(child, text, where)
    return names


def _dotted(node: ast.AST, text: str = "", where: str = "") -> str:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name) or any(part.startswith("_") for part in parts):
        raise ConfigError(f"{where}: {text!r} takes something out of {ast.unparse(node)}. {_GRAMMAR}")
    return ".".join([node.id, *reversed(parts)])


def _words(node: ast.AST) -> str:
    try:
        return repr(ast.unparse(node))
    except (AttributeError, ValueError, RecursionError):
        return type(node).__name__


# --- templates --------------------------------------------------------------------------------------------------------

_TEMPLATE = re.compile(r"\$\{([^{}]*)\}")


class Template:
    """A text with expressions in ``${...}``, such as ``lr=${parent.lr * 0.5}``.

    Raises:
        ConfigError: if one of them is not in the grammar.
    """

    def __init__(self, text: str, where: str):
        self.text = text
        pieces = _TEMPLATE.split(text)
        self._literals, self.expressions = pieces[::2], [Expression(piece, where) for piece in pieces[1::2]]
        if any("${" in literal for literal in self._literals):
            raise ConfigError(f"{where}: {text!r} holds a ${{ without its }}.")

    def fill(self, names: Names) -> str:
        """Return the text with every expression replaced by its value; raises what evaluating raises."""
        filled = [self._literals[0]]
        for expression, literal in zip(self.expressions, self._literals[1:], strict=True):
            filled += [_written(expression.evaluate(names)), literal]
        return "".join(filled)


def _written(value: Any) -> str:
    """Write a value so that Hydra's grammar reads it back as what it is."""
    if isinstance(value, float):
        return repr(float(f"{value:.12g}"))  # 0.1 * 3 is for people to read
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def look_up(mapping: Mapping[str, Any], name: str) -> Any:
    """Return what a dotted name stands for in nested mappings.

    Raises:
        Unknown: if it stands for nothing.
    """
    if name in mapping:
        return mapping[name]
    value: Any = mapping
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise Unknown(name)
        value = value[part]
    return value
