#!/usr/bin/env python3
"""Three real servers share one ledger in PostgreSQL: is there one balance, one budget, one limit, one of everything?

Begins with a ledger in a file, which one server fills; `mintage ledger migrate` moves it into a database, and three
servers go on from there. Then, over HTTP, spread over all three:

- 1,000 requests at once on a balance for 10: exactly 10 are served, nothing is held or leased afterwards;
- a rate of 30 a minute lets at most 30 (and what flows in meanwhile) of 300 in, a budget for 20 exactly 20 of 300,
  5 places for requests in flight never more than 5;
- free quota that was granted is used up before money is;
- an Idempotency-Key in use at one server is refused at the others, and answered again by all of them afterwards;
- a message of the outbox is sent once, and so is the word that a budget is used up, over all servers;
- a revoked key is refused everywhere within 5 s;
- a server that is killed loses nothing: its slices of the balance and of a budget come back, and the ledger verifies;
- `mintage ledger verify|export|backup|restore`, `mintage usage|price|invoice|balance` work on the database.

One of the servers reaches the database by TLS; a certificate of an authority that it does not trust is refused.

    python tests/python/shared.py --bin target/release/mintage --model FILE.gguf

Exit code 0 when everything held. Needs `httpx` and PostgreSQL's programs (`--postgres`, PATH or /usr/lib/postgresql).
"""

import argparse
import asyncio
import collections
import contextlib
import glob
import http.server
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

import httpx

START_S = 120
PRICES = """
format = 1
name = "shared"
currency = "CNY"
per_tokens = 1_000_000
time_zone = "+08:00"

[[model]]
name = "*"
input = "1000"
output = "0"
"""


def programs(given):
    folders = [given] if given else os.environ["PATH"].split(":") + sorted(glob.glob("/usr/lib/postgresql/*/bin"))[::-1]
    for folder in folders:
        if all(os.path.exists(os.path.join(folder, name)) for name in ("initdb", "postgres")):
            return folder
    return None


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def answers(path):
    """Whether a PostgreSQL at this socket takes connections: it asks for no password here."""
    name = b"user\0mintage\0database\0postgres\0\0"
    with socket.socket(socket.AF_UNIX) as s, contextlib.suppress(OSError):
        s.settimeout(2)
        s.connect(path)
        s.sendall((len(name) + 8).to_bytes(4, "big") + (196608).to_bytes(4, "big") + name)
        return s.recv(1) == b"R"
    return False


def certificates(folder):
    """An authority, another one that signed nothing, and a server's certificate for 127.0.0.1, made by `openssl`."""
    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], check=True, cwd=folder, capture_output=True)
    for name in ("ca", "other"):
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN=Test {name}")
    openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "server.key",
            "-out", "server.csr", "-subj", "/CN=127.0.0.1")
    with open(os.path.join(folder, "server.ext"), "w") as file:
        file.write("subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\n")
    openssl("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
            "-out", "server.pem", "-extfile", "server.ext")


