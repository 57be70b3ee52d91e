#!/usr/bin/env python3
"""The engine's speed beside llama.cpp's: same machine, same files, same run, alternating pairs, medians, ratios.

    LLAMA_BIN=…/llama.cpp/build/bin MINTAGE_BIN=target/release/mintage MINTAGE_TEST_MODELS=target/ci/models \\
        python3 xtask/peers/speed.py [--rows prefill,decode,long,depth,users,stall,shared,start,memory] [--pairs 5]

llama.cpp is built natively (`-DGGML_NATIVE=ON`) and gets the better of flash attention on and off. Prints a table in
Markdown and, with `--json FILE`, all measured values. Nothing else should run meanwhile.
"""

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

MODELS = {
    "0.5B": "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
    "1.5B": "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
    "135M": "smollm2-135m-instruct-q4_1.gguf",
}
LLAMA = os.environ.get("LLAMA_BIN", "")
MINTAGE = os.environ.get("MINTAGE_BIN", "target/release/mintage")
FOLDER = os.environ.get("MINTAGE_TEST_MODELS", "target/ci/models")
KEY = "sk-mint-peers-0123456789abcdef0123456789abcdef"
PORTS = {"mintage": 18471, "llama.cpp": 18472}
THREADS = str(os.cpu_count())


def path(model):
    return os.path.join(FOLDER, MODELS[model])


