#!/usr/bin/env python3
"""Function calls of one model through this server and through llama-server, on the same cases.

    LLAMA_BIN=…/llama.cpp/build/bin MINTAGE_BIN=target/release/mintage MINTAGE_TEST_MODELS=target/ci/models \\
        python3 xtask/peers/function_calling.py [--model 1.5B] [--only mintage] [--choice required] [--strict] [--show] \\
        [--json target/calls.json]

The cases are tests/python/function_calling/cases.jsonl: a question, tools, and the calls that answer it, each argument with
the values that are right (`null`: it may be left out). Greedy; `--jinja` for llama-server. A case is right where exactly the
expected calls are made, in any order, with right arguments and no others. Malformed is an answer with a status other than
200, arguments that are no object or that the tool's schema refuses, a call of no known tool, or the markup of a call left in
the text. With `--choice required` the cases without a call are left out, and a missing call counts as malformed.
"""

import argparse
import json
import pathlib
import re
import sys
import time
import urllib.error
import urllib.request

import speed

CASES = pathlib.Path(__file__).parent.parent.parent / "tests/python/function_calling/cases.jsonl"
SYSTEM = "You are a helpful assistant. Call a tool only where the question needs it. Otherwise answer in words."
MAX_TOKENS = 300
MARKUP = re.compile(r"</?tool_call>|</?tools>|\"arguments\"\s*:|<function=|\[TOOL_CALLS\]")
KINDS = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list, "object": dict}


def served_name(server):
    request = urllib.request.Request(server.url + "/v1/models", headers={"authorization": f"Bearer {speed.KEY}"})
    return json.load(urllib.request.urlopen(request))["data"][0]["id"]


def ask(server, name, case, options):
    tools = json.loads(json.dumps(case["tools"]))
    if options.strict:
        for tool in tools:
            tool["function"]["strict"] = True
    body = {"model": name, "temperature": 0, "max_tokens": MAX_TOKENS, "tools": tools,
            "tool_choice": options.choice,
            "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": case["user"]}]}
    headers = {"authorization": f"Bearer {speed.KEY}", "content-type": "application/json"}
    request = urllib.request.Request(server.url + "/v1/chat/completions", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=speed.TIMEOUT_S) as reply:
            return 200, json.load(reply)["choices"][0]
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")


def same(given, wanted):
    if isinstance(given, str) and isinstance(wanted, str):
        return given.strip().casefold() == wanted.strip().casefold()
    if isinstance(given, bool) or isinstance(wanted, bool):
        return given is wanted
    return given == wanted


def matches(call, expected):
    name, arguments = call
    if name != expected["name"] or set(arguments) - set(expected["arguments"]):
        return False
    return all(any(same(arguments.get(key), wanted) for wanted in values)
               for key, values in expected["arguments"].items())


def are_right(calls, expected):
    rest = list(calls)
    for one in expected:
        found = next((call for call in rest if matches(call, one)), None)
        if found is None:
            return False
        rest.remove(found)
    return not rest


def fault(name, arguments, tools):
    """What is wrong with a call by its tool's schema, as far as the cases' schemas go."""
    tool = next((tool["function"] for tool in tools if tool["function"]["name"] == name), None)
    if tool is None:
        return f"no tool is called {name!r}"
    if not isinstance(arguments, dict):
        return "arguments are no object"
    schema = tool["parameters"]
    for key, value in arguments.items():
        found = schema["properties"].get(key)
        if found is None:
            return f"unknown argument {key!r}"
        kind = KINDS[found["type"]]
        if not isinstance(value, kind) or (isinstance(value, bool) and found["type"] != "boolean"):
            return f"{key!r} is no {found['type']}"
        if value not in found.get("enum", [value]):
            return f"{key!r} is none of its values"
    missing = set(schema["required"]) - set(arguments)
    return f"{missing} missing" if missing else None


def judge(status, choice, case, options):
    """(right, what is malformed)"""
    if status != 200:
        return False, f"status {status}: {choice[:200]}"
    message = choice["message"]
    calls, wrong = [], None
    for call in message.get("tool_calls") or []:
        function = call["function"]
        try:
            arguments = json.loads(function["arguments"])
        except ValueError:
            arguments = None
        wrong = wrong or fault(function["name"], arguments, case["tools"])
        calls.append((function["name"], arguments if isinstance(arguments, dict) else {}))
    if not wrong and MARKUP.search(message.get("content") or ""):
        wrong = "markup in the text"
    if not wrong and options.choice == "required" and not calls:
        wrong = "no call, though one was required"
    return not wrong and are_right(calls, case["expected"]), wrong


def run(who, cases, options):
    out = {"right": 0, "malformed": 0, "no call": 0, "seconds": 0.0, "failures": []}
    extra = ("--jinja",) if who == "llama.cpp" else ()
    with speed.Server(who, options.model, slots=1, context=4096, extra=extra) as server:
        name, started = served_name(server), time.monotonic()
        for case in cases:
            status, choice = ask(server, name, case, options)
            right, wrong = judge(status, choice, case, options)
            out["right"] += right
            out["malformed"] += bool(wrong)
            message = choice["message"] if status == 200 else {}
            out["no call"] += bool(case["expected"]) and not message.get("tool_calls")
            if not right:
                said = message.get("tool_calls") or message.get("content")
                out["failures"].append({"id": case["id"], "wrong": wrong, "said": said})
                if options.show:
                    print(f"{who} {case['id']}: {wrong or 'not the expected calls'}: "
                          f"{json.dumps(said, ensure_ascii=False)[:400]}", file=sys.stderr)
        out["seconds"] = round(time.monotonic() - started, 1)
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=speed.MODELS, default="1.5B")
    parser.add_argument("--only", choices=("mintage", "llama.cpp"))
    parser.add_argument("--choice", choices=("auto", "required"), default="auto")
    parser.add_argument("--strict", action="store_true", help="ask for arguments that follow their schema")
    parser.add_argument("--show", action="store_true", help="what was said where it was not right")
    parser.add_argument("--json", help="where to write what came out")
    options = parser.parse_args()
    cases = [json.loads(line) for line in CASES.read_text().splitlines()]
    if options.choice == "required":
        cases = [case for case in cases if case["expected"]]
    report = {"cases": len(cases), "model": options.model, "choice": options.choice, "strict": options.strict}
    for who in ("mintage", "llama.cpp"):
        if options.only in (None, who):
            report[who] = run(who, cases, options)
            short = {key: value for key, value in report[who].items() if key != "failures"}
            print(f"{who}: {json.dumps(short)} of {len(cases)} cases", flush=True)
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(report, ensure_ascii=False, indent=1))
    sys.exit(bool(report.get("mintage", {}).get("malformed")))


if __name__ == "__main__":
    main()