@contextlib.contextmanager
def postgres(folder, where):
    """A database of its own on a Unix socket, and with TLS on a port; its URL, and the port."""
    home = os.path.join(folder, "pg")
    os.mkdir(home)
    certificates(folder)
    for name in ("server.pem", "server.key"):
        shutil.copy(os.path.join(folder, name), home)
    user = {}
    if os.getuid() == 0:
        names = {entry.pw_name: entry for entry in pwd.getpwall()}
        entry = names.get("postgres") or names["nobody"]
        user = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        os.chmod(folder, 0o755)
        for path in (home, os.path.join(home, "server.pem"), os.path.join(home, "server.key")):
            os.chown(path, entry.pw_uid, entry.pw_gid)
    os.chmod(os.path.join(home, "server.key"), 0o600)
    data = os.path.join(home, "data")
    subprocess.run([os.path.join(where, "initdb"), "--no-sync", "--auth=trust", "--username=mintage", "--encoding=UTF8",
                    "--locale=C", "-D", data], check=True, cwd="/", stdout=subprocess.DEVNULL, **user)
    # A second database, for the backup: the server's programs are there without `psql`.
    subprocess.run([os.path.join(where, "postgres"), "--single", "-D", data, "postgres"], input="CREATE DATABASE restored\n",
                   text=True, check=True, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **user)
    # Over the network only with TLS: `trust` is asked for there, too, so it is the certificate that decides.
    with open(os.path.join(data, "pg_hba.conf"), "w") as rules:
        rules.write("local all all trust\nhostssl all all 127.0.0.1/32 trust\n")
    port = free_port()
    with open(os.path.join(folder, "pg.log"), "w") as log:
        server = subprocess.Popen([os.path.join(where, "postgres"), "-D", data, "-k", home,
                                   "-c", "listen_addresses=127.0.0.1", "-c", f"port={port}", "-c", "ssl=on",
                                   "-c", f"ssl_cert_file={home}/server.pem", "-c", f"ssl_key_file={home}/server.key",
                                   "-c", "shared_buffers=32MB", "-c", "max_connections=128"], cwd="/", stdout=log,
                                  stderr=log, **user)
    try:
        until = time.monotonic() + START_S
        while not answers(os.path.join(home, f".s.PGSQL.{port}")):
            assert time.monotonic() < until and server.poll() is None, "PostgreSQL does not start"
            time.sleep(0.1)
        yield f"postgres://mintage@/postgres?host={home}&port={port}", port
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)


class House:
    """One gateway: its folder, its settings, its process."""

    def __init__(self, options, folder, name, url):
        self.options, self.name = options, name
        self.data = os.path.join(folder, name)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.config = os.path.join(folder, f"{name}.toml")
        os.makedirs(self.data, exist_ok=True)
        store = f'store = "postgres"\nurl = "{url}"\ngateway = "{name}"' if url else ""
        with open(self.config, "w") as file:
            file.write(f'''
data_dir = "{self.data}"
[server]
listen = "127.0.0.1:{self.port}"
max_concurrent_requests = 2048
max_connections = 2048
[ledger]
{store}
[webhooks]
allow_private_addresses = true
[engine]
threads = 1
context_tokens = 2048
kv_cache_mib = 128
max_waiting = 2048
[[model]]
source = "{options.model}"
name = "small"
''')

    def environment(self, authority="ca"):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MINTAGE_")}
        return environment | {"SSL_CERT_FILE": os.path.join(os.path.dirname(self.config), f"{authority}.pem")}

    def mintage(self, *arguments, check=True, authority="ca"):
        environment = self.environment(authority)
        done = subprocess.run([self.options.bin, "--config", self.config, *arguments], text=True, capture_output=True,
                              env=environment)
        assert not check or done.returncode == 0, f"mintage {arguments}: {done.stdout}{done.stderr}"
        return done.stdout if check else done

    def json(self, *arguments):
        return json.loads(self.mintage(*arguments, "--json"))

    def start(self):
        log = open(os.path.join(os.path.dirname(self.config), f"{self.name}.log"), "a")
        self.process = subprocess.Popen([self.options.bin, "--config", self.config, "serve"], stdout=log, stderr=log,
                                        env=self.environment())
        return self

    def ready(self):
        until = time.monotonic() + START_S
        while True:
            assert time.monotonic() < until and self.process.poll() is None, f"the server {self.name} does not start"
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(self.url + "/readyz", timeout=2).status_code == 200:
                    return self
            time.sleep(0.05)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0, f"the server {self.name} did not end in order"


def body(**more):
    return {"model": "small", "max_tokens": 1, "messages": [{"role": "user", "content": "Say yes."}], **more}


async def send(house, key, payload, headers=None):
    """A request on a connection of its own: where its answer comes, and what to close."""
    reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
    text = json.dumps(payload).encode()
    head = {"host": "localhost", "authorization": f"Bearer {key}", "content-type": "application/json",
            "content-length": len(text), "connection": "close", **(headers or {})}
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    writer.write(f"POST /v1/chat/completions HTTP/1.1\r\n{lines}\r\n".encode() + text)
    return reader, writer


