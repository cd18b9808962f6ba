"""Makes the pictures of `report.md`: the HTML report in a browser, the text report in a terminal.

Run it with ``nox -s screenshots``; it needs a Chromium. Without an argument it runs the quick start
once and shows its report; give it a ``report.json`` to show that one instead.
"""

from __future__ import annotations

import argparse
import html
import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from optkit.report import Report

STATIC = Path(__file__).parent / "_static"
WIDTHS = {"desktop": 1280, "phone": 390}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
LIMIT = 300_000  # bytes of a picture; the pages that show them should load quickly
LONGEST = 3000  # pixels; a phone's page goes on for longer than a page of documentation should

TERMINAL = """<!doctype html>
<meta charset="utf-8">
<style>
body {{ margin: 0; background: #15181c; color: #dfe3e8; width: max-content; }}
pre {{ margin: 0; padding: 16px 20px; font: 13px/1.35 "DejaVu Sans Mono", monospace; }}
</style>
<pre>{text}</pre>
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", nargs="?", type=Path, help="a report.json to show")
    given = parser.parse_args().report
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit(f"No browser found. Looked for: {', '.join(BROWSERS)}.")
    with tempfile.TemporaryDirectory(prefix="optkit-screenshots-") as folder:
        out = Path(folder)
        if given is None:
            subprocess.run([sys.executable, "-m", "optkit", "--out", folder], check=True)
        report = Report.from_json(given or out / "report.json")
        report.to_html(out / "page.html")
        (out / "terminal.html").write_text(TERMINAL.format(text=html.escape(str(report))), "utf-8")
        with sync_playwright() as driver:
            opened = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"])
            for name, width in WIDTHS.items():
                for scheme in ("light", "dark"):
                    page = opened.new_page(
                        viewport={"width": width, "height": 900}, color_scheme=scheme
                    )
                    page.goto((out / "page.html").as_uri())
                    save(page, STATIC / f"report-{name}-{scheme}.png")
            page = opened.new_page(viewport={"width": 400, "height": 100})
            page.goto((out / "terminal.html").as_uri())
            save(page.locator("pre"), STATIC / "report-terminal.png")
            opened.close()


def save(shown: Any, path: Path) -> None:
    """A screenshot in few colours, which text and plots do not suffer from."""
    whole = {"full_page": True} if hasattr(shown, "goto") else {}
    picture = Image.open(io.BytesIO(shown.screenshot(**whole))).convert("RGB")
    picture = picture.crop((0, 0, picture.width, min(picture.height, LONGEST)))
    picture.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
    size = path.stat().st_size
    print(f"{path.name}: {picture.width} x {picture.height}, {size:,} bytes")
    if size > LIMIT:
        sys.exit(f"{path.name} takes {size:,} bytes, more than {LIMIT:,}.")


if __name__ == "__main__":
    main()
