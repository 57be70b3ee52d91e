#!/usr/bin/env python3
"""A batch of many lines while the server is killed (SIGKILL) again and again: each line once, billed once, at half price.

Uploads an input, begins a batch, kills the server after random times, starts it again, which goes on with the batch,
until that is complete. Then:

- each line is exactly once in the output or among the errors (every 50th is wrong on purpose, and an error);
- each answer has exactly one usage record, marked as of a batch, with the usage that the line tells;
- no other record is there, so nothing was billed twice or for nothing;
- with `--gateway` (the scripted engine, with prices) each amount is half of what it would be online.

    python tests/python/batch_kill.py --gateway target/release/examples/gateway --model FILE.gguf --lines 2000 --kills 20
    python tests/python/batch_kill.py --bin target/release/mintage --model FILE.gguf --lines 200 --kills 5

Exit code 0 when everything held. Needs `httpx`.
"""

import argparse
import json
import os
import random
import tempfile
import time

import httpx

import kill


def lines(model, count):
    for n in range(count):
        messages = [{"role": "user", "content": f"{kill.PROMPTS[n % len(kill.PROMPTS)]} ({n})"}]
        body = {"model": model, "max_tokens": 8, "messages": messages if n % 50 != 49 else []}
        yield json.dumps({"custom_id": f"c{n}", "method": "POST", "url": "/v1/chat/completions", "body": body})


def begin(server, count):
    content = "\n".join(lines(server.model, count)).encode()
    file = httpx.post(server.url + "/v1/files", headers=server.headers(), timeout=60, data={"purpose": "batch"},
                      files={"file": ("in.jsonl", content)}).raise_for_status().json()
    body = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    return httpx.post(server.url + "/v1/batches", headers=server.headers(), json=body).raise_for_status().json()["id"]


def look(server, batch):
    return httpx.get(f"{server.url}/v1/batches/{batch}", headers=server.headers()).raise_for_status().json()


def results(server, batch, name):
    if not batch.get(name):
        return []
    url = f"{server.url}/v1/files/{batch[name]}/content"
    text = httpx.get(url, headers=server.headers(), timeout=60).raise_for_status().text
    return [json.loads(line) for line in text.splitlines()]


def check(server, folder, batch, count, has_prices):
    output, errors = results(server, batch, "output_file_id"), results(server, batch, "error_file_id")
    ids = [line["custom_id"] for line in output + errors]
    assert sorted(ids) == sorted(f"c{n}" for n in range(count)), "a line is missing, or there twice"
    wrong = {f"c{n}" for n in range(49, count, 50)}
    assert {line["custom_id"] for line in errors} == wrong, errors[:3]
    counts = batch["request_counts"]
    assert counts == {"total": count, "completed": count - len(wrong), "failed": len(wrong)}, counts
    server.kill()
    rows, marks = kill.records(folder)
    by_id = {row["id"]: row for row in rows}
    assert len(by_id) == len(rows) == len(output) and marks == 0, (len(rows), len(output), marks)
    for line in output:
        body = line["response"]["body"]
        row, usage = by_id[body["id"]], body["usage"]
        prompt = row["input"] + row["cached_input"]
        assert row["batch"] and row["output"] == usage["completion_tokens"] and prompt == usage["prompt_tokens"], row
        assert row["posted"] == row["amount_pico"], row
        if has_prices:
            assert row["amount_pico"] * 2 == prompt * 800_000 + row["output"] * 2_000_000, row


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bin", default=os.environ.get("MINTAGE_BIN"))
    parser.add_argument("--gateway", help="the example `gateway`, instead of the real engine")
    parser.add_argument("--model", required=True)
    parser.add_argument("--lines", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--life", type=float, default=1.5, help="longest time between start and kill, seconds")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    dice = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        server = kill.Server(options, folder)
        server.start()
        batch = begin(server, options.lines)
        done, kills = [], 0
        for kills in range(1, options.kills + 1):
            time.sleep(dice.uniform(0.05, options.life))
            server.kill()
            server.start()
            shown = look(server, batch)
            done.append(shown["request_counts"]["completed"] + shown["request_counts"]["failed"])
            if shown["status"] == "completed":
                break
        began = time.monotonic()
        while (shown := look(server, batch))["status"] not in ("completed", "failed", "expired", "cancelled"):
            assert time.monotonic() < began + 600, shown
            time.sleep(0.2)
        assert shown["status"] == "completed", shown
        in_the_middle = sum(0 < n < options.lines for n in done)
        assert in_the_middle, f"no kill hit the batch in the middle: {done}"
        check(server, folder, shown, options.lines, bool(options.gateway))
    print(f"{options.lines} lines, {kills} kills, {in_the_middle} of them in the middle (at {done}): each line once, billed once")


if __name__ == "__main__":
    main()
