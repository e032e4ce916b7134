"""The pack in the real frontend of the newest host."""

import json
from collections.abc import Iterator

import pytest
from graphs import find, quick_start

from scripts.environment import NEWEST, ROOT
from scripts.host import PACK, Host

WORKFLOWS = ROOT / "workflows"
RENDERERS = pytest.mark.parametrize("nodes_2", [False, True], ids=["classic", "nodes-2.0"])

pytestmark = pytest.mark.parametrize("host", [NEWEST], indirect=True)


def workflow(name: str) -> dict:
    return json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture
def frontend(host: Host, page: "playwright.sync_api.Page") -> Iterator["Frontend"]:  # noqa: F821
    from scripts.browser import Frontend

    frontend = Frontend(page, host.url)
    frontend.open()
    yield frontend
    assert frontend.problems == []


def test_template_address_opens_the_quick_start(frontend: "Frontend") -> None:  # noqa: F821
    """What `scripts/demo.py --open` hands to the browser."""
    frontend.open(f"?template=loopy_quick_start&source={PACK}")
    frontend.settle()
    assert frontend.prompt() == quick_start()


@pytest.mark.parametrize("name", sorted(path.stem for path in WORKFLOWS.glob("*.json")))
def test_workflow_loads_with_every_node(frontend: "Frontend", name: str) -> None:  # noqa: F821
    frontend.load(workflow(name))
    assert frontend.missing_nodes() == []
    assert len(frontend.prompt()) >= 8


@RENDERERS
def test_quick_start_is_the_graph_that_the_tests_run(
    frontend: "Frontend", nodes_2: bool  # noqa: F821
) -> None:
    frontend.set("Comfy.VueNodes.Enabled", nodes_2)
    frontend.load(workflow("loopy_quick_start"))
    assert frontend.prompt() == quick_start()


@RENDERERS
def test_saving_and_loading_keeps_the_graph(
    frontend: "Frontend", nodes_2: bool  # noqa: F821
) -> None:
    frontend.set("Comfy.VueNodes.Enabled", nodes_2)
    frontend.load(workflow("loopy_portrait"))
    before = frontend.prompt()
    frontend.load(frontend.workflow())
    assert frontend.prompt() == before


@RENDERERS
def test_run_shows_the_video_in_its_node(
    frontend: "Frontend", nodes_2: bool  # noqa: F821
) -> None:
    frontend.set("Comfy.VueNodes.Enabled", nodes_2)
    frontend.load(workflow("loopy_quick_start"))
    frontend.set_widget(find(quick_start(), "LoopySampler"), "steps", 2)
    frontend.set_widget(find(quick_start(), "LoopySampler"), "frames", 12)
    frontend.run()
    frontend.page.locator("video").first.wait_for(state="attached", timeout=10_000)
