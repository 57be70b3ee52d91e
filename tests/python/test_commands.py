"""Every command about tenants, money, usage, prices and invoices, asked of a running server: `--server URL`.

The server runs with its clock in the past month for a while, so that there is a month to be invoiced; what is billed,
shown and invoiced must be the same numbers wherever one looks.
"""

import json
import os
import shutil
import subprocess
import sys
import types

import httpx
import pytest

import clock
import kill

BINARY, MODELS = os.environ.get("MINTAGE_BIN"), os.environ.get("MINTAGE_TEST_MODELS")
DAY = 86_400
PRICES = """
format = 1
name = "commands"
currency = "CNY"
per_tokens = 1_000_000
time_zone = "+08:00"

[[model]]
name = "*"
input = "1000"
output = "3000"
"""

pytestmark = [
    pytest.mark.skipif(not (BINARY and MODELS), reason="MINTAGE_BIN or MINTAGE_TEST_MODELS is not set"),
    pytest.mark.skipif(not sys.platform.startswith("linux") or not shutil.which("cc"), reason="needs Linux and cc"),
]


class Installation:
    """A data folder, a clock, and commands that work on either."""

    def __init__(self, folder):
        self.folder = str(folder / "data")
        os.makedirs(self.folder)
        tools = folder / "tools"
        tools.mkdir()
        self.clock = clock.Clock(str(tools))
        model = os.path.join(MODELS, "smollm2-135m-instruct-q4_1.gguf")
        self.server = kill.Server(types.SimpleNamespace(gateway=None, bin=BINARY, model=model), self.folder)
        self.admin_key = None

    def run(self, *arguments, check=True):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MINTAGE_")}
        environment |= {"MINTAGE_DATA_DIR": self.folder, **self.clock.environment()}
        if self.admin_key:
            environment |= {"MINTAGE_ADMIN_KEY": self.admin_key, "MINTAGE_SERVER": self.server.url}
        done = subprocess.run([BINARY, *arguments], env=environment, text=True, capture_output=True, timeout=120)
        assert not check or done.returncode == 0, f"mintage {arguments}: {done.stdout}{done.stderr}"
        return done.stdout if check else done

    def json(self, *arguments):
        return json.loads(self.run(*arguments, "--json"))

    def start(self):
        os.environ.update(self.clock.environment())
        try:
            self.server.start()
        finally:
            for name in self.clock.environment():
                del os.environ[name]

    def stop(self):
        self.server.process.terminate()
        assert self.server.process.wait(60) == 0, "the server did not end in order"

    def chat(self, key):
        body = {"model": self.server.model, "max_tokens": 5, "ignore_eos": True,
                "messages": [{"role": "user", "content": "Say yes."}]}
        return httpx.post(self.server.url + "/v1/chat/completions", json=body, timeout=60,
                          headers={"authorization": f"Bearer {key}"})


@pytest.fixture
def installation(tmp_path):
    made = Installation(tmp_path)
    yield made
    if made.server.process.poll() is None:
        made.server.process.kill()


