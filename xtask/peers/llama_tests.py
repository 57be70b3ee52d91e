#!/usr/bin/env python3
"""llama.cpp's own server tests against this server, in their external mode; the tests themselves stay where they are.

    LLAMA_BIN=…/llama.cpp/build/bin MINTAGE_BIN=target/release/mintage MINTAGE_TEST_MODELS=target/ci/models \\
        python3 xtask/peers/llama_tests.py [--model 0.5B] [--json target/llama-tests.json] …/llama.cpp/tools/server/tests \\
        [-- --timeout=8, and other arguments for pytest]

The tests are llama.cpp's `tools/server/tests/unit` (the source archive of the package `llama-cpp-python` holds them under
`vendor/llama.cpp`); install their `requirements.txt` first. Between them and the server stands an adapter, because they speak
to a server without keys, with one model, and with OpenAI's paths at the root: it adds the key, puts the model's name where it
is missing or another's, and `/v1` before the path. Nothing else is changed: what a test says of the answer holds or does not.

Most of the tests expect the words of a model of 260,000 parameters, or a server started with other options. So llama-server
runs the same tests in the same way with the same model: what it passes is what can be asked of another server.
"""

import argparse
import collections
import http.client
import http.server
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import urllib.parse
import urllib.request
import xml.etree.ElementTree

import speed

# Files about what any server of these protocols has. Of the others each is about llama.cpp's own: slots, adapters, images,
# its router, its web interface, plug-ins, Google's and its own metrics.
FILES = ("test_basic.py", "test_chat_completion.py", "test_compat_anthropic.py", "test_completion.py", "test_ignore_eos.py",
         "test_infill.py", "test_security.py", "test_stream.py", "test_template.py", "test_tokenize.py", "test_tool_call.py")
# Paths that the server has at its root, too.
ROOT = ("/v1", "/api", "/tokenize", "/detokenize", "/health", "/metrics", "/readyz")
PORT = 18470
TIMEOUT_S = 60
# Of an answer of llama-server, where a test sets no end.
MOST_TOKENS = 256


class Adapter(http.server.BaseHTTPRequestHandler):
    """Passes a request on, with the key, the model and the path that the server wants."""

    protocol_version = "HTTP/1.1"
    upstream, model, root = "", "", ROOT

    def log_message(self, *_):
        pass

    def answer(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        try:
            fields = json.loads(body)
            if isinstance(fields, dict):
                fields["model"] = self.model
                body = json.dumps(fields).encode()
        except ValueError:
            pass
        path = self.path if self.path.startswith(self.root) else "/v1" + self.path
        dropped = ("host", "content-length", "authorization", "x-api-key", "connection")
        headers = {key: value for key, value in self.headers.items() if key.lower() not in dropped}
        headers["authorization"] = f"Bearer {speed.KEY}"
        connection = http.client.HTTPConnection(urllib.parse.urlsplit(self.upstream).netloc, timeout=TIMEOUT_S)
        try:
            connection.request(self.command, path, body or None, headers)
            reply = connection.getresponse()
            self.send_response(reply.status)
            for key, value in reply.getheaders():
                if key.lower() not in ("transfer-encoding", "connection", "content-length"):
                    self.send_header(key, value)
            self.send_header("connection", "close")
            self.end_headers()
            while piece := reply.read1(65536):
                self.wfile.write(piece)
                self.wfile.flush()
        except OSError:
            pass
        finally:
            connection.close()
            self.close_connection = True

    do_GET = do_POST = do_DELETE = do_OPTIONS = answer


def run(tests, options, junit):
    environment = {**os.environ, "DEBUG_EXTERNAL": "1", "PORT": str(PORT)}
    files = [f"unit/{name}" for name in FILES if (tests / "unit" / name).exists()]
    command = [sys.executable, "-m", "pytest", "-q", "-x" if options.first else "-q", "--tb=line", "-p", "no:cacheprovider",
               f"--junitxml={junit}", *files, *options.more]
    subprocess.run(command, cwd=tests, env=environment, stdout=sys.stderr if options.show else subprocess.DEVNULL)


def outcomes(junit):
    """(file, test) → passed, failed with the first line of why, skipped"""
    for case in xml.etree.ElementTree.parse(junit).getroot().iter("testcase"):
        file = case.get("classname").split(".")[-1]
        bad = case.find("failure") if case.find("failure") is not None else case.find("error")
        if bad is not None:
            yield file, case.get("name"), "failed", (bad.get("message") or "").split("\n")[0][:200]
        else:
            yield file, case.get("name"), "skipped" if case.find("skipped") is not None else "passed", ""


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("tests", type=pathlib.Path)
    parser.add_argument("--model", choices=speed.MODELS, default="0.5B")
    parser.add_argument("--json", help="where to write each test's outcome")
    parser.add_argument("--show", action="store_true", help="what pytest prints")
    parser.add_argument("--first", action="store_true", help="stop at the first failure")
    parser.add_argument("more", nargs="*", help="arguments for pytest")
    options = parser.parse_args()
    found = {who: tested(who, options) for who in ("llama.cpp", "mintage")}
    passed = {test for test, (outcome, _) in found["llama.cpp"].items() if outcome == "passed"}
    counts = collections.defaultdict(collections.Counter)
    for test, (outcome, why) in found["mintage"].items():
        asked = "of what llama-server passes" if test in passed else "of the rest"
        counts[test[0]][f"{outcome} {asked}"] += 1
        if test in passed and outcome == "failed":
            print(f"{test[0]} {test[1]}: {why}")
    for file, count in counts.items():
        print(f"{file}: {dict(count)}")
    print("all:", dict(sum(counts.values(), collections.Counter())))
    if options.json:
        report = {who: [[*test, *outcome] for test, outcome in tests.items()] for who, tests in found.items()}
        pathlib.Path(options.json).write_text(json.dumps(report, indent=1))


def tested(who, options):
    """(file, test) → (outcome, why)"""
    # Without an end of its own an answer goes on to the end of the context.
    extra = ("--jinja", "--metrics", "--slots", "--predict", str(MOST_TOKENS)) if who == "llama.cpp" else ()
    with speed.Server(who, options.model, slots=2, extra=extra) as server, tempfile.TemporaryDirectory() as folder:
        headers = {"authorization": f"Bearer {speed.KEY}"}
        names = urllib.request.urlopen(urllib.request.Request(server.url + "/v1/models", headers=headers))
        Adapter.upstream, Adapter.model = server.url, json.load(names)["data"][0]["id"]
        Adapter.root = ROOT if who == "mintage" else ("/",)
        adapter = http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Adapter)
        threading.Thread(target=adapter.serve_forever, daemon=True).start()
        junit = os.path.join(folder, "junit.xml")
        run(options.tests.resolve(), options, junit)
        adapter.shutdown()
        adapter.server_close()
        return {(file, name): (outcome, why) for file, name, outcome, why in outcomes(junit)}


if __name__ == "__main__":
    main()
