"""A clone's overrides: Hydra's grammar, and nothing that names code."""

import pytest

from rfflow.control.overrides import MAX_CLONES, check, expand
from rfflow.errors import OpError


def test_plain_overrides_make_one_clone_and_keep_their_text():
    assert expand(["lr=5e-4", "+peft.r=32", "~dataset.split", "peft=lora_large"]) == [
        ("lr=5e-4", "+peft.r=32", "~dataset.split", "peft=lora_large")
    ]


def test_a_sweep_makes_one_clone_for_each_combination_in_hydras_order():
    assert expand(["lr=1,2", "chunks=4", "peft.r=range(8,10)"]) == [
        ("lr=1", "chunks=4", "peft.r=8"),
        ("lr=1", "chunks=4", "peft.r=9"),
        ("lr=2", "chunks=4", "peft.r=8"),
        ("lr=2", "chunks=4", "peft.r=9"),
    ]


def test_no_overrides_make_one_clone():
    assert expand([]) == [()]


@pytest.mark.parametrize(
    "override",
    [
        "trainer._target_=os.system",
        "+x._target_.y=1",
        "++peft._target_=os.system",
        "~peft._target_",
        "peft={_target_: os.system}",
        "++a={b: [{c: {_target_: os.system}}]}",
        "a={b._target_: c}",
        "x=choice(a,{_target_: os.system})",
        "x={_target_: a},{_target_: b}",
        "+x@peft._target_=lora",
        "dataset.formatting_func._partial_=true",
        "trainer.kwargs._args_=[1]",
        "model.trust_remote_code=true",
    ],
)
def test_code_cannot_be_named(override):
    with pytest.raises(OpError, match=r"may not name code|grammar"):
        check([override])


@pytest.mark.parametrize(
    "override",
    [
        "x='${oc.create:\"_target_: os.system\"}'",
        "x=${oc.env:HOME}",
        "x=[1,{a: '${oc.create:b}'}]",
        "x='\\${oc.create:a}'",
        "x=$\\{oc.create\\:a\\}",
        "x=${a}${b}",
        "x=a,'${oc.create:a}'",
    ],
)
def test_resolvers_which_could_build_code_out_of_text_are_refused(override):
    with pytest.raises(OpError, match="plain values"):
        check([override])


def test_a_plain_reference_to_another_value_is_fine():
    check(["trainer.args.warmup_steps=${trainer.args.logging_steps}"])


@pytest.mark.parametrize(
    "override", ["peft=../../control/evil", "+peft@x=a/../../evil", "peft=/etc/evil", "peft=[a,../b]"]
)
def test_a_group_choice_cannot_leave_the_config_groups(override):
    """Hydra itself would load such a file, whatever `_target_` stands in it."""
    with pytest.raises(OpError, match="out of the config group"):
        check([override])


def test_a_path_as_a_value_is_fine():
    check(["dataset.path=../data/other.jsonl", "model.name=/models/base"])


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("hydra.launcher=x", "sets Hydra itself"),
        ("hydra/launcher=x", "sets Hydra itself"),
        ("+x@hydra.job=y", "sets Hydra itself"),
        ("name=x", "all runs share"),
        ("objective.metric=x", "all runs share"),
        ("engine.device=1", "all runs share"),
        ("+callbacks=x", "all runs share"),
        ("+a@callbacks.b=x", "all runs share"),
        ("~loggers", "all runs share"),
        ("control.dir=x", "all runs share"),
        ("checkpoint.every=2", "all runs share"),
        ("rfflow.engine.device=1", "all runs share"),
        ("=3", "names no key"),
        ("", "grammar"),
        ("lr", "Write key=value"),
        ("5e-4", "quote an override that holds a comma"),
        ("lr=[1", "grammar"),
        ("lr=1e-3,", "mismatched input 'its end'$"),
        ("lr=interval(0,1)", "interval"),
        ("lr=shuffle(1,2)", "shuffles"),
        ("lr=range(1,5,0)", "cannot be read"),
        ("lr=range(0,1,1e-9)", f"more than {MAX_CLONES} clones"),
        ("lr=range(0,inf)", f"more than {MAX_CLONES} clones"),
        ("lr=" + "[" * 900 + "]" * 900, "nested|grammar"),
        ("lr=" + "[" * 30 + "]" * 30, "nested too deep"),
        ("lr=" + "1" * 5000, "5003 characters long"),
    ],
)
def test_bad_overrides_are_refused_with_their_reason(override, reason):
    with pytest.raises(OpError, match=reason) as caught:
        check([override])
    assert len(str(caught.value)) < 700


def test_the_same_key_twice_is_refused():
    with pytest.raises(OpError, match="set lr twice: 'lr=1' and '\\+\\+lr=2'"):
        check(["lr=1", "++lr=2"])


def test_combinations_are_counted_before_they_are_made():
    with pytest.raises(OpError, match="clones of a run"):
        check([f"x{i}=range(0,200)" for i in range(50)])
