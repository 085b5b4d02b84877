"""What the page shows to somebody who only looks, in a real browser: the table, curves, the timeline, one run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rfflow.control.status import RunStatus, Status, StatusFile
from tests.dashboard.browsing import Tab, served
from tests.dashboard.made import LOSSES, MARKUP, held, make_experiment, make_full

pytestmark = pytest.mark.browser
MINUS = "\N{MINUS SIGN}"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = make_full(tmp_path_factory.mktemp("looking") / "outputs" / "one & <b>#2")
    with held(root), served(root.parent) as address:
        yield address


@pytest.fixture
def tab(address: str, open_page: Any) -> Iterator[Tab]:
    """The page, whose own code has raised nothing when the test ends."""
    tab = Tab(open_page(timezone_id="UTC"), address)
    tab.at("#metric").select_option("loss")
    tab.at("#plot .u-over").wait_for()
    yield tab
    assert not tab.errors


# --- curves -----------------------------------------------------------------------------------------------------------


def hover(tab: Tab, across: float, down: float = 0.5, *, is_click: bool = False) -> dict[str, str]:
    """Move the mouse into the curves, to parts of their width and height; return what the legend reads."""
    tab.drawn()
    box = tab.at("#plot .u-over").bounding_box()
    x, y = box["x"] + box["width"] * min(max(across, 0.002), 0.998), box["y"] + box["height"] * down
    tab.page.mouse.move(x, y)
    tab.page.mouse.move(x, y + 1)
    if is_click:
        tab.page.mouse.click(x, y)
    read = "rows => rows.map(row => [row.querySelector('.u-label').innerText, row.querySelector('.u-value').innerText])"
    return dict(tab.at("#plot .u-series").evaluate_all(read))


def read_at(tab: Tab, x: float, first: float, last: float) -> dict[str, str]:
    """Hover where an axis from the first to the last value has one."""
    return hover(tab, (x - first) / (last - first))


def test_hovering_reads_every_run_at_a_step(tab: Tab) -> None:
    assert read_at(tab, 3, 1, 8) == {"step": "3", "run 0": "4", "run 1": "9", "run 2": "2", "run 3": "--"}
    assert read_at(tab, 6, 1, 8) == {"step": "6", "run 0": "32", "run 1": "9", "run 2": "--", "run 3": "--"}


def test_by_chunk_a_warm_clone_begins_where_its_parent_stood(tab: Tab) -> None:
    tab.at("#axis").select_option("chunk")
    assert read_at(tab, 1, 1, 4) == {"chunk": "1", "run 0": "2", "run 1": "9", "run 2": "--", "run 3": "2"}
    assert read_at(tab, 3, 1, 4) == {"chunk": "3", "run 0": "32", "run 1": "9", "run 2": "2.5", "run 3": "--"}


def test_by_rows_a_run_of_twice_the_batch_is_twice_as_far(tab: Tab) -> None:
    tab.at("#axis").select_option("rows")
    assert read_at(tab, 8, 2, 32) == {"rows seen": "8", "run 0": "8", "run 1": "9", "run 2": "1.5", "run 3": "--"}
    assert read_at(tab, 32, 2, 32)["run 1"] == "9" and read_at(tab, 32, 2, 32)["run 0"] == "--"


def test_by_time_runs_stand_where_their_clocks_stood(tab: Tab) -> None:
    tab.at("#axis").select_option("time")
    read = read_at(tab, 800, 100, 801)  # seconds since the first
    assert read["run 0"] == "100" and read["time"].startswith("2023-11-14")


def test_smoothing_is_a_mean_that_does_not_begin_at_zero(tab: Tab) -> None:
    tab.at("#smoothing").fill("0.5")
    first, second, third = LOSSES[0][:3]
    assert read_at(tab, 1, 1, 8)["run 0"] == "1"
    mean = (first / 4 + second / 2 + third) / (1 / 4 + 1 / 2 + 1)
    assert float(read_at(tab, 3, 1, 8)["run 0"]) == pytest.approx(mean, rel=1e-3)
    tab.page.reload()  # it is remembered
    tab.at("#metric").select_option("loss")
    tab.at("#plot .u-over").wait_for()
    assert float(read_at(tab, 3, 1, 8)["run 0"]) == pytest.approx(mean, rel=1e-3)


def test_eval_points_are_put_over_their_curve(tab: Tab) -> None:
    tab.at("#evaluations").check()
    read = read_at(tab, 8, 1, 8)
    assert (read["run 0"], read["0 eval"], read["2 eval"]) == ("100", "3.5", "--")
    tab.at("#metric").select_option("eval_loss")
    assert tab.at("#evaluations").count() == 0, "they are the curve now"


def test_logarithmic_axes_put_the_middle_elsewhere(tab: Tab) -> None:
    """Runs are clicked where their curves are: of losses from 1 to 100 in the middle is 10, or 50."""
    tab.at("#filter").fill("run<2")
    tab.at("#plot .u-series", "run 2").wait_for(state="detached")
    assert hover(tab, 0.01, 0.5, is_click=True)["step"] == "1"
    assert tab.at("tr.selected").count() == 0
    tab.at("#logy").check()
    hover(tab, 0.01, 0.5, is_click=True)
    tab.at("tr.selected[data-run='1']").wait_for()
    tab.at("#logx").check()
    assert hover(tab, 0.5)["step"] in ("2", "3"), "not 4 or 5"


def test_the_timeline_says_who_held_a_slot_and_selects(tab: Tab) -> None:
    box = tab.at("#timeline").bounding_box()
    lane, left, right = 22, 44, 6
    first, last = 150.0, 791.0  # when the first chunk began and the last one ended, of make_full

    def go(time: float, slot: int) -> tuple[float, float]:
        across = left + (time - first) / (last - first) * (box["width"] - left - right)
        return box["x"] + across, box["y"] + lane * slot + lane / 2

    tab.page.mouse.move(*go(180, 0))
    tab.at("#held", "run 0, chunk 1, slot 0: 40.0 s").wait_for()
    tab.page.mouse.move(*go(580, 1))
    tab.at("#held", "run 1, chunk 3, slot 1: 40.0 s").wait_for()
    tab.page.mouse.click(*go(580, 1))
    tab.at("tr.selected[data-run='1']").wait_for()
    tab.page.mouse.move(*go(250, 0))  # nobody held it
    tab.at("#held", "").wait_for(state="attached")
    assert tab.at("#held").inner_text() == ""


# --- the table --------------------------------------------------------------------------------------------------------


def order(tab: Tab) -> str:
    return "".join(row.get_attribute("data-run") or "" for row in tab.at("#runs tbody tr").all())


def test_any_column_sorts_both_ways(tab: Tab) -> None:
    """What a run has not comes last, and words come behind numbers."""
    tab.at(".menu summary").click()
    for box in tab.at("[data-column]").all():
        box.check()
    tab.at(".menu summary").click()
    assert order(tab)[0] == "2", "ranked by the objective at first"
    heads = tab.at("#runs th button")
    titles = [text.rstrip(" ▲▼") for text in heads.all_inner_texts()]
    wanted = {
        "run": ("01234", "43210"),
        "#": ("21034", "43012"),
        "lr": ("21043", "40123"),
        "r": ("20134", "20134"),
        "state": ("32401", "10243"),
        "slot": ("02134", "13024"),
        "chunk": ("43201", "01234"),
        "step": ("43201", "01234"),
        "eval_loss": ("21034", "01234"),
        "best eval_loss": ("01234", "32014"),
        "loss": ("21034", "01234"),
        "best loss": ("02314", "13204"),
        "time": ("43201", "01234"),
        "parent": ("20134", "20134"),
    }
    said = {}
    for title in wanted:
        button = heads.nth(titles.index(title))
        button.click()
        up = order(tab)
        assert tab.at("#runs th[aria-sort=ascending]").inner_text().startswith(title)
        button.click()
        said[title] = (up, order(tab))
    assert said == wanted


def test_filters_compare_numbers_and_words(tab: Tab) -> None:
    """A loss that is no number is neither more nor less than one."""
    wanted = {
        "lr>1e-3": "014",
        "loss>1": "012",
        "loss<=9": "12",
        "loss:nan": "3",
        "state:ed": "1234",
        "state!=running": "1234",
        "parent=0 r=16": "2",
        "recipe=sft lr<1e-2": "12",
        "lr>": "01234",
        "halving": "",
    }
    said = {}
    for text in wanted:
        tab.at("#filter").fill(text)
        tab.drawn()
        said[text] = "".join(sorted(order(tab)))
    assert said == wanted


def test_a_choice_of_columns_is_remembered(tab: Tab) -> None:
    def titles() -> list[str]:
        return [text.rstrip(" ▲▼") for text in tab.at("#runs th").all_inner_texts() if text]

    at_first = titles()
    assert "parent" in at_first and "lr" not in at_first
    tab.at(".menu summary").click()
    tab.at("[data-column='override lr']").check()
    tab.at("[data-column=parent]").uncheck()
    tab.page.reload()
    tab.at("#runs tbody tr").first.wait_for()
    assert [*titles()] == [title for title in (*at_first[:3], "lr", *at_first[3:]) if title != "parent"]
    tab.at(".menu summary").click()
    tab.at(".menu button", "As at first").click()
    tab.page.reload()
    tab.at("#runs tbody tr").first.wait_for()
    assert titles() == at_first


def test_only_overrides_that_differ_are_shown_and_who_holds_a_slot_since_when(tab: Tab) -> None:
    cells = {
        key: tab.row(0).locator(f"[data-key={key}]").inner_text() for key in ("overrides", "slot", "chunk", "best")
    }
    assert cells == {"overrides": "lr=1e-2", "slot": "0 since 10:00:00", "chunk": "4/8", "best": "3.5"}
    tab.at(".menu summary").click()
    tab.at("[data-column='every override']").check()
    assert tab.row(0).locator("[data-key='every override']").inner_text() == "+recipe=sft lr=1e-2"
    long = tab.row(4).locator("[data-key=overrides]")
    assert long.bounding_box()["width"] <= 330 and long.get_attribute("title") == f"lr=1e-1 x={MARKUP}", (
        "room for metrics"
    )


# --- ops, one run, several --------------------------------------------------------------------------------------------


def test_the_log_of_ops_says_who_and_why(tab: Tab) -> None:
    lines = tab.at("#ops > div").all_inner_texts()
    assert [line.partition(" ")[2] for line in lines] == [
        "person, here Run 3 is failed.",
        f"policy/Halving Run 1 was stopped: worse than run 0 {MARKUP}",
        "person, file Run 0 was cloned as run 2 from its weights.",
    ]
    assert tab.at("#hint").inner_text().startswith("Halving issues ops too")


def test_times_are_those_of_where_the_browser_is(address: str, open_page: Any) -> None:
    tab = Tab(open_page(timezone_id="Asia/Tokyo", locale="en-US"), address)
    assert tab.row(0).locator("[data-key=slot]").inner_text() == "0 since 19:00:00"
    assert tab.at("#ops > div").last.inner_text().startswith("19:00:00 person, file")
    assert not tab.errors


def test_one_run_has_its_configuration_log_ops_and_answers(tab: Tab) -> None:
    tab.select(0)
    tab.at("#open").click()
    tab.at("#config td", "trainer.args.seed").wait_for()
    said = "Activations: every 3rd layer's recomputed (kept they would take 9 GB)"
    assert tab.at("#activations").inner_text() == said
    tab.at("[role=tab]", "log").click()
    tab.at("#log", "last line").wait_for()
    tab.at("[role=tab]", "ops").click()
    assert tab.at("#detail .scroll > div").count() == 1
    tab.at("[role=tab]", "generations").click()
    tab.at("#generations td", "Because. 2").first.wait_for()


def test_several_are_told_apart_by_what_differs_and_by_their_answers(tab: Tab) -> None:
    tab.select(0, 1)
    tab.at("#open", "Compare").click()
    tab.at("#config td").first.wait_for()
    rows = [row.locator("td").all_inner_texts() for row in tab.at("#config tbody tr").all()]
    assert rows == [["lr", "1e-2", "2e-3"], ["trainer.args.per_device_train_batch_size", "2", "4"]]
    tab.at("[role=tab]", "generations").click()
    tab.at("#generations td").first.wait_for()
    rows = [row.locator("td").all_inner_texts() for row in tab.at("#generations tbody tr").all()]
    assert rows[1] == ["Why 1?", "It is so.", "Because. 2 chunk 2", f"So {MARKUP} 2 chunk 2"]
    tab.at("[aria-label=chunk]").select_option("1")
    tab.at("#generations td", "Because. 1").first.wait_for()


def test_numbers_are_short_and_lose_nothing_that_counts(tab: Tab) -> None:
    load = "const {shown} = await import(new URL('static/words.js', root.baseURI));"
    values = "[0.0005, 2e-5, 1.23456e-7, -3e-4, 1234567.5, 3, 12345678, 0.1, 3.23349, 0, 'auto', null, [1, 2]]"
    wanted = [
        "5e-4",
        "2e-5",
        "1.235e-7",
        "-3e-4",
        "1.235e+6",
        "3",
        "12345678",
        "0.1",
        "3.233",
        "0",
        "auto",
        "",
        "[1,2]",
    ]
    assert tab.at("html").evaluate(f"async root => {{ {load} return {values}.map(shown); }}") == wanted


def test_names_and_texts_are_no_markup(tab: Tab) -> None:
    """Whatever others write into an experiment is text here: overrides, metrics, configurations, logs, answers."""
    assert MARKUP in tab.row(4).locator("[data-key=overrides]").inner_text()
    assert tab.at("#experiment option").all_inner_texts() == ["one & <b>#2"]
    tab.at("#metric").select_option(MARKUP)
    tab.select(0, 1)
    tab.at("#open").click()
    tab.at("[role=tab]", "generations").click()
    tab.at("#generations td", MARKUP).first.wait_for()
    tab.select(0)
    for name in ("log", "configuration"):
        tab.at("[role=tab]", name).click()
        tab.at("#detail", MARKUP).wait_for()
    assert tab.at("img").count() == tab.at("#runs b").count() == 0
    assert tab.page.title() != "taken" and tab.at("html").evaluate("() => document.title") != "taken"


def test_an_experiment_may_go_and_another_come(tmp_path: Path, open_page: Any) -> None:
    """Of one that has only begun nobody says when it will end."""
    root = tmp_path / "outputs" / "one"
    (root / "control").mkdir(parents=True)
    StatusFile(root / "control").write(Status(str(root), (RunStatus(0, "queued", ("lr=1",)),)))
    with served(root.parent) as address:
        tab = Tab(open_page(), address)
        assert "1 run, 1 to train · ranked by loss" in tab.at("header").inner_text()
        shutil.rmtree(root)
        tab.at("header", "No experiment of rfflow lies below this logdir").wait_for()
        make_experiment(root.parent / "two")
        tab.page.reload()
        tab.row(1).wait_for()
        make_experiment(root.parent / "three")
        shutil.rmtree(root.parent / "two")
        tab.at("#experiment option[value=three]").wait_for(state="attached")
        tab.row(1).wait_for()
        assert tab.at("#experiment").input_value() == "three" and tab.at("header .bad").count() == 0
        assert not tab.errors


# --- how it looks -----------------------------------------------------------------------------------------------------

PALE = (Path(__file__).parent / "pale.js").read_text()
FOCUSED = """() => {
  const node = document.activeElement;
  return node === document.body ? '' : node.id || node.dataset.run || node.getAttribute('aria-label') || node.innerText;
}"""
"""What has the keyboard, inside the frame."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_can_be_read_in_tensorboards_two_themes_and_900_pixels(address: str, open_page: Any, scheme: str) -> None:
    """TensorBoard's own theme is taken over; nothing has to be scrolled sideways but what lies in the table."""
    tab = Tab(open_page(900, 900, color_scheme=scheme), address)
    tab.at("html.dark" if scheme == "dark" else "html:not(.dark)").wait_for()
    ground = "() => getComputedStyle(document.body).backgroundColor"
    assert tab.at("html").evaluate(ground) == {"light": "rgb(255, 255, 255)", "dark": "rgb(48, 48, 48)"}[scheme]
    tab.select(0, 1)
    tab.at("#filter").fill("nothing>1")
    tab.at("#open").click()
    tab.at("[role=tab]", "generations").click()
    tab.at("#generations td").first.wait_for()
    tab.at("#filter").fill("")
    assert tab.at("body").evaluate(PALE) == []
    wide = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert tab.at("html").evaluate(wide) <= 0
    tab.select(0)
    tab.at("#clone").click()
    tab.at("#overrides").fill("lr=1,,")
    tab.at("#check.current .bad").wait_for()
    assert tab.at("body").evaluate(PALE) == []
    assert tab.at("dialog").bounding_box()["width"] <= 900
    assert not tab.errors


