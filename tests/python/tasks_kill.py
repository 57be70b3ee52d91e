#!/usr/bin/env python3
"""DashScope's tasks while the server is killed (SIGKILL): each is there and paid for, failed and not, or waits and runs.

Submits `--tasks` of them, more than run at once, kills the server after a random time, starts it again, looks at each, and
goes on, `--kills` times. What is over stays as it is. At the end each task is over; each that succeeded has exactly one
usage record, the one that it names, with the usage that it tells; each that failed says why and has none; and no other
record is there.

    python tests/python/tasks_kill.py --bin target/release/mintage --model FILE.gguf --kills 10
    python tests/python/tasks_kill.py --gateway target/release/examples/gateway --model FILE.gguf --kills 50

Exit code 0 when everything held. Needs `httpx`.
"""

import argparse
import collections
import random
import tempfile
import time

import httpx

import kill

SERVICE = "/api/v1/services/aigc/text-generation/generation"
OVER = ("SUCCEEDED", "FAILED")
END_S = 120


def submit(server, number):
    """The id of a new task; `None` where the server was not there."""
    body = {"model": server.model, "input": {"prompt": f"{kill.PROMPTS[number % len(kill.PROMPTS)]} ({number})"},
            "parameters": {"max_tokens": 4 + number % 24}}
    headers = {**server.headers(), "x-dashscope-async": "enable"}
    try:
        reply = httpx.post(server.url + SERVICE, headers=headers, json=body, timeout=20)
        assert reply.status_code == 200, (reply.status_code, reply.text)
        return reply.json()["output"]["task_id"]
    except httpx.HTTPError:
        return None


def look(server, task):
    reply = httpx.get(f"{server.url}/api/v1/tasks/{task}", headers=server.headers(), timeout=20).raise_for_status().json()
    assert reply["output"]["task_status"] in (*OVER, "PENDING", "RUNNING"), reply
    return {"output": reply["output"], "usage": reply.get("usage")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bin")
    parser.add_argument("--gateway")
    parser.add_argument("--model", required=True)
    parser.add_argument("--tasks", type=int, default=24)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--life", type=float, default=1.0, help="seconds from the first task to the kill, at most")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    dice = random.Random(options.seed)
    tasks, ended, waited = [], {}, set()

    def look_at_all():
        for task in filter(None, tasks):
            if task in ended:
                assert look(server, task) == ended[task], ended[task]
                continue
            seen = look(server, task)
            if seen["output"]["task_status"] in OVER:
                ended[task] = seen
            else:
                waited.add(task)

    with tempfile.TemporaryDirectory() as folder:
        server = kill.Server(options, folder)
        server.start()
        for _ in range(options.kills):
            end = time.monotonic() + dice.uniform(0.05, options.life)
            for _ in range(options.tasks):
                tasks.append(submit(server, len(tasks)))
            time.sleep(max(0.0, end - time.monotonic()))
            server.kill()
            server.start()
            look_at_all()
        until = time.monotonic() + END_S
        while len(ended) < sum(task is not None for task in tasks) and time.monotonic() < until:
            time.sleep(0.2)
            look_at_all()
        server.kill()
        rows, marks = kill.records(folder)
    by_id = {row["id"]: row for row in rows}
    assert len(by_id) == len(rows) and marks == 0, (len(rows), marks)
    unknown = tasks.count(None)
    assert len(ended) == len(tasks) - unknown, "tasks do not end"
    for seen in ended.values():
        output = seen["output"]
        if output["task_status"] == "FAILED":
            assert "record_id" not in output and "Nothing was billed" in output["message"], seen
            continue
        row, usage = by_id.pop(output["record_id"]), seen["usage"]
        assert row["output"] == usage["output_tokens"], (row, usage)
        assert row["input"] + row["cached_input"] == usage["input_tokens"], (row, usage)
    assert len(by_id) <= unknown, by_id
    counts = dict(collections.Counter(seen["output"]["task_status"] for seen in ended.values()))
    print(counts, f"{len(waited)} waited over a kill, {unknown} not submitted: all held")


if __name__ == "__main__":
    main()
