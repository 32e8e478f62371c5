"""The page in a real browser, where there is one."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.sampler.report.page import write_report
from tests.deploy.sampler.report.made import NASTY, diagnosed, made_run

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH (Debian's is `apt-get install chromium`)")
PHONE, DESK = 360, 1200
DARK, LIGHT = 0, 1
LOOK = """
<!doctype html><meta charset="utf-8"><body><script>
const found = {};
for (const width of [%s]) {
  const frame = document.createElement("iframe");
  frame.width = width; frame.height = 4000; frame.src = %s;
  frame.onload = () => {
    const page = frame.contentDocument, boxes = [...page.querySelectorAll("main > .plots svg, details[open] svg")]
      .map(svg => svg.getBoundingClientRect());
    found[width] = {
      title: page.title,
      wide: page.documentElement.scrollWidth,
      plots: boxes.length,
      least: Math.min(...boxes.map(box => Math.min(box.width, box.height))),
      most: Math.max(...boxes.map(box => box.right)),
      scripts: page.querySelectorAll("script, [onerror], main > img").length,
      text: page.body.textContent,
    };
    document.body.dataset.found = JSON.stringify(found);
  };
  document.body.append(frame);
}
</script>
"""
"""Looks at a page from outside, as the page itself lets no script run."""


def chromium(url: str, *options: str) -> tuple[str, list[str]]:
    """What it prints of a page, and the console's lines."""
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    # What a browser does on its own account takes time, and asks the network.
    command += ["--disable-extensions", "--disable-background-networking", "--no-first-run", "--hide-scrollbars"]
    done = subprocess.run([*command, *options, url], capture_output=True, text=True, timeout=300, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def looked_at(page: Path) -> tuple[dict[str, Any], list[str]]:
    """What a browser makes of a page, by the width of its window, and what its console says."""
    looking = page.with_name("look.html")
    looking.write_text(LOOK % (f"{PHONE}, {DESK}", json.dumps(page.as_uri())), encoding="utf-8")
    printed, console = chromium(
        looking.as_uri(), "--allow-file-access-from-files", "--virtual-time-budget=20000", "--dump-dom"
    )
    return json.loads(html.unescape(re.search('data-found="([^"]*)"', printed)[1])), console  # type: ignore[index]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run whose every text is hostile."""
    folder = tmp_path_factory.mktemp("browser")
    return write_report([diagnosed(made_run(folder / "run", text=NASTY), queries=3, text=NASTY)])


def test_the_page_shows_its_plots_fits_a_phone_and_has_nothing_to_complain_of(page: Path) -> None:
    found, console = looked_at(page)
    assert console == []
    for width in (PHONE, DESK):
        seen = found[str(width)]
        # Eight curves, one of all queries, five of the first query.
        assert seen["plots"] == 14 and seen["least"] > 50, seen
        assert seen["wide"] <= width and seen["most"] <= width
        assert seen["scripts"] == 0
        assert "</script><img src=x onerror=alert(1)>" in seen["text"]


def test_a_page_that_asks_for_something_is_complained_of(page: Path) -> None:
    """So that an empty console means something."""
    asking = page.with_name("asking.html")
    head = page.read_text(encoding="utf-8").partition("<main>")[0]
    asking.write_text(f'{head}<img src="x.png"><script>1</script></body></html>', encoding="utf-8")
    _, console = chromium(asking.as_uri(), "--dump-dom")
    assert len([line for line in console if "Content Security Policy" in line]) == 2


def test_the_plots_are_seen_in_the_dark_and_in_the_light(page: Path) -> None:
    from matplotlib.image import imread

    for theme, background, series in ((DARK, 0x15171B, 0x6EA8FE), (LIGHT, 0xFBFBFA, 0x2563C9)):
        shot = page.with_name(f"{theme}.png")
        chromium(
            page.as_uri(),
            f"--blink-settings=preferredColorScheme={theme}",
            f"--screenshot={shot}",
            "--window-size=1200,3600",
        )
        pixels = (np.asarray(imread(shot))[..., :3] * 255).round().astype(np.int64)
        colors = pixels @ np.array([65536, 256, 1])
        assert (colors == background).mean() > 0.2
        # The bars of the histogram of weights alone are more than that.
        assert (colors == series).sum() > 500
