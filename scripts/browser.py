"""ComfyUI's real frontend in a headless Chromium, through Playwright."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, Route, sync_playwright

from scripts.client import Prompt
from scripts.environment import NEWEST, SetupError, chromium, get_host
from scripts.host import Host, make_base

Workflow = dict[str, Any]  # what the frontend saves: nodes with places, links, groups

SIZE = {"width": 1600, "height": 900}
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
)
READY = """() => Object.keys(window.LiteGraph?.registered_node_types ?? {}).length > 100
    && window.app?.extensionManager?.workflow?.activeWorkflow?.isLoaded"""
START_MILLISECONDS = 120_000


class Frontend:
    """One browser tab on a host."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.problems: list[str] = []  # what the page's own code failed with
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.route("**/*", self.only_local)

    def only_local(self, route: Route) -> None:
        local = route.request.url.startswith((self.url, "data:", "blob:"))
        route.continue_() if local else route.abort()

    def open(self, query: str = "") -> None:
        """Load the page and wait until every node is known and the first graph is there."""
        self.page.goto(f"{self.url}/{query}", wait_until="domcontentloaded")
        self.page.wait_for_function(READY, timeout=START_MILLISECONDS)

    def load(self, workflow: Workflow) -> None:
        self.page.evaluate("workflow => app.loadGraphData(workflow, true, true, null)", workflow)
        self.settle()

    def load_prompt(self, prompt: Prompt) -> None:
        """Build the graph of an API prompt; the frontend lays it out."""
        self.page.evaluate("prompt => app.loadApiJson(prompt, 'prompt.json')", prompt)
        self.settle()

    def settle(self) -> None:
        """Let the graph be drawn, close what popped up, and show all of it."""
        self.page.wait_for_timeout(1000)
        for _ in range(3):
            self.page.keyboard.press("Escape")
        self.page.evaluate("app.extensionManager.command.execute('Comfy.Canvas.FitView')")
        self.page.wait_for_timeout(1000)

    def set(self, setting: str, value: Any) -> None:
        script = "([setting, value]) => app.extensionManager.setting.set(setting, value)"
        self.page.evaluate(script, [setting, value])

    def missing_nodes(self) -> list[str]:
        """The node types of the graph that no pack provides."""
        return self.page.evaluate(
            "() => app.graph._nodes.map(node => node.type)"
            ".filter(type => !(type in LiteGraph.registered_node_types))"
        )

    def prompt(self) -> Prompt:
        """What the frontend would queue."""
        return self.page.evaluate("async () => (await app.graphToPrompt()).output")

    def set_widget(self, node_id: str, name: str, value: Any) -> None:
        self.page.evaluate(
            "([id, name, value]) => {"
            " const node = app.graph.getNodeById(id) ?? app.graph.getNodeById(Number(id));"
            " node.widgets.find(widget => widget.name === name).value = value }",
            [node_id, name, value],
        )

    def workflow(self) -> Workflow:
        """What the frontend would save."""
        return self.page.evaluate("() => app.graph.serialize()")

    def run(self) -> None:
        """Press Run and wait until the host has nothing more to do."""
        self.page.evaluate("() => app.queuePrompt(0, 1)")
        while self.jobs():
            self.page.wait_for_timeout(500)

    def jobs(self) -> int:
        """Runs that wait or go on."""
        script = "async () => (await (await fetch('/api/prompt')).json()).exec_info.queue_remaining"
        return self.page.evaluate(script)

    def screenshot(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=path)


@contextmanager
def open_browser(executable: str) -> Iterator[Page]:
    """A fresh profile: no settings, no open workflows, no first-run dialogs dismissed."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(FLAGS))
        try:
            yield browser.new_page(viewport=SIZE)
        finally:
            browser.close()


@contextmanager
def open_frontend(base: Path) -> Iterator[Frontend]:
    """The page of the newest host, which keeps its files in `base`."""
    executable = chromium()
    if executable is None:
        raise SetupError("No Chromium found; install it (apt-get install chromium) or set CHROMIUM.")
    host = Host(Path(sys.executable), get_host(NEWEST), base / "comfyui.log", make_base(base))
    with host, open_browser(executable) as page:
        frontend = Frontend(page, host.url)
        frontend.open()
        yield frontend
