"""The HTML report as people see it: rendered by a real browser, at two widths, light and dark."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from report_samples import full_report, hostile_report, minimal_report

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: the report is not seen by a browser"
)

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
REPORTS = {"full": full_report, "hostile": hostile_report, "minimal": minimal_report}
PHONE, DESKTOP = 390, 1280

# Contrast as the WCAG define it, of all text in view with its own opacity and those around it,
# on the first ground that is opaque.
CONTRAST = """() => {
  const parse = text => {
    const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
    return [r, g, b, a];
  };
  const over = ([r, g, b, a], [x, y, z]) =>
    [r * a + x * (1 - a), g * a + y * (1 - a), b * a + z * (1 - a), 1];
  const luminance = colour => {
    const [r, g, b] = colour.slice(0, 3).map(value => {
      const share = value / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !element.checkVisibility() || element.closest("style")) continue;
    let opacity = 1;
    const grounds = [];
    for (let at = element; at; at = at.parentElement) {
      opacity *= Number(getComputedStyle(at).opacity);
      grounds.unshift(parse(getComputedStyle(at).backgroundColor));
    }
    const ground = grounds.reduce((below, above) => over(above, below), [255, 255, 255, 1]);
    const style = getComputedStyle(element);
    const [r, g, b, a] = parse(element.closest("svg") ? style.fill : style.color);
    const [one, two] = [luminance(over([r, g, b, a * opacity], ground)), luminance(ground)];
    const ratio = (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
    found.push([ratio, element.textContent.trim().slice(0, 40)]);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser is installed (looked for {', '.join(BROWSERS)})")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    for name, make in REPORTS.items():
        make().to_html(folder / f"{name}.html")
    return {name: folder / f"{name}.html" for name in REPORTS}


class Seen:
    """A page that was opened, with everything that it should not have done."""

    def __init__(self, browser: Any, path: Path, *, width: int = DESKTOP, scheme: str = "light"):
        self.wrong: list[str] = []
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme
        )
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self.wrong.append(f"console: {message.text}"))
        self.page.on("pageerror", lambda error: self.wrong.append(f"script: {error}"))
        self.page.on("dialog", lambda dialog: self.wrong.append(f"dialog: {dialog.message}"))
        address = path.as_uri()

        def only_the_file(route: Any) -> None:
            if route.request.url == address:
                route.continue_()
            else:
                self.wrong.append(f"request: {route.request.url}")
                route.abort()

        self.page.route("**/*", only_the_file)
        self.page.goto(address)

    def __enter__(self) -> Seen:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def pixels(self) -> np.ndarray:
        """The whole page, shape ``(height, width, 3)``."""
        picture = self.page.screenshot(full_page=True)
        return np.asarray(matplotlib.image.imread(io.BytesIO(picture), format="png"))[..., :3]


def colours(pixels: np.ndarray) -> int:
    red, green, blue = np.moveaxis((pixels * 255).astype("uint32"), -1, 0)
    return len(np.unique(red << 16 | green << 8 | blue))


@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_the_page_shows_and_does_nothing_else(browser, files, name, width):
    pictures = {}
    for scheme in ("light", "dark"):
        with Seen(browser, files[name], width=width, scheme=scheme) as seen:
            pictures[scheme] = seen.pixels()
            scrolled, room = seen.page.evaluate(
                "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
            )
            assert scrolled <= room == width, "the page itself scrolls sideways"
            assert seen.page.evaluate("document.scripts.length") == 0
            assert seen.wrong == []
    for picture in pictures.values():
        assert picture.shape[1] == width
        assert colours(picture) > (25 if name == "minimal" else 100)
    assert pictures["light"].mean() > 0.8
    assert pictures["dark"].mean() < 0.3


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["full", "hostile"])
def test_all_text_can_be_read(browser, files, name, scheme):
    with Seen(browser, files[name], scheme=scheme) as seen:
        seen.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        found = seen.page.evaluate(CONTRAST)
    assert len(found) > 100
    assert [item for item in found if item[0] < 4.5] == []


def test_what_is_folded_opens_without_a_script(browser, files):
    with Seen(browser, files["full"], width=PHONE) as seen:
        layers = seen.page.locator("details", has_text="Layers, final")
        assert not layers.locator("table").is_visible()
        layers.locator("summary").click()
        assert layers.locator("table").is_visible()
        assert layers.locator("tbody tr").count() == 3
        assert seen.wrong == []


def test_figures_in_the_page_are_those_of_the_report(browser, files):
    with Seen(browser, files["full"]) as seen:
        text = seen.page.inner_text("main")
        rows = seen.page.locator("table.stages tbody tr").all_inner_texts()
    for part in (
        "4.00 times smaller, 4.00 times faster; accuracy: no measurable change; 2 of 5 goals met",
        "96.00 % → 95.60 % on test (n = 1000)",
        "1 MB → 250 kB",
        "5 → 1.25 ms",
        "600 → 2400 requests/s",
        "missed by 0.05",
        "1 core, 512 MB of memory",
    ):
        assert part in text, part
    names = ["baseline", "as tflite float32", "Augment", "FineTune", "Prune", "DistillTo"]
    assert len(rows) == len(names) + 2
    for row, name in zip(rows, names, strict=False):
        assert name in row
    assert "rolled back" in rows[4]


def test_names_of_users_stay_text(browser, files):
    with Seen(browser, files["hostile"]) as seen:
        assert seen.page.locator("main img, main script").count() == 0
        names = seen.page.locator("table.stages tbody th bdi").all_inner_texts()
        assert "<script>alert('x')</script>" in names
        assert seen.wrong == []


def test_on_paper_everything_is_open_and_light(browser, files):
    with Seen(browser, files["full"], scheme="dark") as seen:
        seen.page.emulate_media(media="print", color_scheme="dark")
        assert seen.page.evaluate("getComputedStyle(document.body).backgroundColor") == (
            "rgb(255, 255, 255)"
        )
        table = seen.page.locator("details", has_text="Layers, final").locator("table")
        assert table.evaluate("table => table.checkVisibility({contentVisibilityAuto: true})")
        assert table.bounding_box()["height"] > 50
        assert len(seen.page.pdf()) > 20_000


def test_the_page_is_small(files):
    for path in files.values():
        assert path.stat().st_size < 500_000
