#!/usr/bin/env python3
"""The server is killed (SIGKILL) at random moments under load: is what was billed what clients received?

Starts the real binary, lets clients ask (whole and streamed answers), kills it after a random time, starts it again,
which recovers the ledger, and goes on, `--kills` times. After each restart, for all requests so far:

- every answer that a client read to its end has exactly one record, with exactly the usage the client saw;
- a stream that was cut is billed at its journal mark, never for more tokens than its client received, or as a whole
  where only its last bytes were lost, or not at all;
- whole answers that were lost on the way are at most as many as were asked for at the kill;
- every record's line of the log carries the record's amount, and no record stands without one.

    python tests/python/kill.py --bin target/release/mintage --model FILE.gguf --kills 300
    python tests/python/kill.py --gateway target/release/examples/gateway --model FILE.gguf --kills 300

The second serves the scripted engine, with prices. Exit code 0 when everything held. Needs `httpx`.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time

import httpx

KEY = "sk-mint-kill-0123456789abcdef0123456789abcdef"
START_S = 120
PROMPTS = ["Count to fifty.", "Name a colour.", "Write a haiku about rain.", "List ten fruits.", "What is two plus two?"]


class Server:
    def __init__(self, options, folder):
        self.options, self.folder = options, folder

    def start(self):
        log_path = os.path.join(self.folder, "server.log")
        if self.options.gateway:
            command = [self.options.gateway, "serve", self.options.model, self.folder]
        else:
            command = [self.options.bin, "up", "--listen", "127.0.0.1:0", "--model", self.options.model,
                       "--data-dir", self.folder, "--kv-cache-mib", "64", "--context", "512"]
        environment = {**os.environ, "MINTAGE_BOOTSTRAP_KEY": KEY}
        with open(log_path, "w") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        until = time.monotonic() + START_S
        while time.monotonic() < until and self.process.poll() is None:
            with open(log_path) as file:
                text = file.read()
            url = re.search(r"http://127\.0\.0\.1:\d+", text)
            key = re.search(r"API_KEY=(\S+)", text)
            if url and (key or not self.options.gateway):
                try:
                    if httpx.get(url[0] + "/readyz", timeout=2).status_code == 200:
                        self.url, self.key = url[0], key[1] if key else KEY
                        self.model = httpx.get(url[0] + "/v1/models", headers=self.headers()).json()["data"][0]["id"]
                        return
                except httpx.HTTPError:
                    pass
            time.sleep(0.02)
        with open(log_path) as file:
            sys.exit("the server did not start:\n" + file.read()[-3000:])

    def headers(self):
        return {"authorization": f"Bearer {self.key}"}

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


class Seen:
    """What clients know."""

    def __init__(self):
        self.lock = threading.Lock()
        self.complete = {}
        self.cut = {}
        self.lost_whole = 0
        self.lost_heads = 0


def ask(server, seen, dice):
    stream = dice.random() < 0.7
    body = {"model": server.model, "max_tokens": dice.randrange(4, 120), "stream": stream, "return_token_ids": True,
            "messages": [{"role": "user", "content": dice.choice(PROMPTS)}]}
    if stream:
        body["stream_options"] = {"include_usage": True}
    id, received, usage, done = None, 0, None, False
    try:
        with httpx.stream("POST", server.url + "/v1/chat/completions", json=body, headers=server.headers(),
                          timeout=60) as response:
            if response.status_code != 200:
                response.read()
                assert response.status_code == 503, response.text
                return
            if not stream:
                answer = json.loads(response.read())
                id, usage, done = answer["id"], answer["usage"], True
            else:
                for line in response.iter_lines():
                    if line == "data: [DONE]":
                        done = True
                    elif line.startswith("data: "):
                        event = json.loads(line[6:])
                        assert "error" not in event, event
                        id, usage = event["id"], event.get("usage") or usage
                        received += sum(len(choice.get("token_ids") or []) for choice in event["choices"])
    except (httpx.HTTPError, OSError, json.JSONDecodeError):
        pass
    with seen.lock:
        if usage:
            # The usage is the last word: it is sent when the record is durable.
            assert id not in seen.complete
            seen.complete[id] = usage
        elif id:
            seen.cut[id] = received
        elif stream:
            seen.lost_heads += 1
        else:
            seen.lost_whole += 1
    return done


def client(server, seen, stop, seed):
    dice = random.Random(seed)
    while not stop.is_set():
        ask(server, seen, dice)


def records(folder):
    """All usage records with the amounts of their postings, read from a copy."""
    source = os.path.join(folder, "ledger")
    with tempfile.TemporaryDirectory() as copy:
        for name in os.listdir(source):
            if name.endswith((".sqlite", ".db", ".sqlite-wal", ".db-wal")):
                shutil.copy(os.path.join(source, name), copy)
        path = next(os.path.join(copy, name) for name in os.listdir(copy) if not name.endswith("-wal"))
        connection = sqlite3.connect(path)
        connection.row_factory = sqlite3.Row
        rows = [dict(row) for row in connection.execute(
            "SELECT usage.*, log.amount AS posted, log.kind AS log_kind FROM usage LEFT JOIN log USING (seq)")]
        marks = connection.execute("SELECT count(*) FROM mark").fetchone()[0]
        connection.close()
    return rows, marks


def check(folder, seen, has_prices):
    rows, marks = records(folder)
    assert marks == 0, f"{marks} journal marks are left after recovery"
    by_id = {}
    for row in rows:
        assert row["id"] not in by_id, f"two records of {row['id']}"
        by_id[row["id"]] = row
        assert row["posted"] == row["amount_pico"], row
        if has_prices:
            prompt = row["input"] + row["cached_input"]
            assert row["amount_pico"] == prompt * 800_000 + row["output"] * 2_000_000, row
    for id, usage in seen.complete.items():
        row = by_id.pop(id, None)
        assert row, f"the answer {id} was received and is not recorded"
        assert row["output"] == usage["completion_tokens"], (row, usage)
        assert row["input"] + row["cached_input"] == usage["prompt_tokens"], (row, usage)
        assert row["cached_input"] == usage["prompt_tokens_details"]["cached_tokens"], (row, usage)
    crashed, whole = 0, 0
    for id, received in seen.cut.items():
        row = by_id.pop(id, None)
        if row is None:
            continue
        if row["finish"] == "crash":
            crashed += 1
            assert row["output"] <= received, (row, received)
        else:
            whole += 1
            assert row["finish"] in ("stop", "length", "abort"), row
    strangers = list(by_id.values())
    assert len(strangers) <= seen.lost_whole + seen.lost_heads, strangers
    assert all(row["finish"] != "crash" for row in strangers), f"billed for what nobody received: {strangers}"
    return len(rows), crashed, whole, len(strangers)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bin", default=os.environ.get("MINTAGE_BIN"))
    parser.add_argument("--gateway", help="the example `gateway`, instead of the real engine")
    parser.add_argument("--model", required=True)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--life", type=float, default=1.5, help="longest time between start and kill, seconds")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    dice = random.Random(options.seed)
    seen = Seen()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(options, folder)
        for kill in range(1, options.kills + 1):
            server.start()
            if kill > 1:
                counts = check(folder, seen, bool(options.gateway))
            stop = threading.Event()
            seeds = [dice.random() for _ in range(options.clients)]
            clients = [threading.Thread(target=client, args=(server, seen, stop, seed)) for seed in seeds]
            for thread in clients:
                thread.start()
            time.sleep(dice.uniform(0.05, options.life))
            server.kill()
            stop.set()
            for thread in clients:
                thread.join()
            if kill > 1 and kill % 10 == 0:
                print(f"{kill} kills: {len(seen.complete)} answers received, {counts[0]} records, of which "
                      f"{counts[1]} at their marks, {counts[2]} whole but cut, {counts[3]} lost on the way", flush=True)
        server.start()
        counts = check(folder, seen, bool(options.gateway))
        server.kill()
    print(f"{options.kills} kills held: {len(seen.complete)} answers received, {counts[0]} records, "
          f"{counts[1]} billed at their marks, {counts[2]} whole but cut, {counts[3]} lost on the way")


if __name__ == "__main__":
    threading.excepthook = lambda args: (sys.__excepthook__(args.exc_type, args.exc_value, args.exc_traceback), os._exit(1))
    main()
