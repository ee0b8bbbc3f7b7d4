"""Pages in a real browser."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Browser, Page


def opened(browser: Browser, report: Path, width: int = 1000, scheme: str = "light") -> tuple[Page, list[str]]:
    """The page, drawn, and what its console, its errors and its requests say to complain of."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # pyright: ignore
    said: list[str] = []
    page.set_default_timeout(60_000)
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if request.url.startswith("http") else None)
    page.goto(report.as_uri())
    page.wait_for_selector("html[data-drawn]")
    return page, said
