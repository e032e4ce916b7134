"""The pack in the real frontend of the newest host."""

import json
from collections.abc import Iterator

import pytest
from graphs import bare, find, inputs, quick_start

from scripts.environment import NEWEST, ROOT, chromium
from scripts.host import PACK, Host

pytest.importorskip("playwright", reason="Playwright is missing: pip install playwright.")
from scripts.browser import Frontend, Workflow, open_browser  # noqa: E402

WORKFLOWS = ROOT / "workflows"
PROMPTS = ROOT / "tests" / "workflows"
RENDERERS = pytest.mark.parametrize("nodes_2", [False, True], ids=["classic", "nodes-2.0"])

pytestmark = pytest.mark.parametrize("host", [NEWEST], indirect=True)


def workflow(name: str) -> Workflow:
    return json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(host: Host) -> Iterator[Frontend]:
    executable = chromium()
    if executable is None:
        pytest.skip("No Chromium found: install it (apt-get install chromium) or set CHROMIUM.")
    with open_browser(executable) as tab:
        frontend = Frontend(tab, host.url)
        frontend.open()
        yield frontend


@pytest.fixture
def frontend(page: Frontend) -> Iterator[Frontend]:
    """The page of all tests here; none may leave an error in it."""
    page.problems.clear()
    yield page
    assert page.problems == []


def test_template_address_opens_the_quick_start(frontend: Frontend) -> None:
    """What `scripts/demo.py --open` hands to the browser."""
    frontend.open(f"?template=loopy_quick_start&source={PACK}")
    frontend.settle()
    assert bare(frontend.prompt()) == bare(quick_start())


@pytest.mark.parametrize("name", sorted(path.stem for path in WORKFLOWS.glob("*.json")))
def test_workflow_loads_with_every_node(frontend: Frontend, name: str) -> None:
    frontend.load(workflow(name))
    assert frontend.missing_nodes() == []
    stored = f"{name.removeprefix('loopy_')}_api.json"
    assert bare(frontend.prompt()) == bare(json.loads((PROMPTS / stored).read_text()))


@RENDERERS
def test_graph_from_before_adapters_gets_none(frontend: Frontend, nodes_2: bool) -> None:
    """Inputs that came later are missing in the file: in its list of slots and in its list of values."""
    frontend.set("Comfy.VueNodes.Enabled", nodes_2)
    old = workflow("loopy_quick_start")
    [loader] = [node for node in old["nodes"] if node["type"] == "LoopyLoadModel"]
    loader["inputs"], loader["widgets_values"] = loader["inputs"][:2], loader["widgets_values"][:2]
    frontend.load(old)
    assert inputs(frontend.prompt(), "LoopyLoadModel") == {
        "model_name": "loopy-puppet.safetensors",
        "weight_dtype": "default",
        "adapter": "none",
        "adapter_strength": 1,
    }


@RENDERERS
def test_quick_start_is_the_graph_that_the_tests_run(frontend: Frontend, nodes_2: bool) -> None:
    frontend.set("Comfy.VueNodes.Enabled", nodes_2)
    frontend.load(workflow("loopy_quick_start"))
    assert bare(frontend.prompt()) == bare(quick_start())


@RENDERERS
def test_saving_and_loading_keeps_the_graph(frontend: Frontend, nodes_2: bool) -> None:
    frontend.set("Comfy.VueNodes.Enabled", nodes_2)
    frontend.load(workflow("loopy_portrait"))
    before = frontend.prompt()
    frontend.load(frontend.workflow())
    assert frontend.prompt() == before


@RENDERERS
def test_run_shows_the_video_in_its_node(frontend: Frontend, nodes_2: bool) -> None:
    frontend.set("Comfy.VueNodes.Enabled", nodes_2)
    frontend.load(workflow("loopy_quick_start"))
    frontend.set_widget(find(quick_start(), "LoopySampler"), "steps", 2)
    frontend.set_widget(find(quick_start(), "LoopySampler"), "frames", 12)
    frontend.run()
    frontend.page.locator("video").first.wait_for(state="attached", timeout=10_000)
