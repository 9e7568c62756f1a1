"""Somebody before the console: a page of the browser, and what it did that no page of it may do."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from console_site import Site


@dataclass
class Faults:
    """What a page must not do, and did."""

    allowed: list[str] = field(default_factory=list)
    """Patterns of console messages that a test brings about on purpose."""
    found: list[str] = field(default_factory=list)

    def console(self, message: Any) -> None:
        told = f"{message.type}: {message.text}"
        if message.type in ("error", "warning") and not any(re.search(p, told) for p in self.allowed):
            self.found.append(told)

    def request(self, request: Any, origin: str) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in ("blob", "about") and f"{parts.scheme}://{parts.netloc}" != origin:
            self.found.append(f"a request elsewhere: {request.url}")


@dataclass
class Visitor:
    """A page of the console and what it did wrong."""

    page: Any
    site: Site
    faults: Faults

    def open(self, tab: str | None = None, key: str | None = None) -> Any:
        """Open the console with the admin key (or another), and a tab of it."""
        self.page.goto(self.site.with_key() if key is None else self.site.with_key(key))
        self.page.wait_for_selector("main [role=tabpanel]:not([hidden]) h2")
        if tab is not None:
            self.page.click(f"#tab-{tab}")
            self.page.wait_for_selector(f"#{tab} h2")
        return self.page
