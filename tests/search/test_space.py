from __future__ import annotations

import math

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from rfflow.errors import ConfigError
from rfflow.search.space import Space, read_space


def space(*words: str) -> Space:
    return read_space(OverridesParser.create().parse_overrides(list(words)))


@pytest.mark.parametrize(
    "word, expected",
    [
        ("lr=interval(0.0,1.0)", FloatDistribution(0.0, math.nextafter(1.0, 0))),
        ("lr=tag(log,interval(1e-5,1e-2))", FloatDistribution(1e-5, math.nextafter(1e-2, 0), log=True)),
        ("r=int(interval(4,65))", IntDistribution(4, 64)),
        ("r=tag(log,int(interval(4,65)))", IntDistribution(4, 64, log=True)),
        ("r=interval(4,65)", FloatDistribution(4.0, math.nextafter(65, 0))),  # Hydra's intervals are of floats
        ("r=float(interval(4,65))", FloatDistribution(4.0, math.nextafter(65, 0))),
        ("r=int(interval(4,5))", IntDistribution(4, 4)),
        ("r=range(3)", IntDistribution(0, 2)),
        ("r=range(1,10,step=3)", IntDistribution(1, 7, step=3)),
        ("r=range(1,11,step=3)", IntDistribution(1, 10, step=3)),
        ("r=tag(log,range(1,65))", IntDistribution(1, 64, log=True)),
        ("r=range(1.0,4.0)", CategoricalDistribution(["1.0", "2.0", "3.0"])),
        ("r=shuffle(range(1,5))", IntDistribution(1, 4)),
        ("r=range(1,10)", IntDistribution(1, 9)),
        ("r=range(0,1,step=0.25)", CategoricalDistribution(["0.0", "0.25", "0.5", "0.75"])),
        ("r=range(9,1,step=-4)", CategoricalDistribution(["9", "5"])),
        ("r=choice(4,8,16)", CategoricalDistribution(["4", "8", "16"])),
        ("peft=lora,lora_small", CategoricalDistribution(["lora", "lora_small"])),
        ("x=choice([a,b],{c:1})", CategoricalDistribution(["[a,b]", "{c:1}"])),
        ("x=choice(1,1.5,true,a,'b, c')", CategoricalDistribution(["1", "1.5", "True", "a", r"b\,\ c"])),
        ("x=choice(2,1,2)", CategoricalDistribution(["2", "1"])),
        ("x=sort(choice(3,1,2))", CategoricalDistribution(["1", "2", "3"])),
    ],
)
def test_hydras_grammar_is_the_space(word: str, expected: object) -> None:
    """Intervals and ranges are half-open, as Hydra says."""
    assert list(space(word).dimensions.values()) == [expected]


def test_overrides_keep_their_order_and_their_pluses() -> None:
    read = space("+recipe=sft", "lr=interval(0.0,1.0)", "++a.b=choice(1,2)", "seed=3")
    assert read.overrides({"lr": 1e-05, "++a.b": "2"}) == ["+recipe=sft", "lr=1e-05", "++a.b=2", "seed=3"]


def test_the_last_override_of_a_key_holds() -> None:
    """So a value that is given twice does not make the same job again and again."""
    fixed = space("lr=interval(0.0,1.0)", "a=choice(1,2)", "lr=0.5")
    assert list(fixed.dimensions) == ["a"] and fixed.overrides({"a": "1"}) == ["lr=0.5", "a=1"]
    swept = space("lr=0.5", "lr=interval(0.0,1.0)")
    assert swept.fixed == () and swept.overrides({"lr": 0.25}) == ["lr=0.25"]


def test_a_space_of_choices_can_be_listed() -> None:
    read = space("a=choice(1,2)", "b=range(0,3)")
    assert read.size == 6 and len(read.all()) == 6
    assert space("a=interval(0.0,1.0)").size == math.inf


@pytest.mark.parametrize(
    "word, said",
    [
        ("lr=interval(1.0,1.0)", "is empty"),
        ("r=int(interval(4,4))", "is empty"),
        ("lr=tag(log,interval(0.0,1.0))", "needs numbers above 0"),
        ("r=range(5,1)", "holds no value"),
        ("lr=tag(lgo,interval(0.1,1.0))", "the tag 'lgo' means nothing to the search. Did you mean 'log'"),
        ("r=tag(log,range(0,9))", "only whole numbers from 1 up, in steps of 1"),
        ("r=tag(log,range(1,9,step=2))", "only whole numbers from 1 up, in steps of 1"),
        ("r=tag(log,choice(1,10,100))", "a list has no orders of magnitude"),
    ],
)
def test_what_is_no_space_is_said(word: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        space(word)
