"""Events outlive the server: what was told by nobody when it was killed is told after its restart, once, and signed."""

import base64
import hashlib
import hmac
import http.server
import json
import os
import signal
import threading
import time
import types

import httpx
import pytest
import shared

BINARY, MODELS = os.environ.get("MINTAGE_BIN"), os.environ.get("MINTAGE_TEST_MODELS")


class Receiver(http.server.BaseHTTPRequestHandler):
    """Refuses until it is open; keeps what came."""

    is_open, refused, taken = False, [], []

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        (Receiver.taken if Receiver.is_open else Receiver.refused).append((dict(self.headers), body))
        self.send_response(204 if Receiver.is_open else 503)
        self.end_headers()

    def log_message(self, *_):
        pass


def until(holds, what, seconds=60):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def check_signature(secret, headers, body):
    headers = {name.lower(): value for name, value in headers.items()}
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    key = base64.b64decode(secret.removeprefix("whsec_"))
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    return headers["webhook-id"]


@pytest.mark.skipif(not (BINARY and MODELS), reason="MINTAGE_BIN or MINTAGE_TEST_MODELS is not set")
def test_events_outlive_the_server(tmp_path):
    receiver = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    model = os.path.join(MODELS, "smollm2-135m-instruct-q4_1.gguf")
    options = types.SimpleNamespace(bin=BINARY, model=model)
    house = shared.House(options, str(tmp_path), "one", None)
    prices = tmp_path / "prices.toml"
    prices.write_text(shared.PRICES)
    house.mintage("price", "import", str(prices))
    _, project, _, key = shared.tenant(house, "acme", "1")
    probe = shared.tenant(house, "probe", "1")[3]
    house.mintage("webhook", "alert", "acme", "0.999")
    secret = house.json("webhook", "create", f"http://127.0.0.1:{receiver.server_port}/")["secret"]

    def ask(key):
        headers = {"authorization": f"Bearer {key}"}
        return httpx.post(house.url + "/v1/chat/completions", json=shared.body(), headers=headers, timeout=60)

    house.start().ready()
    try:
        # A request costs its prompt's length in thousandths: the first takes the balance below 0.999, the second is all
        # that the budget is for.
        cost = ask(probe).json()["usage"]["prompt_tokens"]
        house.mintage("budget", "--project", project, "set", "month", "--money", shared.units(2 * cost))
        time.sleep(3)
        assert ask(key).status_code == 200
        until(lambda: Receiver.refused, "nobody tells of the low balance")
        assert ask(key).status_code == 200
        # Durable before the answer was sent: whether anybody was told by now does not matter.
        house.process.send_signal(signal.SIGKILL)
        house.process.wait()
        assert not Receiver.taken
        refused = {json.loads(body)["type"]: check_signature(secret, got, body) for got, body in Receiver.refused}
        Receiver.is_open = True
        house.start().ready()
        types_of = lambda: sorted(json.loads(body)["type"] for _, body in Receiver.taken)
        until(lambda: types_of() == ["balance.low", "budget.reached"], "an event is lost", 90)
        time.sleep(2)
        assert types_of() == ["balance.low", "budget.reached"], "an event was told twice"
        ids = {json.loads(body)["type"]: check_signature(secret, got, body) for got, body in Receiver.taken}
        assert ids["balance.low"] == refused["balance.low"], "a repetition under another id"
        house.stop()
    finally:
        if house.process.poll() is None:
            house.process.kill()
        receiver.shutdown()
