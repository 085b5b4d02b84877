from __future__ import annotations

from typing import Any

import pytest

from rfflow.errors import ConfigError
from rfflow.policies.expressions import Expression, Template, Unknown, look_up

VALUES = {"loss": 6.0, "best": {"loss": 1.5}, "parent": {"lr": 0.1, "peft": {"r": 8}}, "reward/mean": 1.0}


def names(name: str) -> Any:
    return look_up(VALUES, name)


@pytest.mark.parametrize(
    "text, value",
    [
        ("loss > 3 * best.loss", True),
        ("loss > 3 and not (best.loss < 1 or loss < 0)", True),
        ("2 if loss == 6 else 3", 2),
        ("min(parent.peft.r * 2, 10) in (10, 16)", True),
        ("1 < best.loss < 2", True),
        ("is_nan(loss)", False),
        ("2 ** 3 + 7 // 2 - 7 % 4", 8),
        ("metric('reward/mean') + metric('best.loss')", 2.5),
        ("loss <= 6 and loss >= 6 and loss != 5 and loss == 6.0", True),
        ("loss < 6 or best.loss > 2", False),
        ("3 not in (loss, 4) and 'a' not in ('b', 'c')", True),
        ("loss / 4 - -1 + +2", 4.5),
        ("loss // 4 * 10", 10),
        ("max(loss, best.loss, 7)", 7),
        ("min((3, 2)) + abs(-3) + round(2.6) + round(1.25, 1)", 2 + 3 + 3 + 1.2),
        ("log(exp(2)) + log(8, 2) + log10(100) + sqrt(9)", 2 + 3 + 2 + 3),
        ("True and not False and None not in (1, 2)", True),
        ("'lora' if parent.peft.r > 4 else 'none'", "lora"),
        ("loss\n  > 3\n", True),
    ],
)
def test_the_grammar(text: str, value: object) -> None:
    assert Expression(text, "when").evaluate(names) == value


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "().__class__.__bases__",
        "loss.__class__",
        "open('x')",
        "[x for x in (1, 2)]",
        "lambda: 1",
        "loss[0]",
        "f'{loss}'",
        "(loss := 3)",
        "loss > ",
        "loss; loss",
        "",
        "b'x' == 1",
        "metric(loss)",
        "metric('loss', 'loss')",
        "best.loss(3)",
        "min(1, key=2)",
        "min()",
        "max(loss)",
        "log(1, 2, 3)",
        "is_nan()",
        "sqrt(1, 2)",
        "loss is None",
        "~3",
        "loss @ 3",
        "1 << 100000000000",
        "1 if loss else " * 300 + "1",
    ],
)
def test_what_is_not_in_the_grammar_is_refused_before_it_is_evaluated(text: str) -> None:
    with pytest.raises(ConfigError, match="when"):
        Expression(text, "when")


@pytest.mark.parametrize(
    "text, place, said",
    [
        ("loss >", 6, "is not an expression: invalid syntax"),
        ("loss = 3", 5, "is not an expression"),
        ("1 < loss and mim(loss, 2) < 3", 13, "calls mim. Did you mean 'min'?"),
        ("loss > 3 or metic('a/b') > 1", 12, "calls metic. Did you mean 'metric'?"),
        ("loss > max(3)", 7, "gives max 1 arguments; it takes 2 or more"),
        ("loss > 2 and loss >> 3", 13, "holds 'loss >> 3' (RShift)"),
        ("'größe' == name.__class__", 11, "takes something out of name"),
    ],
)
def test_it_is_shown_where_an_expression_is_wrong(text: str, place: int, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        Expression(text, "Rule 'sick': when")
    first, line, mark, allowed = str(error.value).split("\n")
    assert first.startswith("Rule 'sick': when: ") and said in first
    assert (line, mark) == (f"    {text}", f"    {' ' * place}^")
    assert allowed.startswith("Allowed: numbers")


def test_powers_that_would_never_end_are_errors_at_once() -> None:
    with pytest.raises(ArithmeticError):
        Expression("9 ** 9 ** 9 ** 9", "when").evaluate(names)


def test_an_unknown_name_is_named() -> None:
    with pytest.raises(Unknown, match="eval_loss"):
        Expression("best.eval_loss > 1", "when").evaluate(names)


def test_templates_write_values_as_hydra_reads_them() -> None:
    fill = lambda text: Template(text, "overrides").fill(names)  # noqa: E731
    assert fill("lr=${parent.lr * 3}") == "lr=0.3"
    assert fill("peft.r=${parent.peft.r * 2},${parent.peft.r}") == "peft.r=16,8"
    assert fill("x=${loss > 1} y=${None}") == "x=true y=null"
    with pytest.raises(ConfigError, match="without its }"):
        Template("lr=${parent.lr", "overrides")