def test_a_running_server_is_administered(installation, tmp_path):
    run, shown = installation.run, installation.json
    installation.clock.jump(-40 * DAY)
    operator = run("key", "create", "root", "--operator").strip()
    installation.start()
    busy = run("usage", check=False)
    assert busy.returncode == 1 and "--server" in busy.stderr, busy.stderr
    installation.admin_key = operator

    prices = tmp_path / "prices.toml"
    prices.write_text(PRICES)
    assert "holds from" in run("price", "import", str(prices))
    assert "already" in run("price", "import", str(prices))
    assert "in force" in run("price", "history")
    assert "commands" in run("price", "show")
    assert "the same prices" in run("price", "diff", "current", str(prices))

    org = shown("org", "create", "acme", "--weight", "2")["id"]
    assert shown("org", "weight", "acme", "3")["weight"] == 3
    project = shown("project", "create", "shop", "--org", "acme")["id"]
    assert [one["name"] for one in shown("project", "list", "--org", "acme")] == ["shop"]
    member = shown("member", "add", "ada@example.org", "--org", "acme", "--role", "billing")["id"]
    assert shown("member", "role", member, "admin")["role"] == "admin"
    key = shown("key", "create", "till", "--project", project)
    assert shown("topup", "acme", "10", "--id", "payment-1")["balance"] == "10"
    assert shown("topup", "acme", "10", "--id", "payment-1")["balance"] == "10", "moved twice"
    run("limit", "--project", project, "set", "--rpm", "600")
    assert shown("limit", "--project", project, "show")[0]["requests_per_minute"] == 600
    run("budget", "--org", "acme", "set", "month", "--money", "8")
    assert shown("budget", "--org", "acme", "show")[0]["limit"] == {"money": "8"}

    answers = [installation.chat(key["value"]) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200] * 3, answers[0].text
    usage = answers[0].json()["usage"]
    thousandths = 3 * (usage["prompt_tokens"] * 1 + usage["completion_tokens"] * 3)
    cost = f"{thousandths // 1000}.{thousandths % 1000:03}".rstrip("0").rstrip(".")
    row, = shown("usage", "--org", "acme", "--by", "key")
    assert (row["name"], row["requests"], row["amount"]) == (key["id"], 3, cost), row
    assert row["tokens"]["input"] + row["tokens"]["cached_input"] == 3 * usage["prompt_tokens"]
    assert float(shown("balance", "show", "acme")["balance"]) == pytest.approx(10 - float(cost), abs=1e-9)
    whatif = shown("price", "whatif", str(prices))
    assert whatif["total"]["requests"] == 3 and whatif["total"]["after"] == cost, whatif
    run("balance", "refund", answers[0].json()["id"], "0.001", "--id", "refund-1")
    rotated = run("key", "rotate", key["id"], "--overlap-hours", "0").strip()
    assert installation.chat(key["value"]).status_code == 401
    assert installation.chat(rotated).status_code == 200
    run("key", "disable", key["id"])
    new, = [one["id"] for one in shown("key", "list", "--org", "acme") if one["id"] != key["id"]]
    run("key", "revoke", new)
    assert installation.chat(rotated).status_code == 401
    run("org", "suspend", "acme")
    run("org", "resume", "acme")

    # A month later: the invoice says what the records said.
    installation.stop()
    installation.clock.jump(0)
    installation.start()
    issued = run("invoice", "issue", "--org", "acme", "--month", month_before(40))
    number = issued.splitlines()[1].split()[0]
    assert number in run("invoice", "list") and number in run("invoice", "list", "--org", "acme")
    billed = 4 * thousandths / 3 / 1000
    invoice = json.loads(run("invoice", "export", number, "--format", "json"))
    assert float(invoice["total"]) == pytest.approx(billed, abs=1e-9), invoice
    assert invoice["organisation"] == org
    assert "<html" in run("invoice", "export", number, "--language", "en")
    assert "project" in run("invoice", "export", number, "--format", "csv").splitlines()[0].lower()
    assert "given back" in run("invoice", "credit", number, "0.01", "--reason", "outage")
    assert "outage" in run("invoice", "show", number)
    assert sum(row["requests"] for row in shown("usage", "--month", month_before(40))) == 4
    installation.stop()
    installation.admin_key = None
    assert "verified" in run("ledger", "verify")


def month_before(days):
    """The month of so many days ago, where months begin as in China."""
    import datetime
    moment = datetime.datetime.now(datetime.timezone(datetime.timedelta(hours=8))) - datetime.timedelta(days=days)
    return f"{moment.year}-{moment.month:02}"


def test_old_records_go_while_the_server_runs(installation, tmp_path):
    """Seven months ago somebody asked; a server of today that keeps records for six months removes that record, by
    itself, and keeps today's; balances and the chain stay whole."""
    installation.clock.jump(-210 * DAY)
    installation.start()
    old = installation.chat(installation.server.key)
    assert old.status_code == 200, old.text
    installation.stop()
    installation.clock.jump(0)
    settings = tmp_path / "mintage.toml"
    settings.write_text("[ledger]\nretention_days = 183\n")
    os.environ["MINTAGE_CONFIG"] = str(settings)
    try:
        installation.start()
    finally:
        del os.environ["MINTAGE_CONFIG"]
    new = installation.chat(installation.server.key)
    headers = {"authorization": f"Bearer {installation.server.key}"}

    def status(answer):
        url = f"{installation.server.url}/v1/generation?id={answer.json()['id']}"
        return httpx.get(url, headers=headers).status_code
    assert status(old) == 200, "it is there until it is looked for"
    until = clock.time.monotonic() + 60
    while status(old) != 404:
        assert clock.time.monotonic() < until, "the old record stays"
        clock.time.sleep(0.2)
    assert status(new) == 200
    installation.stop()
    verified = installation.run("ledger", "verify")
    assert " 1 usage records" in verified, verified
