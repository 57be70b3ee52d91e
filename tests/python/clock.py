#!/usr/bin/env python3
"""The machine's clock jumps forth and back while the real server answers: is everything billed once, and exactly?

A small library, compiled here with `cc` and preloaded, moves what the server's process reads as the time of day; its
monotonic clock goes on. While clients ask (whole and streamed answers, some hang up, some repeat an idempotency key),
the clock jumps by minutes, hours, months and decades, both ways. At the end:

- every answer has exactly one usage record, with exactly the usage its client saw;
- who hung up is billed for at most what was asked for, once;
- a repeated key was answered again without a second record;
- no hold, no journal mark is left, and the ledger verifies;
- requests were never refused, and the server stayed ready.

    python tests/python/clock.py --bin target/release/mintage --model FILE.gguf --jumps 40

Exit code 0 when everything held. Needs `httpx` and `cc`.
"""

import argparse
import ctypes
import json
import mmap
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time

import httpx

import kill

HERE = os.path.dirname(os.path.abspath(__file__))
DAY = 86_400
JUMPS = [-40 * 365 * DAY, -400 * DAY, -32 * DAY, -DAY, -3600, -61, 0, 61, 3600, DAY, 32 * DAY, 400 * DAY, 30 * 365 * DAY]


class Clock:
    def __init__(self, folder):
        self.library = os.path.join(folder, "realclock.so")
        source = os.path.join(HERE, "realclock.c")
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", self.library, source], check=True)
        self.path = os.path.join(folder, "offset")
        with open(self.path, "wb") as file:
            file.write(bytes(ctypes.sizeof(ctypes.c_long)))
        self.file = open(self.path, "r+b")
        self.map = mmap.mmap(self.file.fileno(), 0)

    def jump(self, seconds):
        self.map[:] = struct.pack("l", seconds)

    def environment(self):
        return {"LD_PRELOAD": self.library, "CLOCK_OFFSET": self.path}


class Seen:
    def __init__(self):
        self.lock = threading.Lock()
        self.complete, self.cut, self.errors, self.replayed = {}, {}, [], 0


def ask(server, seen, dice):
    stream = dice.random() < 0.6
    hang_up_after = dice.randrange(1, 8) if stream and dice.random() < 0.3 else None
    body = {"model": server.model, "max_tokens": dice.randrange(2, 24), "stream": stream,
            "messages": [{"role": "user", "content": dice.choice(kill.PROMPTS)}]}
    if stream:
        body["stream_options"] = {"include_usage": True}
    headers = server.headers()
    key = None if stream or dice.random() < 0.7 else f"key-{dice.random()}"
    if key:
        headers["idempotency-key"] = key
    url = server.url + "/v1/chat/completions"
    if not stream:
        answers = [httpx.post(url, json=body, headers=headers, timeout=60) for _ in range(2 if key else 1)]
        for response in answers:
            assert response.status_code == 200, (response.status_code, response.text)
        answer = answers[0].json()
        with seen.lock:
            assert answer["id"] not in seen.complete
            seen.complete[answer["id"]] = answer["usage"]
            if key and answers[1].headers.get("idempotent-replayed"):
                assert answers[1].json() == answer, "another answer to the same key"
                seen.replayed += 1
            elif key:
                # The clock had jumped beyond the key's life: a new request, with a record of its own.
                again = answers[1].json()
                seen.complete[again["id"]] = again["usage"]
        return
    id, usage, chunks = None, None, 0
    with httpx.stream("POST", url, json=body, headers=headers, timeout=60) as response:
        assert response.status_code == 200, (response.status_code, response.read())
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            assert "error" not in event, event
            id, usage = event["id"], event.get("usage") or usage
            chunks += 1
            if hang_up_after is not None and chunks >= hang_up_after:
                break
    with seen.lock:
        if usage:
            seen.complete[id] = usage
        else:
            seen.cut[id] = body["max_tokens"]


def client(server, seen, stop, seed):
    dice = random.Random(seed)
    while not stop.is_set():
        try:
            ask(server, seen, dice)
        except Exception as error:  # noqa: BLE001: every one of them is the test's business
            with seen.lock:
                seen.errors.append(repr(error))


def check(folder, seen):
    assert not seen.errors, seen.errors[:3]
    rows, marks = kill.records(folder)
    assert marks == 0, f"{marks} journal marks are left"
    by_id = {}
    for row in rows:
        assert row["id"] not in by_id, f"two records of {row['id']}"
        assert row["posted"] == row["amount_pico"], row
        by_id[row["id"]] = row
    for id, usage in seen.complete.items():
        row = by_id.pop(id, None)
        assert row, f"the answer {id} is not recorded"
        assert row["output"] + row["thinking"] == usage["completion_tokens"], (row, usage)
        assert row["input"] + row["cached_input"] == usage["prompt_tokens"], (row, usage)
    for id, most in seen.cut.items():
        row = by_id.pop(id, None)
        assert row is None or row["output"] <= most, (row, most)
    # Who hung up before the first event never saw an id.
    assert len(by_id) <= len(seen.cut), list(by_id.values())[:3]
    return len(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bin", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--jumps", type=int, default=40)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    options.gateway = None
    dice, seen = random.Random(options.seed), Seen()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as tools:
        clock = Clock(tools)
        os.environ.update(clock.environment())
        server = kill.Server(options, folder)
        server.start()
        for name in clock.environment():
            del os.environ[name]
        stop = threading.Event()
        threads = [threading.Thread(target=client, args=(server, seen, stop, dice.random()))
                   for _ in range(options.clients)]
        for thread in threads:
            thread.start()
        for _ in range(options.jumps):
            clock.jump(dice.choice(JUMPS))
            time.sleep(dice.uniform(0.05, 0.5))
            assert httpx.get(server.url + "/readyz", timeout=10).status_code == 200
        clock.jump(0)
        stop.set()
        for thread in threads:
            thread.join()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0, "the server did not end in order"
        count = check(folder, seen)
        environment = {**os.environ, "MINTAGE_DATA_DIR": folder}
        verified = subprocess.run([options.bin, "ledger", "verify"], env=environment, text=True, capture_output=True)
        assert verified.returncode == 0, verified.stderr
    print(f"{options.jumps} jumps held: {len(seen.complete)} answers, {len(seen.cut)} hung up, "
          f"{seen.replayed} answered again, {count} records; {verified.stdout.splitlines()[0]}")


if __name__ == "__main__":
    main()
