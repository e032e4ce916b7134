"""What a person reads when something went wrong, and whether it can be understood."""

import re

import pytest

from scripts.client import Client, Prompt, PromptError

# Words of Python and PyTorch that mean nothing to the person in front of the graph.
PROGRAMMER = re.compile(
    r"Traceback|[A-Z]\w+(Error|Exception)\b|NoneType|torch\.|dtype|\btensors?\b|shape|\bkeys?\b"
    r"|<class|self\.",
    re.IGNORECASE,
)


def complaint(client: Client, prompt: Prompt) -> str:
    """The sentence that a person reads after pressing Run."""
    with pytest.raises(PromptError) as caught:
        client.run(prompt)
    return str(caught.value).split(": ", 1)[1]


def assert_clear(sentence: str, *names: str) -> None:
    assert not PROGRAMMER.search(sentence), sentence
    assert sentence.endswith(".") and "\n" not in sentence and len(sentence) <= 300, sentence
    assert any(name.lower() in sentence.lower() for name in names), sentence
