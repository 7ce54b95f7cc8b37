"""Fixtures of the system tests: one running Quintet per module, and clients for it."""
import openai
import pytest

from engine import SLOW, Engine


@pytest.fixture(scope="module")
def server():
    with Engine() as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=30 * SLOW) as made:
        yield made
