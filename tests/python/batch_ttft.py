#!/usr/bin/env python3
"""Does a running batch delay those who wait? The time to the first token online, without a batch and beside one.

Starts the real binary and asks, one request after the other and at random times, for streamed answers: first alone,
then while a batch has more to do than it can. Prints both distributions, and fails where the 95th percentile beside the
batch is more than `--most` times the one without, or where the batch did not get on.

    python tests/python/batch_ttft.py --bin target/release/mintage --model FILE.gguf

Needs `httpx`.
"""

import argparse
import json
import os
import random
import tempfile
import time

import httpx

import batch_kill
import kill


def first_token(server, client, text):
    body = {"model": server.model, "max_tokens": 8, "stream": True, "messages": [{"role": "user", "content": text}]}
    start, first = time.perf_counter(), None
    with client.stream("POST", server.url + "/v1/chat/completions", json=body, headers=server.headers()) as response:
        assert response.status_code == 200, response.read()
        for line in response.iter_lines():
            if first is None and line.startswith("data: {"):
                choices = json.loads(line[6:])["choices"]
                if choices and choices[0]["delta"].get("content"):
                    first = time.perf_counter() - start
    return first


def measure(server, count, seed, pause):
    dice = random.Random(seed)
    taken = []
    with httpx.Client(timeout=60) as client:
        for n in range(count):
            words = " ".join(f"word{dice.randrange(10_000)}" for _ in range(24))
            first = first_token(server, client, f"Repeat: {words}")
            if first is not None:
                taken.append(first * 1000)
            time.sleep(dice.expovariate(1 / pause))
    taken.sort()
    return {p: taken[min(len(taken) - 1, int(len(taken) * p / 100))] for p in (50, 95)}, len(taken)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bin", default=os.environ.get("MINTAGE_BIN"))
    parser.add_argument("--model", required=True)
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--pause", type=float, default=0.15, help="mean time between requests, seconds")
    parser.add_argument("--lines", type=int, default=5000)
    parser.add_argument("--most", type=float, default=1.3)
    options = parser.parse_args()
    options.gateway = None
    with tempfile.TemporaryDirectory() as folder:
        server = kill.Server(options, folder)
        server.start()
        measure(server, 5, 0, options.pause)
        alone, count = measure(server, options.requests, 1, options.pause)
        batch = batch_kill.begin(server, options.lines)
        while batch_kill.look(server, batch)["request_counts"]["completed"] < 8:
            time.sleep(0.1)
        before = batch_kill.look(server, batch)["request_counts"]["completed"]
        beside, _ = measure(server, options.requests, 2, options.pause)
        shown = batch_kill.look(server, batch)
        server.kill()
    done = shown["request_counts"]["completed"] - before
    ratio = beside[95] / alone[95]
    print(f"first token of {count} requests: alone p50 {alone[50]:.0f} ms, p95 {alone[95]:.0f} ms; beside a batch "
          f"p50 {beside[50]:.0f} ms, p95 {beside[95]:.0f} ms: {ratio:.2f} times; {done} lines meanwhile")
    assert shown["status"] == "in_progress", "the batch was too small"
    assert done > 0, "the batch did not get on"
    assert ratio <= options.most, f"{ratio:.2f} is more than {options.most}"


if __name__ == "__main__":
    main()
