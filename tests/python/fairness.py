#!/usr/bin/env python3
"""One tenant with 200 requests queued: what is left for the others?

Starts a server with the real engine and several organisations.

- Slow-down: a single streamed answer of a modest tenant, alone and then while 200 requests of another one are queued;
  the medians of several, to its first token and to its end. At most `--slowdown` times as long (0: only shown).
- Shares: the abuser with 200 requests and three tenants with 24 each, all at once. While all of them have more waiting
  than can run, Jain's index of the tokens that each was sent must be at least 0.95.

    python tests/python/fairness.py --bin target/release/mintage --model FILE.gguf

Exit code 0 when both held. Needs `httpx`.
"""

import argparse
import asyncio
import collections
import os
import statistics
import sys
import tempfile
import time

import httpx

import shared

ABUSE, MODEST = 200, 24
LEAST_INDEX = 0.95


def body(number, tokens, stream=True):
    # No two prompts begin alike: nobody gains from what another computed.
    text = f"{number} is a number. Tell me a story in which it matters, and do not stop."
    return {"model": "small", "max_tokens": tokens, "ignore_eos": True, "temperature": 0, "stream": stream,
            "messages": [{"role": "user", "content": text}]}


async def answer(client, key, payload, seen=lambda: None):
    """Seconds to the first token and to the end; `seen` is called for each token."""
    start, first = time.monotonic(), None
    headers = {"authorization": f"Bearer {key}"}
    async with client.stream("POST", "/v1/chat/completions", json=payload, headers=headers) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if line.startswith("data: {") and '"content":"' in line:
                first = first or time.monotonic()
                seen()
    return (first or time.monotonic()) - start, time.monotonic() - start


async def singles(client, key, count, begin, tokens):
    times = [await answer(client, key, body(begin + i, tokens)) for i in range(count)]
    return [statistics.median(one[at] for one in times) for at in (0, 1)]


async def slow_down(client, keys, options):
    """How many times as long a single answer takes beside the abuser's: to the first token, to the end."""
    await singles(client, keys[1], 2, 10_000, options.tokens)
    alone = await singles(client, keys[1], options.singles, 20_000, options.tokens)
    abuse = [asyncio.create_task(answer(client, keys[0], body(30_000 + i, 200, stream=False))) for i in range(ABUSE)]
    await asyncio.sleep(2)
    beside = await singles(client, keys[1], options.singles, 40_000, options.tokens)
    left = sum(not task.done() for task in abuse)
    for task in abuse:
        task.cancel()
    await asyncio.gather(*abuse, return_exceptions=True)
    assert left > ABUSE / 2, f"only {left} of the abuser's requests were left: too easy"
    ratios = [b / a for a, b in zip(alone, beside)]
    print(f"a single answer of {options.tokens} tokens, alone and beside {ABUSE} requests: to the first token "
          f"{alone[0] * 1000:.0f} and {beside[0] * 1000:.0f} ms, to the end {alone[1] * 1000:.0f} and "
          f"{beside[1] * 1000:.0f} ms, {ratios[1]:.2f} times as long; {left} of theirs were left", flush=True)
    return ratios[1]


async def shares(client, keys, running):
    """Jain's index of the tokens that tenants got while all wanted more."""
    got, left = collections.Counter(), collections.Counter()
    enough = asyncio.Event()

    async def one(tenant, number):
        def seen():
            if not enough.is_set():
                got[tenant] += 1
        await answer(client, keys[tenant], body(number, 60), seen)
        left[tenant] -= 1
        if left[tenant] <= running // len(keys):
            enough.set()
    tasks = []
    for tenant in range(len(keys)):
        left[tenant] = ABUSE if tenant == 0 else MODEST
        tasks += [asyncio.create_task(one(tenant, 50_000 + 1000 * tenant + i)) for i in range(left[tenant])]
    waiting = asyncio.create_task(enough.wait())
    done, _ = await asyncio.wait([waiting, *tasks], return_when=asyncio.FIRST_EXCEPTION)
    broken = [task.exception() for task in done if task is not waiting and task.exception()]
    assert not broken, broken[0]
    assert enough.is_set()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    sums = [got[tenant] for tenant in range(len(keys))]
    index = sum(sums) ** 2 / (len(sums) * sum(x * x for x in sums))
    print(f"tokens sent to the abuser with {ABUSE} requests and to three tenants with {MODEST} each: {sums}; Jain's "
          f"index {index:.3f}", flush=True)
    return index


async def ask(url, keys, options):
    limits = httpx.Limits(max_connections=1000)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
        ratio = await slow_down(client, keys, options)
        # What was left has been cancelled; the engine comes to rest.
        await asyncio.sleep(1)
        index = await shares(client, keys, options.running)
    return index >= LEAST_INDEX and (options.slowdown == 0 or ratio <= options.slowdown)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bin", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--slowdown", type=float, default=2)
    parser.add_argument("--singles", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=60, help="of a single answer")
    parser.add_argument("--running", type=int, default=16, help="requests that the engine runs at once")
    options = parser.parse_args()
    options.bin, options.model = os.path.abspath(options.bin), os.path.abspath(options.model)
    with tempfile.TemporaryDirectory() as folder:
        house = shared.House(options, folder, "one", None)
        with open(house.config) as file:
            settings = file.read().replace("threads = 1\n", "").replace("kv_cache_mib = 64", "kv_cache_mib = 256")
        with open(house.config, "w") as file:
            file.write(settings.replace("max_waiting", f"max_running = {options.running}\nmax_waiting"))
        prices = os.path.join(folder, "prices.toml")
        with open(prices, "w") as file:
            file.write(shared.PRICES)
        house.mintage("price", "import", prices)
        keys = [shared.tenant(house, name, "100000")[3] for name in ("abuser", "one", "two", "three")]
        house.start()
        try:
            house.ready()
            held = asyncio.run(ask(house.url, keys, options))
            house.stop()
        finally:
            if house.process.poll() is None:
                house.process.kill()
    sys.exit(0 if held else "not fair")


if __name__ == "__main__":
    main()
