#!/usr/bin/env python3
"""Responses of the background while the server is killed (SIGKILL): each is there and paid for, or failed and not.

Begins `--responses` of them (every other one streamed), kills the server after a random time, starts it again, looks at
each, and goes on, `--kills` times. Then each response is over; each that is `completed` or `incomplete` has exactly one
usage record with the usage that it tells; each that is `failed` says why and has none; and no other record is there.

    python tests/python/responses_kill.py --bin target/release/mintage --model FILE.gguf --kills 10
    python tests/python/responses_kill.py --gateway target/release/examples/gateway --model FILE.gguf --kills 50

Exit code 0 when everything held. Needs `httpx`.
"""

import argparse
import collections
import json
import random
import tempfile
import time

import httpx

import kill

OVER = ("completed", "incomplete", "failed")


def begin(server, number):
    """The id of a new response; `None` where the server was not there."""
    body = {"model": server.model, "input": f"{kill.PROMPTS[number % len(kill.PROMPTS)]} ({number})",
            "max_output_tokens": 4 + number % 24, "background": True, "stream": number % 2 == 1}
    try:
        with httpx.stream("POST", server.url + "/v1/responses", headers=server.headers(), json=body, timeout=20) as reply:
            assert reply.status_code == 200, (reply.status_code, reply.read())
            if not body["stream"]:
                return json.loads(reply.read())["id"]
            # The client goes away behind the first event.
            for line in reply.iter_lines():
                if line.startswith("data: "):
                    return json.loads(line.removeprefix("data: "))["response"]["id"]
    except httpx.HTTPError:
        return None


def look(server, response):
    return httpx.get(f"{server.url}/v1/responses/{response}", headers=server.headers(), timeout=20).raise_for_status().json()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bin")
    parser.add_argument("--gateway")
    parser.add_argument("--model", required=True)
    parser.add_argument("--responses", type=int, default=8)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--life", type=float, default=1.0, help="seconds from the first response to the kill, at most")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    dice = random.Random(options.seed)
    responses, ended = [], {}
    with tempfile.TemporaryDirectory() as folder:
        server = kill.Server(options, folder)
        server.start()
        for _ in range(options.kills):
            end = time.monotonic() + dice.uniform(0.05, options.life)
            for _ in range(options.responses):
                responses.append(begin(server, len(responses)))
            time.sleep(max(0.0, end - time.monotonic()))
            server.kill()
            server.start()
            for response in filter(None, responses):
                seen = look(server, response)
                # A start ends them all, and what has ended stays as it is.
                assert seen["status"] in OVER, seen
                assert ended.setdefault(response, seen) == seen, (ended[response], seen)
        server.kill()
        rows, marks = kill.records(folder)
    by_id = {row["id"]: row for row in rows}
    assert len(by_id) == len(rows) and marks == 0, (len(rows), marks)
    for response, seen in ended.items():
        row = by_id.pop(response, None)
        if seen["status"] == "failed":
            assert row is None and "Nothing was billed" in seen["error"]["message"], (row, seen)
            continue
        usage = seen["usage"]
        assert row["output"] == usage["output_tokens"], (row, usage)
        assert row["input"] + row["cached_input"] == usage["input_tokens"], (row, usage)
    unknown = [response for response in responses if response is None]
    assert len(by_id) <= len(unknown), by_id
    print(dict(collections.Counter(seen["status"] for seen in ended.values())), f"{len(unknown)} not begun: all held")


if __name__ == "__main__":
    main()
