"""Who may do what: API keys, and administrators' own listener."""
import http.client
import os
import pathlib
import re
import signal
import socket
import subprocess

import pytest
from engine import BUILD, ROOT, Engine, free_port

USER, ADMIN, OTHER = "user-key-0123456789", "admin-key-0123456789", "other-key-0123456789"
PUBLIC = ["/health", "/ready", "/ping", "/version"]
OF_USERS = ["/v1/models", "/model_info", "/server_info", "/metrics", "/openapi.json"]
OF_ADMINS = ["/services", "/services/memory", "/cache/stats", "/config", "/debug/latency_stats", "/policies/scheduling"]


def ask(port, method, path, key=None, body=None, host="127.0.0.1"):
    """(status, headers, text)"""
    connection = http.client.HTTPConnection(host, port, timeout=30)
    headers = {"content-type": "application/json"}
    if key:
        headers["authorization"] = f"Bearer {key}"
    try:
        connection.request(method, path, body, headers)
        reply = connection.getresponse()
        return reply.status, reply.headers, reply.read().decode()
    finally:
        connection.close()


@pytest.fixture
def keys(tmp_path):
    path = tmp_path / "keys"
    path.touch(0o600)
    path.write_text(f"# who may\nalice user {USER}\nroot admin {ADMIN}\n")
    return path


@pytest.mark.parametrize("arguments", [(), ("--inproc",)], ids=["ipc", "inproc"])
def test_keys_open_what_their_scope_says_and_are_read_again(keys, arguments):
    with Engine(*arguments, frontend__api_keys_file=keys) as engine:
        for path in PUBLIC:
            assert ask(engine.port, "GET", path)[0] == 200, path
        for path in OF_USERS:
            assert [ask(engine.port, "GET", path, key)[0] for key in (None, OTHER, USER, ADMIN)] == [401, 401, 200, 200]
        for path in OF_ADMINS:
            assert [ask(engine.port, "GET", path, key)[0] for key in (None, OTHER, USER, ADMIN)] == [401, 401, 403, 200]
        body = '{"prompt": [1, 2, 3], "max_tokens": 2}'
        assert [ask(engine.port, "POST", "/v1/completions", key, body)[0] for key in (None, OTHER, USER, ADMIN)] == \
            [401, 401, 200, 200]
        assert ask(engine.port, "DELETE", "/services", USER)[0] == 403    # nothing is told of the route
        status, headers, text = ask(engine.port, "GET", "/services")
        assert headers["www-authenticate"] == 'Bearer realm="quintet"' and "invalid_api_key" in text
        assert 'error="invalid_token"' in ask(engine.port, "GET", "/services", OTHER)[1]["www-authenticate"]
        assert 'scope="admin"' in ask(engine.port, "GET", "/services", USER)[1]["www-authenticate"]
        everybody = '{"abort_all": true}'
        assert [ask(engine.port, "POST", "/abort_request", key, everybody)[0] for key in (USER, ADMIN)] == [403, 200]
        assert ask(engine.port, "POST", "/abort_request", USER, '{"rid": "mine"}')[0] == 200

        log = pathlib.Path(engine.log_path)
        keys.write_text(f"bob user {OTHER}\nroot admin {ADMIN}\n")
        os.kill(engine.process.pid, signal.SIGHUP)
        engine.wait_for(lambda: ask(engine.port, "GET", "/v1/models", OTHER)[0] == 200, 10, "the new keys")
        assert ask(engine.port, "GET", "/v1/models", USER)[0] == 401
        keys.write_text("bob user short\n")
        os.kill(engine.process.pid, signal.SIGHUP)
        engine.wait_for(lambda: "the old API keys stay in force" in log.read_text(), 10, "the refusal of the bad file")
        assert ask(engine.port, "GET", "/v1/models", OTHER)[0] == 200
        assert not any(key in log.read_text() for key in (USER, ADMIN, OTHER))
        assert not any(key in ask(engine.port, "GET", "/config", ADMIN)[2] for key in (USER, ADMIN, OTHER))


