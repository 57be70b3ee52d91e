#!/usr/bin/env python3
"""Many users at once, many of whom hang up: does every finished answer stay the one it is alone?

Asks a fixed set of questions one by one and keeps the answers. Then lets `--users` users ask them all at once for
`--seconds` seconds, streamed; a share of them hangs up after a random number of chunks. Every answer that was read to
its end must equal the one given alone. At the end the server must be idle, its page accounting whole, and its memory
where it was after the first minute.

    python tests/python/soak.py --bin target/release/mintage --model FILE.gguf --users 32 --seconds 300
    python tests/python/soak.py --url http://127.0.0.1:8080 --key sk-… --pid 1234

Exit code 0 when everything held. Needs `httpx` (the `openai` package brings it).
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field

import httpx

KEY = "sk-mint-soak-0123456789abcdef0123456789abcdef"

TOPICS = [
    "Write a Python function that reverses a linked list.",
    "用一句话解释什么是云计算。",
    "List three prime numbers and say why each is prime.",
    "Write an SQL query that counts orders per customer.",
    "Translate to Chinese: the weather is fine today.",
    "Explain the difference between a process and a thread.",
    "写一首关于秋天的短诗。",
    "What does the HTTP status code 429 mean?",
]
SYSTEM = "You are a careful assistant. Answer briefly, in the language of the question. " * 6


@dataclass
class Tally:
    finished: int = 0
    hung_up: int = 0
    refused: int = 0
    wrong: list = field(default_factory=list)
    errors: list = field(default_factory=list)


def questions(count):
    """Fixed requests: long and short prompts, shared and own prefixes, greedy and sampled."""
    made = []
    for index in range(count):
        messages = [{"role": "user", "content": f"{TOPICS[index % len(TOPICS)]} (variant {index})"}]
        if index % 3 == 0:
            messages.insert(0, {"role": "system", "content": SYSTEM})
        if index % 5 == 0:
            messages[-1]["content"] += "\n" + "context line, number and word. " * (20 * (index % 4 + 1))
        made.append({
            "messages": messages,
            "max_tokens": 8 + 7 * (index % 6),
            "temperature": 0 if index % 2 == 0 else 0.8,
            "top_p": 0.95,
            "seed": index,
            "stream": True,
            "stream_options": {"include_usage": True},
        })
    return made


async def ask(client, request, hang_up_after=None):
    """Text, finish reason and usage; None where we hung up."""
    text, finish, usage, chunks = "", None, None, 0
    async with client.stream("POST", "/v1/chat/completions", json=request) as response:
        if response.status_code in (429, 503):
            await response.aread()
            return "refused"
        if response.status_code != 200:
            raise RuntimeError(f"status {response.status_code}: {(await response.aread())[:300]!r}")
        async for line in response.aiter_lines():
            if not line.startswith("data: "):
                continue
            if line == "data: [DONE]":
                return text, finish, usage
            event = json.loads(line[6:])
            if "error" in event:
                raise RuntimeError(f"error event: {event['error']}")
            usage = event.get("usage") or usage
            for choice in event["choices"]:
                text += choice["delta"].get("content") or ""
                finish = choice["finish_reason"] or finish
            chunks += 1
            if hang_up_after is not None and chunks >= hang_up_after:
                return None
    raise RuntimeError("the stream ended without [DONE]")


def same(alone, together):
    """Text, reason and counts must agree; how many tokens the cache saved may differ."""
    def essence(answer):
        text, finish, usage = answer
        return text, finish, usage["prompt_tokens"], usage["completion_tokens"]
    return essence(alone) == essence(together)


async def user(number, client, asked, alone, until, hang_up_share, tally):
    dice = random.Random(number)
    while time.monotonic() < until:
        index = dice.randrange(len(asked))
        hang_up = dice.randint(1, 12) if dice.random() < hang_up_share else None
        try:
            answer = await ask(client, asked[index], hang_up)
        except (RuntimeError, httpx.HTTPError) as error:
            tally.errors.append(f"question {index}: {error!r}")
            await asyncio.sleep(0.5)
            continue
        if answer is None:
            tally.hung_up += 1
        elif answer == "refused":
            tally.refused += 1
            await asyncio.sleep(0.2)
        elif same(alone[index], answer):
            tally.finished += 1
        else:
            tally.wrong.append((index, alone[index], answer))


def resident_mib(pid):
    with open(f"/proc/{pid}/status") as status:
        return int(re.search(r"VmRSS:\s+(\d+) kB", status.read())[1]) / 1024


async def metric(client, name):
    text = (await client.get("/metrics")).text
    values = re.findall(rf"^{re.escape(name)}(?:{{[^}}]*}})? ([-+0-9.e]+)$", text, re.M)
    if not values:
        raise RuntimeError(f"/metrics has no `{name}`")
    return sum(float(value) for value in values)


async def idle(client, seconds=30):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        running = await metric(client, "vllm:num_requests_running")
        waiting = await metric(client, "vllm:num_requests_waiting")
        if running == 0 and waiting == 0:
            return True
        await asyncio.sleep(0.2)
    return False


async def watch_memory(pid, until, samples):
    while time.monotonic() < until:
        samples.append(resident_mib(pid))
        await asyncio.sleep(2)


async def soak(options, url, key, pid):
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=options.users)
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=300, limits=limits) as client:
        model = (await client.get("/v1/models")).json()["data"][0]["id"]
        asked = [{"model": model, **question} for question in questions(options.questions)]
        alone = [await ask(client, question) for question in asked]
        print(f"{len(alone)} questions answered alone; now {options.users} users for {options.seconds} s", flush=True)
        tally, samples = Tally(), []
        until = time.monotonic() + options.seconds
        users = [user(n, client, asked, alone, until, options.hang_up, tally) for n in range(options.users)]
        await asyncio.gather(watch_memory(pid, until, samples), *users)
        is_idle = await idle(client)
        broken = await metric(client, "mintage_engine_integrity_failures_total")
        checks = await metric(client, "mintage_engine_integrity_checks_total")
        again = [await ask(client, question) for question in asked[:4]]
    return report(tally, samples, is_idle, broken, checks, all(map(same, alone, again)))


def report(tally, samples, is_idle, broken, checks, still_same):
    settled, last = samples[len(samples) // 5] if samples else 0, samples[-1] if samples else 0
    growth = last - settled
    print(f"finished {tally.finished}, hung up {tally.hung_up}, refused {tally.refused}, "
          f"wrong {len(tally.wrong)}, errors {len(tally.errors)}")
    print(f"resident memory: {settled:.0f} MiB settled, {last:.0f} MiB at the end, {growth:+.1f} MiB")
    print(f"idle at the end: {is_idle}; integrity checks {checks:.0f}, failed {broken:.0f}; "
          f"same answers afterwards: {still_same}")
    for index, alone, together in tally.wrong[:3]:
        print(f"question {index}\n  alone    {alone}\n  together {together}")
    for error in tally.errors[:5]:
        print(error)
    flat = growth <= max(16, 0.02 * settled)
    held = [tally.finished > 0, tally.hung_up > 0, not tally.wrong, not tally.errors,
            is_idle, broken == 0, checks > 0, still_same, flat]
    print("held" if all(held) else f"DID NOT HOLD {held}")
    return all(held)


@contextlib.contextmanager
def running(options, folder, arguments=None, environment=None):
    """The server process and its URL; SIGTERM at the end."""
    server, url = start(options, folder, arguments, environment)
    try:
        yield server, url
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


def start(options, folder, arguments=None, environment=None):
    """Serves `options.model`, or what `arguments` say."""
    what = arguments or ["up", "--model", options.model]
    command = [options.bin, *what, "--listen", "127.0.0.1:0", "--data-dir", folder]
    environment = {**os.environ, "MINTAGE_BOOTSTRAP_KEY": KEY, **(environment or {})}
    log = open(os.path.join(folder, "server.log"), "w+")
    server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    until = time.monotonic() + 120
    while time.monotonic() < until and server.poll() is None:
        with open(log.name) as text:
            found = re.search(r"http://127\.0\.0\.1:\d+", text.read())
        if found:
            try:
                if httpx.get(found[0] + "/readyz", timeout=2).status_code == 200:
                    return server, found[0]
            except httpx.HTTPError:
                pass
        time.sleep(0.1)
    with open(log.name) as text:
        sys.exit("the server did not become ready:\n" + text.read()[-3000:])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bin", default=os.environ.get("MINTAGE_BIN"), help="start this server")
    parser.add_argument("--model", help="with --bin: the model it serves")
    parser.add_argument("--url", help="use a running server")
    parser.add_argument("--key", default=KEY)
    parser.add_argument("--pid", type=int, help="with --url: the process whose memory is watched")
    parser.add_argument("--users", type=int, default=32)
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--questions", type=int, default=48)
    parser.add_argument("--hang-up", type=float, default=0.4, help="share of requests that hang up")
    options = parser.parse_args()
    if options.url:
        held = asyncio.run(soak(options, options.url, options.key, options.pid))
    else:
        with tempfile.TemporaryDirectory() as folder:
            with running(options, folder) as (server, url):
                held = asyncio.run(soak(options, url, KEY, server.pid))
            print(f"server ended with {server.returncode}")
            held = held and server.returncode == 0
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