def run(command):
    done = subprocess.run(command, text=True, capture_output=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def llama_bench(model, *arguments):
    """{(prompt, generated, depth): tokens/s}, the better of flash attention on and off."""
    out = run([os.path.join(LLAMA, "llama-bench"), "-m", path(model), "-t", THREADS, "-fa", "0,1", "-r", "1",
               "-o", "json", *arguments])
    best = {}
    for row in json.loads(out[out.index("["):]):
        key = (row["n_prompt"], row["n_gen"], row["n_depth"])
        best[key] = max(best.get(key, 0), row["avg_ts"])
    return best


def mintage_bench(model, *arguments):
    """{name: tokens/s}"""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        run([MINTAGE, "bench", "engine", "--model", path(model), "--threads", THREADS, "--repeats", "1",
             "--json", file.name, *arguments])
        report = json.load(open(file.name))
    return {measured["name"]: measured["tokens_per_s"] for measured in report["measured"]}


class Table:
    def __init__(self):
        self.rows = []

    def add(self, work, ours, theirs, unit, higher_is_better=True):
        """Pairs of values; the ratio is the median of the pairs' ratios, above 1 where we are better."""
        ratios = [a / b if higher_is_better else b / a for a, b in zip(ours, theirs)]
        row = {"work": work, "unit": unit, "ours": ours, "theirs": theirs, "ratio": statistics.median(ratios)}
        self.rows.append(row)
        print(self.line(row), flush=True)

    def note(self, work, values, unit, text=""):
        row = {"work": work, "unit": unit, "ours": values, "theirs": [], "ratio": None, "text": text}
        self.rows.append(row)
        print(self.line(row), flush=True)

    @staticmethod
    def line(row):
        ours = f"{statistics.median(row['ours']):.4g} {row['unit']}"
        theirs = f"{statistics.median(row['theirs']):.4g} {row['unit']}" if row["theirs"] else row.get("text") or "–"
        ratio = f"**{row['ratio']:.2f}×**" if row["ratio"] else "–"
        return f"| {row['work']} | {ours} | {theirs} | {ratio} |"

    @staticmethod
    def head():
        print("| work | Mintage | llama.cpp | ratio |\n|---|---|---|---|", flush=True)


def prefill_and_decode(table, pairs, models):
    for model in models:
        ours, theirs = [], []
        for _ in range(pairs):
            theirs.append(llama_bench(model, "-p", "512", "-n", "64"))
            ours.append(mintage_bench(model, "--prefill", "512", "--depth", "0", "--decode", "64", "--users", "1"))
        table.add(f"prefill 512, {model}", [o["prefill 512"] for o in ours], [t[512, 0, 0] for t in theirs], "tok/s")
        table.add(f"decode alone, {model}", [o["decode at 0"] for o in ours], [t[0, 64, 0] for t in theirs], "tok/s")


def long_prompt(table, pairs):
    ours, theirs = [], []
    for _ in range(pairs):
        theirs.append(llama_bench("0.5B", "-p", "8192", "-n", "0")[8192, 0, 0])
        bench = mintage_bench("0.5B", "--prefill", "8192", "--depth", "0", "--users", "1", "--decode", "1")
        ours.append(bench["prefill 8192"])
    table.add("prefill 8,192, 0.5B", ours, theirs, "tok/s")


def depth(table, pairs):
    ours, theirs = [], []
    for _ in range(pairs):
        theirs.append(llama_bench("0.5B", "-p", "0", "-n", "32", "-d", "8192")[0, 32, 8192])
        bench = mintage_bench("0.5B", "--prefill", "64", "--depth", "8192", "--users", "1", "--decode", "32")
        ours.append(bench["decode at 8192"])
    table.add("decode at 8k context, 0.5B", ours, theirs, "tok/s")


class Server:
    """Either server with a model, as a context."""

    def __init__(self, who, model, slots=1, context=4096, extra=()):
        self.who, self.url = who, f"http://127.0.0.1:{PORTS[who]}"
        self.folder = tempfile.TemporaryDirectory()
        log = open(os.path.join(self.folder.name, "log"), "w")
        if who == "mintage":
            command = [MINTAGE, "up", "--listen", f"127.0.0.1:{PORTS[who]}", "--model", path(model),
                       "--data-dir", self.folder.name, *extra]
        else:
            command = [os.path.join(LLAMA, "llama-server"), "-m", path(model), "--port", str(PORTS[who]),
                       "-t", THREADS, "-np", str(slots), "-c", str(context * slots), "--api-key", KEY]
        self.started = time.monotonic()
        self.process = subprocess.Popen(command, stdout=log, stderr=log,
                                        env={**os.environ, "MINTAGE_BOOTSTRAP_KEY": KEY})

    def __enter__(self):
        until = time.monotonic() + 120
        while time.monotonic() < until and self.process.poll() is None:
            try:
                ready = "/readyz" if self.who == "mintage" else "/health"
                if urllib.request.urlopen(self.url + ready, timeout=1).status == 200:
                    return self
            except OSError:
                time.sleep(0.01)
        sys.exit(f"{self.who} did not start:\n" + open(os.path.join(self.folder.name, "log")).read()[-2000:])

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.folder.cleanup()

    def bench(self, *arguments):
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            run([MINTAGE, "bench", "serve", self.url, "--key", KEY, "--json", file.name, *arguments])
            return json.load(open(file.name))

    def first_token_s(self):
        body = {"model": "", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        names = urllib.request.Request(self.url + "/v1/models", headers=headers)
        body["model"] = json.load(urllib.request.urlopen(names))["data"][0]["id"]
        ask = urllib.request.Request(self.url + "/v1/chat/completions", json.dumps(body).encode(), headers)
        urllib.request.urlopen(ask).read()
        return time.monotonic() - self.started

    def resident_mib(self):
        with open(f"/proc/{self.process.pid}/status") as status:
            return int(re.search(r"VmRSS:\s+(\d+) kB", status.read())[1]) / 1024


def pairs_of(measure, pairs):
    """Measures both servers in turn; each measurement starts its own."""
    values = {"mintage": [], "llama.cpp": []}
    for pair in range(pairs):
        for who in values:
            values[who].append(measure(who, pair))
    return values["mintage"], values["llama.cpp"]


def users(table, pairs):
    for count in (1, 2, 4, 8, 16, 32):
        def measure(who, pair):
            with Server(who, "0.5B", slots=count, context=1024) as server:
                report = server.bench("--users", str(count), "--requests", str(2 * count), "--prompt-tokens", "64",
                                      "--output-tokens", "64", "--seed", str(pair + 1))
            return report["runs"][0]["output_tokens_per_s"]
        table.add(f"{count} users at once, 0.5B, output tokens in all", *pairs_of(measure, pairs), "tok/s")


def stall(table, pairs):
    def measure(who, pair):
        with Server(who, "0.5B", slots=4, context=4096) as server:
            return server.bench("--situation", "stall", "--seed", str(10 * pair + 1))["stalls"][0]
    ours, theirs = pairs_of(measure, pairs)
    gaps = [[stall["largest_gap_ms"] for stall in side] for side in (ours, theirs)]
    table.add("3 users decode, a 1,500-word prompt arrives: largest gap", *gaps, "ms", higher_is_better=False)
    waits = [[stall["newcomer_ms"] for stall in side] for side in (ours, theirs)]
    table.add("… the newcomer's time to first token", *waits, "ms", higher_is_better=False)
    alone = [stall["newcomer_ms"] / stall["newcomer_alone_ms"] for stall in ours]
    table.note("… over its time to first token alone", alone, "×")


def shared(table, pairs):
    def measure(who, pair):
        with Server(who, "0.5B", slots=8, context=2048) as server:
            return server.bench("--situation", "shared-prompt", "--seed", str(pair + 1))["runs"][0]["seconds"]
    table.add("8 users, one new 1,000-word system prompt: wall time", *pairs_of(measure, pairs), "s", False)


def start(table, pairs):
    def measure(who, pair):
        with Server(who, "0.5B") as server:
            return server.first_token_s()
    table.add("start to first token, file cached, 0.5B", *pairs_of(measure, pairs), "s", False)


def memory(table, pairs):
    with Server("mintage", "0.5B", extra=("--kv-cache-mib", "16")) as server:
        server.first_token_s()
        resident = server.resident_mib()
    size = os.path.getsize(path("0.5B")) / 2**20
    table.note("resident memory serving the 0.5B, 16 MiB of KV taken off", [resident - 16], "MiB",
               f"file {size:.0f} MiB: +{100 * ((resident - 16) / size - 1):.1f} %")


ROWS = {"prefill": prefill_and_decode, "long": long_prompt, "depth": depth, "users": users, "stall": stall,
        "shared": shared, "start": start, "memory": memory}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--models", default=",".join(MODELS), help="for the rows that compare several")
    parser.add_argument("--json")
    options = parser.parse_args()
    if not LLAMA:
        sys.exit("set LLAMA_BIN to the folder of llama-bench and llama-server")
    table = Table()
    table.head()
    for row in options.rows.split(","):
        if row not in ROWS:
            sys.exit(f"no row `{row}`; there are {', '.join(ROWS)}")
        if row == "prefill":
            prefill_and_decode(table, options.pairs, options.models.split(","))
        else:
            ROWS[row](table, options.pairs)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(table.rows, file, indent=1)


if __name__ == "__main__":
    main()
