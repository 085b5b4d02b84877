"""The limits of an evaluation, as a band behind its curve, in a real browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rfflow.control.status import RunStatus, Status, StatusFile
from tests.dashboard.browsing import Tab, served
from tests.dashboard.made import held, log, make_experiment
from tests.dashboard.test_looking import hover

pytestmark = pytest.mark.browser
FILLED = """canvas => {
  const {width, height} = canvas, x = Math.round(width * PART);
  const column = canvas.getContext('2d').getImageData(x, 0, 1, height).data;
  return [...Array(height).keys()].filter(y => column[4 * y + 3] > 0).length / height;
}"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two evaluations: the limits of the first come together, those of the second are not known."""
    root = make_experiment(tmp_path_factory.mktemp("bands") / "outputs" / "one")
    for step, width in ((1, 0.5), (2, 0.4), (3, 0.0)):
        log(root, 0, step, eval_f1=0.5, eval_f1_low=0.5 - width, eval_f1_high=0.5 + width, eval_em=0.5)
        log(root, 1, step, eval_f1=0.25)
    metrics = {"eval_f1": 0.5, "eval_em": 0.5}
    runs = [RunStatus(number, "running", (f"k={number}",), 3, 3, 3, 3, metrics) for number in range(2)]
    StatusFile(root / "control").write(Status(str(root), tuple(runs)))
    (root / "multirun.yaml").write_text(json.dumps({"objective": {"metric": "eval_f1", "direction": "maximize"}}))
    with held(root):
        yield root


def filled(tab: Tab, part: float) -> float:
    """Return the share of a column of the plot, at a part of its width, in which something is drawn."""
    tab.drawn()
    return float(tab.at("#plot canvas").evaluate(FILLED.replace("PART", str(part))))


def test_limits_are_a_band_that_narrows(root: Path, open_page: Any) -> None:
    with served(root.parent) as address:
        tab = Tab(open_page(), address)
        tab.at("#metric").select_option("eval_f1")
        tab.at("#plot .u-series", "run 1").wait_for()
        assert hover(tab, 0.0) == {"step": "1", "run 0": "0.5 [0, 1]", "run 1": "0.25"}
        assert hover(tab, 0.5) == {"step": "2", "run 0": "0.5 [0.1, 0.9]", "run 1": "0.25"}
        tab.page.mouse.move(0, 0)
        early, late = filled(tab, 0.2), filled(tab, 0.93)
        assert early > 0.5 > 2 * late, (early, late)
        tab.select(1)
        assert filled(tab, 0.2) < 0.25, "only those of the runs that are selected"
        tab.select(0)
        assert filled(tab, 0.2) > 0.5
        tab.at("#metric").select_option("eval_em")
        tab.at("#plot .u-series", "run 1").wait_for(state="detached")
        assert filled(tab, 0.2) < 0.25
        assert not tab.errors