def test_keys_of_the_openai_client_and_the_commands(keys):
    import openai
    with Engine(frontend__api_keys_file=keys) as engine:
        with openai.OpenAI(base_url=engine.url + "/v1", api_key=USER, max_retries=0) as client:
            assert client.completions.create(model="default", prompt=[1, 2], max_tokens=2).usage.completion_tokens
        with openai.OpenAI(base_url=engine.url + "/v1", api_key=OTHER, max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError):
                client.models.list()
        for key, good in [(ADMIN, True), (USER, False), ("", False)]:
            ended = subprocess.run([BUILD / "quintet", "status", "--url", engine.url], capture_output=True, text=True,
                                   env={**os.environ, "QUINTET_API_KEY": key}, timeout=30)
            assert (ended.returncode == 0) == good, ended.stderr


@pytest.mark.parametrize("content,words", [
    (None, "keys"), ("", "no key in the file"), (f"alice owner {USER}\n", "keys:1"), ("alice user short\n", "16 to 256"),
])
def test_keys_that_are_none_end_the_start(tmp_path, content, words):
    path = tmp_path / "keys"
    if content is not None:
        path.write_text(content)
    command = [BUILD / "quintet-frontend", "--run-dir", tmp_path, "--set", f"frontend.listen=127.0.0.1:{free_port()}",
               "--set", f"frontend.api_keys_file={path}"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert ended.returncode != 0 and words in ended.stderr and USER not in ended.stderr


def test_keys_in_a_file_that_others_read_are_warned_of(keys):
    keys.chmod(0o644)
    with Engine(frontend__api_keys_file=keys) as engine:
        assert "open to others" in engine.log_path.read_text()


def test_admin_listener_has_all_and_the_other_one_no_admin_routes():
    port = free_port()
    with Engine(frontend__admin_listen=f"127.0.0.1:{port}") as engine:
        for path in PUBLIC + OF_USERS:
            assert [ask(at, "GET", path)[0] for at in (engine.port, port)] == [200, 200], path
        for path in OF_ADMINS:
            assert [ask(at, "GET", path)[0] for at in (engine.port, port)] == [404, 200], path
        assert ask(engine.port, "DELETE", "/services")[0] == 404 and ask(port, "DELETE", "/services")[0] == 405
        assert ask(engine.port, "POST", "/flush_cache")[0] == 404 and ask(port, "POST", "/flush_cache")[0] == 200
        everybody = '{"abort_all": true}'
        assert [ask(at, "POST", "/abort_request", None, everybody)[0] for at in (engine.port, port)] == [403, 200]
        body = '{"prompt": [1, 2, 3], "max_tokens": 2}'
        assert [ask(at, "POST", "/v1/completions", None, body)[0] for at in (engine.port, port)] == [200, 200]


def test_admin_listener_asks_for_keys_too(keys):
    port = free_port()
    with Engine(frontend__admin_listen=f"127.0.0.1:{port}", frontend__api_keys_file=keys) as engine:
        assert [ask(port, "GET", "/services", key)[0] for key in (None, USER, ADMIN)] == [401, 403, 200]
        assert [ask(engine.port, "GET", "/services", key)[0] for key in (None, USER, ADMIN)] == [404, 404, 404]


def test_admin_listener_on_a_unix_socket(tmp_path):
    path = tmp_path / "admin.sock"
    with Engine(frontend__admin_listen=f"unix:{path}"):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(b"GET /services HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert client.makefile("rb").readline().startswith(b"HTTP/1.1 200")


def own_address():
    """An address of this host that is not its loopback, or None."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))    # sends nothing
        except OSError:
            return None
        address = probe.getsockname()[0]
    return None if address.startswith("127.") else address


@pytest.mark.skipif(own_address() is None, reason="this host has no address but its loopback")
def test_admin_routes_without_keys_are_for_this_host():
    port = free_port()
    engine = Engine(frontend__listen=f"0.0.0.0:{port}")
    engine.port = port
    with engine:
        status, _, text = ask(port, "GET", "/services", host=own_address())
        assert status == 403 and "frontend.api_keys_file" in text
        assert ask(port, "GET", "/v1/models", host=own_address())[0] == 200
        assert ask(port, "GET", "/services")[0] == 200


def test_every_route_says_who_may():
    """A row that is not marked would be an administrator's: each is marked on purpose."""
    rows = re.findall(r'^    \{"(/[^"]*)"(.*?)\},', (ROOT / "services/frontend/http/router.c").read_text(), re.S | re.M)
    assert len(rows) > 20
    for path, row in rows:
        assert len(re.findall(r"ACCESS_(ADMIN|USER|PUBLIC)", row)) == 1, path