async def one(house, key, payload, headers=None):
    """The same, answered: status, headers, body."""
    reader, writer = await send(house, key, payload, headers)
    answer = await reader.read()
    writer.close()
    head, _, answer = answer.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    if headers.get("transfer-encoding") == "chunked":
        chunks, rest = b"", answer
        while True:
            size, _, rest = rest.partition(b"\r\n")
            if int(size, 16) == 0:
                break
            chunks, rest = chunks + rest[:int(size, 16)], rest[int(size, 16) + 2:]
        answer = chunks
    return int(lines[0].split()[1]), headers, answer


def crowd(houses, key, count, **more):
    """So many requests at once, over all houses: how many of each status, and an answer of each."""
    async def run():
        asks = [one(houses[i % len(houses)], key, body(**more)) for i in range(count)]
        return await asyncio.gather(*asks)
    answers = asyncio.run(run())
    return collections.Counter(status for status, _, _ in answers), {status: answer for status, _, answer in answers}


def held(houses, key, count):
    """So many streams at once, over all houses, none of which ends before each has its status: how many of each."""
    payload = body(max_tokens=1500, ignore_eos=True, stream=True)

    async def run():
        told, waiting = asyncio.Event(), set(range(count))

        async def stream(i):
            reader, writer = await send(houses[i % len(houses)], key, payload)
            status = int((await reader.readline()).split()[1])
            waiting.discard(i)
            if not waiting:
                told.set()
            await told.wait()
            assert status != 200 or not reader.at_eof(), "a stream ended before all had their status"
            writer.close()
            return status
        return await asyncio.gather(*map(stream, range(count)))
    return collections.Counter(asyncio.run(run()))


def tenant(house, name, money=None):
    """An organisation with a project and a key, and money."""
    org = house.json("org", "create", name)["id"]
    project = house.json("project", "create", "main", "--org", name)["id"]
    made = house.json("key", "create", "main", "--project", project)
    if money:
        house.mintage("topup", name, money, "--id", f"first-{name}")
    return org, project, made["id"], made.get("secret") or made.get("key") or made["value"]


def units(cost):
    """Whole 10⁻³ of the currency as an amount."""
    return f"{cost // 1000}.{cost % 1000:03}"


def wait_for_keys(houses, key):
    until = time.monotonic() + 10
    for house in houses:
        while httpx.get(house.url + "/v1/models", headers={"authorization": f"Bearer {key}"}).status_code != 200:
            assert time.monotonic() < until, "a new key is not taken"
            time.sleep(0.05)


def balance(house, org):
    shown = house.json("balance", "show", org)
    return shown[0] if isinstance(shown, list) else shown


def settled_balance(house, org):
    """Once slices have come back."""
    until = time.monotonic() + 10
    while True:
        shown = balance(house, org)
        if float(shown["held"]) == 0 or time.monotonic() > until:
            return shown
        time.sleep(0.2)


def money(houses, cost):
    _, _, _, key = tenant(houses[0], "acme", units(10 * cost))
    wait_for_keys(houses, key)
    counts, answers = crowd(houses, key, 1000)
    assert counts == {200: 10, 402: 990}, (counts, answers)
    shown = settled_balance(houses[0], "acme")
    assert float(shown["balance"]) == 0 and float(shown["held"]) == 0, shown
    usage = houses[0].json("usage", "--org", shown["organization"])
    assert sum(row["requests"] for row in usage) == 10, usage
    return "1,000 requests on a balance for 10: 10 served, 990 refused, nothing left or held"