def test_the_tab_key_comes_to_everything_and_to_the_table_once(tab: Tab) -> None:
    """And the arrows go through it; nothing here needs a mouse."""
    tab.at("#experiment").focus()
    stops = []
    while (now := tab.at("html").evaluate(FOCUSED)) and len(stops) < 60:
        stops.append(now)
        tab.page.keyboard.press("Tab")
    wanted = ["experiment", "filter", "Columns", "select all", "2", "metric", "axis", "smoothing", "logx", "logy"]
    assert [stop for stop in stops if stop in wanted] == wanted, "the best run stands for all of them"
    assert not {"0", "1", "3", "4"} & set(stops) and "run" in stops, "heads are buttons"

    tab.row(2).focus()
    for key, run in (("ArrowDown", "1"), ("End", "4"), ("ArrowDown", "4"), ("ArrowUp", "3"), ("Home", "2")):
        tab.page.keyboard.press(key)
        assert tab.at("html").evaluate(FOCUSED) == run
    tab.page.keyboard.press("Shift+ArrowDown")
    assert tab.at("#selection", "run 1-2 selected").count() == 1
    tab.page.keyboard.press("p")
    tab.at("tr.pinned[data-run='1']").wait_for()
    assert order(tab)[0] == "1" and f"{MINUS}0.25" in tab.row(2).locator("[data-key=objective]").inner_text()
    tab.page.keyboard.press("Space")
    assert tab.at("#selection", "run 2 selected").count() == 1
    tab.page.keyboard.press("Enter")
    tab.at("#config tbody tr").first.wait_for()
    tab.at("#close").focus()
    tab.page.keyboard.press("Escape")
    tab.at("#detail").wait_for(state="detached")
