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

from rfflow.errors import ConfigError, nearest

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
        if len(text) > MAX_LENGTH:
            raise ConfigError(f"{where} is {len(text)} characters long. Allowed: up to {MAX_LENGTH}.")
        self.text = text = text.replace("\n", " ").strip()  # of YAML's blocks
        try:
            ast.parse(text, mode="eval")  # simpleeval takes several, and leaves all but one out
            self._parsed = SimpleEval.parse(text)
        except SyntaxError as error:
            at = error.offset - 1 if error.offset else len(text)  # 0 is the end
            raise _refusal(where, text, f"is not an expression: {error.msg}", at) from error
        except (InvalidExpression, ValueError, RecursionError, MemoryError) as error:
            raise _refusal(where, text, f"is not an expression: {error}") from error
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


_ARGUMENTS = {"min": (1, math.inf), "max": (1, math.inf), "round": (1, 2), "log": (1, 2)}
"""How many a function takes, at least and at most; the others take one."""


def _check(node: ast.AST, text: str, where: str) -> list[str]:
    """Check a tree, and return the names in it."""
    if isinstance(node, ast.UnaryOp | ast.BinOp | ast.Compare):
        operators = node.ops if isinstance(node, ast.Compare) else [node.op]
        for wrong in (operator for operator in operators if type(operator) not in _OPERATORS):
            raise _refusal(where, text, f"holds {ast.unparse(node)!r} ({type(wrong).__name__})", _place(node, text))
    if not isinstance(node, _SYNTAX):
        raise _refusal(where, text, f"holds {_words(node)}", _place(node, text))
    if isinstance(node, ast.Constant) and not isinstance(node.value, (int, float, str, type(None))):
        raise _refusal(where, text, f"holds {node.value!r}", _place(node, text))
    if isinstance(node, ast.Name | ast.Attribute):
        return [_dotted(node, text, where)]
    children = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.Call):
        match node.func, node.args, node.keywords:
            case ast.Name(id="metric"), [ast.Constant(value=str(name))], []:
                return [name]
        _check_call(node, text, where)
        children.remove(node.func)
    return [name for child in children for name in _check(child, text, where)]


def _check_call(node: ast.Call, text: str, where: str) -> None:
    called = ast.unparse(node.func)
    if called == _METRIC:
        raise _refusal(where, text, "calls metric: it wants one name in quotes", _place(node, text))
    if called not in FUNCTIONS or node.keywords:
        raise _refusal(where, text, f"calls {called}", _place(node, text), nearest(called, [*FUNCTIONS, _METRIC]))
    least, most = _ARGUMENTS.get(called, (1, 1))
    count = len(node.args)
    if called in ("min", "max") and not (count and isinstance(node.args[0], ast.Tuple | ast.List)):
        least = 2
    if not least <= count <= most:
        takes = f"{least:g}" if least == most else f"{least} or more" if most == math.inf else f"{least} or {most:g}"
        raise _refusal(where, text, f"gives {called} {count} arguments; it takes {takes}", _place(node, text))


def _dotted(node: ast.AST, text: str = "", where: str = "") -> str:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name) or any(part.startswith("_") for part in parts):
        raise _refusal(where, text, f"takes something out of {ast.unparse(node)}", _place(node, text))
    return ".".join([node.id, *reversed(parts)])


def _refusal(where: str, text: str, reason: str, at: int | None = None, hint: str = "") -> ConfigError:
    """Return the error, with a mark under the character where the mistake is."""
    mark = "" if at is None else f"\n    {text}\n    {' ' * min(at, len(text))}^\n"
    return ConfigError(f"{where}: {text!r} {reason}.{hint}{mark or ' '}{_GRAMMAR}")


def _place(node: ast.AST, text: str) -> int:
    return len(text.encode()[: getattr(node, "col_offset", 0)].decode())  # Python counts bytes


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