def limits(houses, cost):
    said = []
    _, project, _, key = tenant(houses[0], "rated", "1000")
    houses[0].mintage("limit", "--project", project, "set", "--rpm", "30")
    time.sleep(3)
    wait_for_keys(houses, key)
    start = time.monotonic()
    counts, answers = crowd(houses, key, 300)
    most = 30 + (time.monotonic() - start) / 2 + 1
    assert 25 <= counts[200] <= most and counts[429] == 300 - counts[200], (counts, answers)
    said.append(f"30 a minute: {counts[200]} of 300 let in")

    _, project, _, key = tenant(houses[0], "budgeted", "1000")
    houses[0].mintage("budget", "--project", project, "set", "month", "--money", units(20 * cost))
    time.sleep(3)
    wait_for_keys(houses, key)
    counts, answers = crowd(houses, key, 300)
    served = counts[200]
    for _ in range(40):
        # What one gateway had and did not use goes to who asks.
        more, _ = crowd(houses, key, 3)
        served += more[200]
        if more[200] == 0:
            break
    assert served == 20 and counts[402] == 300 - counts[200], (served, counts, answers)
    said.append(f"a budget for 20: {counts[200]} of 300 at once let in, {served} in all")
    told_once(project)

    _, project, _, key = tenant(houses[0], "placed", "1000")
    houses[0].mintage("limit", "--project", project, "set", "--in-flight", "5")
    time.sleep(3)
    wait_for_keys(houses, key)
    counts = held(houses, key, 60)
    assert counts == {200: 5, 429: 55}, counts
    said.append(f"5 in flight: {counts[200]} of 60 let in")
    return "; ".join(said)


def told_once(project):
    """The word that a project's budget is used up comes, once."""
    def told():
        return [event for event in Sink.events if event["type"] == "budget.reached" and event["data"]["party"] == project]
    until = time.monotonic() + 15
    while not told():
        assert time.monotonic() < until, f"nobody told that the budget of {project} is used up"
        time.sleep(0.1)
    time.sleep(2)
    assert len(told()) == 1, told()


def repetitions(houses, cost):
    _, _, _, key = tenant(houses[0], "careful", units(2 * cost))
    wait_for_keys(houses, key)
    payload = body(max_tokens=200, ignore_eos=True)
    header = {"idempotency-key": "pay-once"}

    async def run():
        first = asyncio.create_task(one(houses[0], key, payload, header))
        await asyncio.sleep(0.2)
        meanwhile = await asyncio.gather(*(one(house, key, payload, header) for house in houses))
        other = await one(houses[1], key, body(max_tokens=3), header)
        first = await first
        again = await asyncio.gather(*(one(house, key, payload, header) for house in houses))
        return first, meanwhile, other, again
    first, meanwhile, other, again = asyncio.run(run())
    assert first[0] == 200, first
    assert [answer[0] for answer in meanwhile] == [409, 409, 409], meanwhile
    assert other[0] == 422, other
    for answer in again:
        assert answer[0] == 200 and answer[1]["idempotent-replayed"] == "true" and answer[2] == first[2], answer
    usage = houses[0].json("usage", "--org", balance(houses[0], "careful")["organization"])
    assert sum(row["requests"] for row in usage) == 1, usage
    return "an Idempotency-Key in use: 409 at all three, 422 with another body, then the same answer at all three, 1 record"


def free_quota(houses, cost, prompt):
    path = os.path.join(os.path.dirname(houses[0].config), "free.toml")
    with open(path, "w") as file:
        file.write(PRICES.replace('output = "0"\n', f'output = "0"\nfree_quota = {{ tokens = {prompt * 4 + 4}, days = 30 }}\n'))
    houses[0].mintage("price", "import", path)
    time.sleep(2)
    _, _, _, key = tenant(houses[0], "newcomer")
    wait_for_keys(houses, key)
    time.sleep(3)
    counts = collections.Counter()
    for i in range(9):
        more, answers = crowd([houses[i % 3]], key, 1)
        counts += more
    assert counts == {200: 4, 402: 5}, (counts, answers)
    return "free quota for 4: 4 of 9 served over three servers, without money"


class Sink(http.server.BaseHTTPRequestHandler):
    got, events = collections.Counter(), []

    def do_POST(self):
        Sink.events.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        Sink.got[self.headers["webhook-id"]] += 1
        time.sleep(0.3)
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


def webhook(houses):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Sink)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return houses[0].json("webhook", "create", f"http://127.0.0.1:{server.server_port}/")["id"]


