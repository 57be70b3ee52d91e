"""Requests made up from the server's own OpenAPI document by schemathesis, against the real server: none may end in a 5xx,
and every answer must be one that the document allows. By hand more of them, with other seeds:

    schemathesis run http://HOST/openapi.json -H 'authorization: Bearer KEY' --max-examples 200
"""

import os
import socket
import subprocess
import sys
import time

import httpx
import pytest

BINARY, MODELS = os.environ.get("MINTAGE_BIN"), os.environ.get("MINTAGE_TEST_MODELS")
KEY = "sk-mint-schema-0123456789abcdef0123456789abcd"
START_S = 120
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
ADMINISTRATION = "^/(admin/|v1/organization)"
# The same routes once more, under other prefixes.
MIRRORS = "^/(compatible-mode|apps)/"

pytestmark = pytest.mark.skipif(not (BINARY and MODELS), reason="MINTAGE_BIN or MINTAGE_TEST_MODELS is not set")


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A server whose answers are two tokens at most, and keys of a project and of the operator."""
    folder = tmp_path_factory.mktemp("schema")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    model = os.path.join(MODELS, "smollm2-135m-instruct-q4_1.gguf")
    config = folder / "mintage.toml"
    config.write_text(f'''
data_dir = "{folder}/data"
[server]
listen = "127.0.0.1:{port}"
max_output_tokens = 2
[engine]
context_tokens = 256
kv_cache_mib = 64
[[model]]
source = "{model}"
name = "small"
''')
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MINTAGE_")}
    environment["MINTAGE_BOOTSTRAP_KEY"] = KEY
    command = [BINARY, "--config", str(config)]
    operator = subprocess.run([*command, "key", "create", "root", "--operator"], env=environment, text=True,
                              capture_output=True, check=True).stdout.strip()
    url = f"http://127.0.0.1:{port}"
    with open(folder / "server.log", "w") as log:
        server = subprocess.Popen([*command, "serve"], env=environment, stdout=log, stderr=log)
    try:
        until = time.monotonic() + START_S
        while True:
            assert server.poll() is None and time.monotonic() < until, (folder / "server.log").read_text()[-3000:]
            try:
                if httpx.get(url + "/readyz").status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.1)
        yield url, KEY, operator
        assert server.poll() is None, "the server ended"
    finally:
        server.terminate()
        server.wait(60)


def run(url, key, *which):
    program = os.path.join(os.path.dirname(sys.executable), "schemathesis")
    command = [program, "run", url + "/openapi.json", "-H", f"authorization: Bearer {key}", "--checks", CHECKS,
               "--phases", "coverage,fuzzing", "--max-examples", os.environ.get("MINTAGE_SCHEMA_EXAMPLES", "10"),
               "--generation-deterministic", "--request-timeout", "60", "--no-color",
               "--suppress-health-check", "all", *which]
    done = subprocess.run(command, text=True, capture_output=True, timeout=900)
    print(done.stdout[-4000:])
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-3000:]


def test_dialects_answer_as_described(house):
    url, key, _ = house
    run(url, key, "--exclude-path-regex", f"{ADMINISTRATION}|{MIRRORS}")


def test_administration_answers_as_described(house):
    url, _, operator = house
    run(url, operator, "--include-path-regex", ADMINISTRATION)
