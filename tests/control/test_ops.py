"""Reading an op document."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rfflow.control.ops import Clone, Delete, Resume, Stop, parse, to_document
from rfflow.control.selection import Everything, Numbers, Ranked
from rfflow.errors import OpError


def test_every_op_is_read():
    assert parse({"op": "stop", "run": 3}) == Stop(Numbers((3,)))
    assert parse({"op": "resume", "run": [4, 1]}) == Resume(Numbers((4, 1)))
    assert parse({"op": "delete", "run": "all"}) == Delete(Everything())
    assert parse({"op": "stop", "run": {"worst": "50%"}}) == Stop(Ranked("worst", percent=50.0))
    assert parse(
        {"op": "clone", "run": {"best": 2, "by": "acc", "direction": "maximize"}, "warm_start": True}
    ) == Clone(Ranked("best", 2, None, "acc", "maximize"), (), True)
    assert parse({"op": "clone", "run": 0, "overrides": ["lr=5e-4", "peft.r=32"]}) == Clone(
        Numbers((0,)), ("lr=5e-4", "peft.r=32"), False
    )


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (None, "mapping"),
        ([1], r"Seen: \[1\]"),
        ("stop 3", "mapping"),
        ({"run": 3}, "no key 'op'. Keys seen: \\['run'\\]"),
        ({"op": "stpo", "run": 3}, "op is 'stpo'. Did you mean 'stop'\\? Allowed: stop, resume, clone, delete"),
        ({"op": True, "run": 3}, "op is True"),
        ({"op": ["stop"], "run": 3}, "op is \\['stop'\\]"),
        ({"op": "stop"}, "stop needs run"),
        ({"op": "stop", "runs": 3}, "no key 'runs'. Did you mean 'run'"),
        ({"op": "stop", "run": 3, 7: 1}, "no key 7"),
        ({"op": "stop", "run": 3, "overrides": ["lr=1"]}, "overrides belongs to clone"),
        ({"op": "stop", "run": True}, "run is True"),
        ({"op": "stop", "run": -1}, "run is -1.*numbered from 0"),
        ({"op": "stop", "run": 1.0}, "run is 1.0"),
        ({"op": "stop", "run": "3"}, "run is '3'"),
        ({"op": "stop", "run": None}, "run is None"),
        ({"op": "stop", "run": int("9" * 4000)}, "run is "),
        ({"op": "stop", "run": 16**20000}, "run is a very long int"),
        ({"op": "stop", "run": []}, "empty list"),
        ({"op": "stop", "run": [1, True]}, "run is True"),
        ({"op": "stop", "run": [1, 2, 1]}, "names 1 more than once"),
        ({"op": "stop", "run": {}}, "best or worst"),
        ({"op": "stop", "run": {"best": 1, "worst": 1}}, "best or worst"),
        ({"op": "stop", "run": {"bset": 1}}, "no key 'bset'. Did you mean 'best'"),
        ({"op": "stop", "run": {"best": 0}}, "best is 0"),
        ({"op": "stop", "run": {"best": True}}, "best is True"),
        ({"op": "stop", "run": {"worst": 0.5}}, "a share such as 50%"),
        ({"op": "stop", "run": {"worst": "0%"}}, "worst is '0%'"),
        ({"op": "stop", "run": {"worst": "101%"}}, "worst is '101%'"),
        ({"op": "stop", "run": {"worst": "-5%"}}, "worst is '-5%'"),
        ({"op": "stop", "run": {"best": 1, "by": 3}}, "by is 3"),
        ({"op": "stop", "run": {"best": 1, "by": None}}, "by is None"),
        ({"op": "stop", "run": {"best": 1, "direction": "up"}}, "direction is 'up'. Allowed: minimize, maximize"),
        ({"op": "clone", "run": 0}, "would repeat its parent"),
        ({"op": "clone", "run": 0, "overrides": []}, "would repeat its parent"),
        ({"op": "clone", "run": 0, "overrides": None, "warm_start": True}, "overrides is None. Allowed: a list"),
        ({"op": "clone", "run": 0, "overrides": "lr=1"}, "Allowed: a list"),
        ({"op": "clone", "run": 0, "overrides": {"lr": 1}}, "Allowed: a list"),
        ({"op": "clone", "run": 0, "overrides": [{"lr": 1}]}, "is a mapping. Write key=value"),
        ({"op": "clone", "run": 0, "overrides": [3]}, "3 is not text"),
        ({"op": "clone", "run": 0, "overrides": ["lr=1"], "warm_start": 1}, "warm_start is 1. Allowed: true, false"),
        ({"op": "clone", "run": 0, "overrides": ["lr=1"], "warmstart": True}, "Did you mean 'warm_start'"),
        ({"op": "clone", "run": 0, "overrides": ["peft={_target_: os.system}"]}, "may not name code"),
    ],
)
def test_a_malformed_op_says_what_was_wrong(document, message):
    with pytest.raises(OpError, match=message):
        parse(document)


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["all", "stop", "50%"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["op", "run", "best", "by", "overrides", "x"]) | st.integers(), inner, max_size=5
        )
    ),
    max_leaves=10,
)


@given(
    st.fixed_dictionaries(
        {"op": st.sampled_from(["stop", "resume", "clone", "delete"]) | _json, "run": st.integers(-1, 9) | _json},
        optional={"overrides": st.lists(st.text(max_size=12), max_size=3) | _json, "warm_start": st.booleans() | _json},
    )
    | _json
)
def test_any_document_is_an_op_or_an_op_error_and_an_op_survives_being_written(document):
    try:
        op = parse(document)
    except OpError:
        return
    assert parse(to_document(op)) == op