def messages(houses, endpoint):
    Sink.got.clear()
    for _ in range(12):
        houses[0].mintage("webhook", "test", endpoint)
    until = time.monotonic() + 30
    while len(Sink.got) < 12 and time.monotonic() < until:
        time.sleep(0.2)
    time.sleep(3)
    assert len(Sink.got) == 12 and set(Sink.got.values()) == {1}, Sink.got
    return "12 messages, three servers: each sent once"


def revocation(houses):
    _, _, id, key = tenant(houses[0], "leaver", "10")
    wait_for_keys(houses, key)
    start = time.monotonic()
    houses[0].mintage("key", "revoke", id)
    revoked = time.monotonic()
    headers = {"authorization": f"Bearer {key}"}
    for house in houses:
        while httpx.get(house.url + "/v1/models", headers=headers).status_code != 401:
            assert time.monotonic() - revoked < 5, f"{house.name} still takes the revoked key"
            time.sleep(0.02)
    return f"a revoked key: refused everywhere {time.monotonic() - revoked:.2f} s after the command ({revoked - start:.2f} s)"


def death(houses, cost):
    # Enough money for 200, a budget for 180.
    _, project, _, key = tenant(houses[0], "survivor", units(200 * cost))
    houses[0].mintage("budget", "--project", project, "set", "month", "--money", units(180 * cost))
    time.sleep(3)
    wait_for_keys(houses, key)
    stop = threading.Event()
    served = collections.Counter()

    def ask(house):
        while not stop.is_set():
            with contextlib.suppress(httpx.HTTPError):
                answer = httpx.post(house.url + "/v1/chat/completions", json=body(), timeout=30,
                                    headers={"authorization": f"Bearer {key}"})
                served[answer.status_code] += 1
            time.sleep(0.02)
    threads = [threading.Thread(target=ask, args=(house,)) for house in houses for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(1.5)
    houses[2].process.send_signal(signal.SIGKILL)
    houses[2].process.wait()
    time.sleep(1.5)
    stop.set()
    for thread in threads:
        thread.join()
    # Its lease ends, somebody takes its stream over, and all that is left can be spent.
    time.sleep(13)
    before = settled_balance(houses[0], "survivor")
    usage = houses[0].json("usage", "--org", before["organization"])
    requests = sum(row["requests"] for row in usage)
    assert round(float(before["balance"]) * 1000) == (200 - requests) * cost, (before, requests, cost)
    lost = requests - served[200]
    assert 0 <= lost <= 2, (requests, served)
    left, more = 180 - requests, collections.Counter()
    counts, _ = crowd(houses[:2], key, left + 50)
    more += counts
    for _ in range(40):
        # What one of them had of the budget and did not use goes to who asks.
        if more[200] == left:
            break
        counts, _ = crowd(houses[:2], key, 2)
        more += counts
    counts, _ = crowd(houses[:2], key, 20)
    assert more[200] == left and counts == {402: 20}, (more, counts, left)
    told_once(project)
    return (f"a server killed under load: {served[200]} answers, {requests} records, the other {left} of its budget "
            "served by the rest")


def commands(house, folder):
    verified = house.mintage("ledger", "verify")
    path = os.path.join(folder, "export.jsonl")
    house.mintage("ledger", "export", "--out", path)
    with open(path) as file:
        lines = sum(1 for _ in file)
    assert "in force" in house.mintage("price", "history")
    house.mintage("usage", "--by", "org")
    house.mintage("invoice", "list")
    house.mintage("balance", "show")
    backup = os.path.join(folder, "ledger.backup")
    house.mintage("ledger", "backup", backup)
    assert house.mintage("ledger", "backup", backup, check=False).returncode == 1, "overwritten"
    return f"{verified.splitlines()[0]}; {lines} lines exported"


def trust(houses, port):
    """The second house's database is reached by TLS only, and only where its authority is trusted."""
    assert f"127.0.0.1:{port}" in open(houses[1].config).read()
    refused = houses[1].mintage("ledger", "verify", check=False, authority="other")
    assert refused.returncode == 1 and "certificate" in refused.stderr.lower(), refused.stderr
    houses[1].mintage("ledger", "verify")
    plain = House(houses[1].options, os.path.dirname(houses[1].config), "plain",
                  f"postgres://mintage@127.0.0.1:{port}/postgres?sslmode=disable")
    refused = plain.mintage("ledger", "verify", check=False)
    assert refused.returncode == 1, "the database takes connections without TLS"
    return "TLS to the database: trusted where its authority is, refused with another or without"


def restored(houses, folder, url):
    """The backup in another database says the same, to one server that goes on with it."""
    house = House(houses[0].options, folder, "restored", url.replace("/postgres?", "/restored?"))
    shutil.copytree(os.path.join(houses[0].data, "keys"), os.path.join(house.data, "keys"), dirs_exist_ok=True)
    said = house.mintage("ledger", "restore", os.path.join(folder, "ledger.backup"))
    assert house.mintage("ledger", "verify").splitlines()[0].replace("verified", "") == \
        said.splitlines()[0].replace("restored and verified", "")
    assert house.mintage("ledger", "restore", os.path.join(folder, "ledger.backup"), check=False).returncode == 1
    _, _, _, key = tenant(house, "afterwards", "5")
    house.start().ready()
    try:
        counts, answers = crowd([house], key, 3)
        assert counts == {200: 3}, answers
        house.stop()
    finally:
        if house.process.poll() is None:
            house.process.kill()
    return "a backup restored into another database: the same, and a server goes on with it"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bin", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--postgres", default=os.environ.get("MINTAGE_TEST_POSTGRES"))
    parser.add_argument("--keep", help="leave everything in this folder")
    options = parser.parse_args()
    options.bin, options.model = os.path.abspath(options.bin), os.path.abspath(options.model)
    where = programs(options.postgres)
    if where is None:
        sys.exit("PostgreSQL is not installed here")
    folder = options.keep or tempfile.mkdtemp()
    os.makedirs(folder, exist_ok=True)
    running = []
    try:
        with postgres(folder, where) as (url, port):
            prices = os.path.join(folder, "prices.toml")
            with open(prices, "w") as file:
                file.write(PRICES)
            file_house = House(options, folder, "one", None)
            file_house.mintage("price", "import", prices)
            _, _, _, key = tenant(file_house, "early", "5")
            running.append(file_house.start())
            file_house.ready()
            counts, answers = crowd([file_house], key, 3)
            assert counts == {200: 3}, (counts, answers)
            prompt = json.loads(answers[200])["usage"]["prompt_tokens"]
            file_house.stop()
            print(file_house.mintage("ledger", "migrate", "--to", url).splitlines()[0], flush=True)
            secure = f"postgres://mintage@127.0.0.1:{port}/postgres?sslmode=require"
            urls = {"one": url, "two": secure, "three": url}
            houses = [House(options, folder, name, url) for name, url in urls.items()]
            for house in houses[1:]:
                os.makedirs(os.path.join(house.data, "keys"))
                shutil.copy(os.path.join(houses[0].data, "keys", "keys.pepper"), os.path.join(house.data, "keys"))
            running[:] = [house.start() for house in houses]
            for house in houses:
                house.ready()
            shown = balance(houses[0], "early")
            assert round(float(shown["balance"]) * 1000) == 5000 - 3 * prompt, shown
            endpoint = webhook(houses)
            # A thousandth a token: a request costs its prompt's length in thousandths.
            for said in (lambda: money(houses, prompt), lambda: limits(houses, prompt),
                         lambda: repetitions(houses, prompt), lambda: messages(houses, endpoint),
                         lambda: trust(houses, port), lambda: revocation(houses),
                         lambda: death(houses, prompt), lambda: houses[2].start().ready() and "it starts again",
                         lambda: free_quota(houses, prompt, prompt), lambda: commands(houses[0], folder),
                         lambda: restored(houses, folder, url)):
                print(said(), flush=True)
            for house in houses:
                house.stop()
            print(f"after an orderly end: {houses[0].mintage('ledger', 'verify').splitlines()[0]}")
    finally:
        for house in running:
            if house.process.poll() is None:
                house.process.kill()
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
