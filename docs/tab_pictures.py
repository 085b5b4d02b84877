"""Makes the pictures of docs/tab.md from an experiment that is there. Nothing of rfflow needs this script.

    python -m docs.tab_pictures outputs/sft/<time> docs/pictures/tab

It starts `rfflow ui` and takes pictures of the tab with the system's Chromium by Playwright, which the extra `dev` has.
What it types into the dialog for clones it does not send.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.dashboard.browsing import Tab, chromium, served


def take(experiment: Path, prefix: str) -> None:
    """Take pictures of the page, of the dialog that makes clones, and of two runs compared."""
    from playwright.sync_api import sync_playwright

    with served(experiment) as address, sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        tab = Tab(browser.new_page(viewport={"width": 1360, "height": 620}), address)
        tab.at("#plot canvas").wait_for()
        tab.at("#metric").select_option("loss")
        tab.at("#evaluations").check()
        tab.page.mouse.move(5, 5)
        tab.page.wait_for_timeout(2000)
        tab.page.screenshot(path=f"{prefix}.png")
        tab.select(0)
        if tab.at("#clone").is_enabled():
            tab.at("#clone").click()
            tab.at("#overrides").fill("lr=2e-3,5e-4")
            tab.at("#warm").check()
            tab.at("#check.current .good").wait_for()
            tab.page.screenshot(path=f"{prefix}-clone.png")
            tab.at("dialog button", "Cancel").click()
        tab.select(0, 1)
        tab.at("#open").click()
        tab.at("[role=tab]", "generations").click()
        tab.at("#generations td").first.wait_for()
        tab.at("#detail").screenshot(path=f"{prefix}-generations.png")
        browser.close()


if __name__ == "__main__":
    take(Path(sys.argv[1]), sys.argv[2])
