#!/usr/bin/env python3
"""The table of speeds: this engine beside llama.cpp on the same machine, the same files, in alternating pairs.

    LLAMA_BIN=…/llama.cpp/build/bin MINTAGE_BIN=target/release/mintage MINTAGE_TEST_MODELS=target/ci/models \\
        python3 xtask/peers/speed.py [--rows 1,2,…,12] [--pairs 5] [--models 0.5B,1.5B,135M] [--users 4,16] \\
        [--json target/speed.json] [--fresh]
    python3 xtask/peers/speed.py --print [--json target/speed.json]

llama.cpp is built natively (`-DGGML_NATIVE=ON`); for each row flash attention is tried once on and once off, and the
better is kept for the pairs. Ratios are medians of the pairs' ratios. Every pair is added to the JSON file as soon as it
is measured, so that rows can be run one by one whenever the machine is quiet, and interrupted; `--print` shows what there
is. A pair of row 2 or 4 takes about a minute and a half. Nothing else should run meanwhile.
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
THREADS = str(len(os.sched_getaffinity(0)))
USERS = (1, 2, 4, 8, 16, 32)
TIMEOUT_S = 900

# What each line of the table must reach and where it is going, by (row, key). `judged` says by what: the ratio to
# llama.cpp, or our own value, which must then be at least or at most so much.
LINES = {}


def line(row, key, work, unit, judged="ratio", must=None, goal=None):
    LINES[f"{row} {key}".strip()] = {"row": row, "work": work, "unit": unit, "judged": judged, "must": must, "goal": goal}


for model, must, goal in (("0.5B", 3.3, 4.5), ("1.5B", 2.3, 3), ("135M", 3.3, 4.5)):
    line(1, model, f"prefill 512 tokens, {model}", "tok/s", must=must, goal=goal)
line(2, "", "prefill 8,192 tokens, 0.5B", "tok/s", must=3, goal=4)
for model, must in (("0.5B", 1.3), ("1.5B", 1.15), ("135M", 1.5)):
    line(3, model, f"decode alone, {model}", "tok/s", must=must)
    line(3, f"{model} share", f"… share of streaming read, {model}", "%", "at least", goal=95)
line(4, "", "decode at 8k context, 0.5B", "tok/s", must=1.8, goal=2.5)
for count in USERS:
    name = "1 user" if count == 1 else f"{count} users at once"
    line(5, str(count), f"{name}, 0.5B, total", "tok/s", must={4: 3, 16: 3.5}.get(count), goal=5 if count > 1 else None)
line(5, "least", "… the slowest of them over one user alone", "×", "at least", must=1)
line(6, "gap", "3 users decode, a 1,500-word prompt arrives: largest gap", "ms", "at most", must=300, goal=150)
line(6, "newcomer", "… the newcomer's TTFT over its TTFT alone", "×", "at most", must=1.5, goal=1.2)
line(6, "ttft", "… the newcomer's TTFT", "ms")
line(7, "", "8 users, one new 1,000-word system prompt: wall time", "s", must=12, goal=20)
line(8, "edit", "code edit, speculation over our plain decode", "×", "at least", must=2.5, goal=4)
line(8, "prose", "… prose, the same", "×", "at least", must=1)
line(9, "", "1.5B with the 0.5B as draft, code, over our plain decode", "×", "at least", must=1.2, goal=1.6)
line(10, "", "`mintage up` to first token, file cached, 0.5B", "s", "at most", must=1.5, goal=0.5)
line(11, "", "resident memory over the file's size, without KV", "%", "at most", must=15, goal=5)
line(12, "", "the engine's own share of a step, 16 users", "%", "at most", must=8, goal=3)
line(12, "taken", "… throughput left with one core taken by another process", "%", "at least", must=45)
LOWER_IS_BETTER = {"ms", "s"}


def path(model):
    return os.path.join(FOLDER, MODELS[model])


def run(command):
    done = subprocess.run(command, text=True, capture_output=True, timeout=TIMEOUT_S)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def mintage_json(*arguments):
    """What a `mintage bench …` writes as JSON."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        run([MINTAGE, "bench", *arguments, "--json", file.name])
        return json.load(open(file.name))


def mintage_engine(model, *arguments):
    """({name: tokens/s}, the whole report)"""
    report = mintage_json("engine", "--model", path(model), "--threads", THREADS, "--repeats", "1", *arguments)
    return {measured["name"]: measured["tokens_per_s"] for measured in report["measured"]}, report


def llama_bench(model, flash, *arguments):
    """tokens/s of the one measurement asked for."""
    out = run([os.path.join(LLAMA, "llama-bench"), "-m", path(model), "-t", THREADS, "-fa", str(flash), "-r", "1",
               "-o", "json", *arguments])
    return json.loads(out[out.index("["):])[0]["avg_ts"]


class Results:
    """All values measured so far, in a file."""

    def __init__(self, file):
        self.file, self.state = file, {"machine": "", "flash": {}, "values": {}}
        if file and os.path.exists(file):
            self.state = json.load(open(file))
        self.state["machine"] = machine() or self.state["machine"]

    def save(self):
        if self.file:
            with open(self.file + ".new", "w") as file:
                json.dump(self.state, file, indent=1)
            os.replace(self.file + ".new", self.file)

    def add(self, key, ours, theirs=None, remark=None):
        values = self.state["values"].setdefault(key, {"ours": [], "theirs": []})
        values["ours"].append(ours)
        if theirs is not None:
            values["theirs"].append(theirs)
        if remark:
            values["remark"] = remark
        self.save()
        beside = "" if theirs is None else f", llama.cpp {theirs:.4g}"
        print(f"  {key}: {ours:.4g}{beside} {LINES[key]['unit']}", file=sys.stderr, flush=True)

    def forget(self, row):
        for key in [key for key in self.state["values"] if LINES.get(key, {}).get("row") == row]:
            del self.state["values"][key]

    def flash(self, key, measure, better=max):
        """Whether llama.cpp does better with flash attention, by one try of each; tried once."""
        if key not in self.state["flash"]:
            tried = {flash: measure(flash) for flash in (0, 1)}
            self.state["flash"][key] = better(tried, key=tried.get)
            self.save()
        return self.state["flash"][key]


def machine():
    text = open("/proc/cpuinfo").read() if os.path.exists("/proc/cpuinfo") else ""
    name = re.search(r"model name\s*: (.*)", text)
    extensions = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "amx_int8") if f" {flag}" in text]
    return f"{name[1] if name else 'unknown processor'}, {THREADS} cores, {' '.join(extensions)}"


def alternating(pairs, ours, theirs):
    """Pairs of values, each side first in turn."""
    for pair in range(pairs):
        if pair % 2:
            b = theirs()
            a = ours()
        else:
            a = ours()
            b = theirs()
        yield a, b


def engine_row(results, key, model, pairs, ours, theirs):
    """A row of llama-bench beside `mintage bench engine`: arguments of both, and the name of our measurement."""
    name, arguments = ours
    flash = results.flash(key, lambda flash: llama_bench(model, flash, *theirs))
    for a, b in alternating(pairs, lambda: mintage_engine(model, *arguments),
                            lambda: llama_bench(model, flash, *theirs)):
        results.add(key, a[0][name], b)
        yield a


def prefill(results, pairs, models):
    for model in models:
        ours = ("prefill 512", ("--prefill", "512", "--depth", "0", "--decode", "1", "--users", "1"))
        for _ in engine_row(results, f"1 {model}", model, pairs, ours, ("-p", "512", "-n", "0")):
            pass


def long_prompt(results, pairs, models):
    # llama-bench's warm-up would be the whole prompt once more.
    ours = ("prefill 8192", ("--prefill", "8192", "--depth", "0", "--decode", "1", "--users", "1"))
    for _ in engine_row(results, "2", "0.5B", pairs, ours, ("-p", "8192", "-n", "0", "--no-warmup")):
        pass


def decode(results, pairs, models):
    for model in models:
        ours = ("decode at 0", ("--prefill", "8", "--depth", "0", "--decode", "64", "--users", "1"))
        for rates, report in engine_row(results, f"3 {model}", model, pairs, ours, ("-p", "0", "-n", "64")):
            # The machine's own limit, measured beside.
            limits = mintage_json("kernels", "--format", "Q4_0", "--rows", "1", "--shape", "256x256",
                                  "--threads", THREADS)
            read = rates["decode at 0"] * report["step_weight_bytes"] / 1e9
            results.add(f"3 {model} share", 100 * read / limits["read_gb_per_s"],
                        remark=f"{report['step_weight_bytes'] / 1e6:.0f} MB a step")


def depth(results, pairs, models):
    ours = ("decode at 8192", ("--prefill", "64", "--depth", "8192", "--decode", "32", "--users", "1"))
    for _ in engine_row(results, "4", "0.5B", pairs, ours, ("-p", "0", "-n", "32", "-d", "8192")):
        pass


class Server:
    """Either server with a model, as a context."""

    def __init__(self, who, model, slots=1, context=4096, flash=None, extra=()):
        self.who, self.url = who, f"http://127.0.0.1:{PORTS[who]}"
        self.folder = tempfile.TemporaryDirectory()
        log = open(os.path.join(self.folder.name, "log"), "w")
        if who == "mintage":
            command = [MINTAGE, "up", "--listen", f"127.0.0.1:{PORTS[who]}", "--model", path(model),
                       "--data-dir", self.folder.name, *extra]
        else:
            command = [os.path.join(LLAMA, "llama-server"), "-m", path(model), "--port", str(PORTS[who]),
                       "-t", THREADS, "-np", str(slots), "-c", str(context * slots), "--api-key", KEY, *extra]
            if flash is not None:
                command += ["-fa", "on" if flash else "off"]
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
        return mintage_json("serve", self.url, "--key", KEY, *arguments)

    def first_token_s(self):
        """From the start of the process to the whole answer of one token."""
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        names = urllib.request.Request(self.url + "/v1/models", headers=headers)
        model = json.load(urllib.request.urlopen(names))["data"][0]["id"]
        body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
        ask = urllib.request.Request(self.url + "/v1/chat/completions", json.dumps(body).encode(), headers)
        urllib.request.urlopen(ask).read()
        return time.monotonic() - self.started

    def resident_mib(self):
        with open(f"/proc/{self.process.pid}/status") as status:
            return int(re.search(r"VmRSS:\s+(\d+) kB", status.read())[1]) / 1024


def server_row(results, key, pairs, measure, value, better):
    """Pairs of `measure(server, seed)`, each with servers of its own; `value` is what tells flash attention on from off."""
    serve, ask = measure
    seeds = iter(range(1, 1_000_000))

    def once(who, flash=None):
        # A new seed each time: no prompt may come from a cache.
        with Server(who, "0.5B", flash=flash, **serve) as server:
            return ask(server, str(int(time.time()) % 100_000 * 100 + next(seeds)))

    flash = results.flash(key, lambda flash: value(once("llama.cpp", flash)), better)
    yield from alternating(pairs, lambda: once("mintage"), lambda: once("llama.cpp", flash))


def users(results, pairs, models, counts=USERS):
    for count in counts:
        requests = count if count >= 32 else 2 * count

        def ask(server, seed):
            report = server.bench("--users", str(count), "--requests", str(requests), "--prompt-tokens", "64",
                                  "--output-tokens", "64", "--seed", seed)
            return report["runs"][0]["output_tokens_per_s"]
        measure = ({"slots": count, "context": 1024}, ask)
        for a, b in server_row(results, f"5 {count}", pairs, measure, float, max):
            results.add(f"5 {count}", a, b)


def stall(results, pairs, models):
    measure = ({"slots": 4}, lambda server, seed: server.bench("--situation", "stall", "--seed", seed)["stalls"][0])
    for a, b in server_row(results, "6", pairs, measure, lambda stall: stall["largest_gap_ms"], min):
        results.add("6 gap", a["largest_gap_ms"], b["largest_gap_ms"])
        over = [stall["newcomer_ms"] / stall["newcomer_alone_ms"] for stall in (a, b)]
        results.add("6 newcomer", *over)
        results.add("6 ttft", a["newcomer_ms"], b["newcomer_ms"])


def shared(results, pairs, models):
    def ask(server, seed):
        return server.bench("--situation", "shared-prompt", "--seed", seed)["runs"][0]["seconds"]
    for a, b in server_row(results, "7", pairs, ({"slots": 8, "context": 2048}, ask), float, min):
        results.add("7", a, b)


def speculation(results, pairs, models):
    for _ in range(pairs):
        report = mintage_json("speculation", "--model", path("0.5B"), "--workloads", "edit,prose", "--repeats", "1",
                              "--threads", THREADS)
        for measured in report["measured"]:
            key = "8 prose" if measured["name"] == "prose" else "8 edit"
            results.add(key, measured["ratio"], remark=speculation_remark(measured))


def draft_model(results, pairs, models):
    for _ in range(pairs):
        report = mintage_json("speculation", "--model", path("1.5B"), "--draft", path("0.5B"), "--workloads", "code",
                              "--repeats", "1", "--threads", THREADS)
        measured = report["measured"][0]
        results.add("9", measured["ratio"], remark=speculation_remark(measured))


def speculation_remark(measured):
    same = "identical" if measured["identical"] else "DIFFERENT"
    return f"{measured['guessing_tokens_per_s']:.1f} for {measured['plain_tokens_per_s']:.1f} tok/s, {same}"


def start(results, pairs, models):
    def once(who):
        with Server(who, "0.5B") as server:
            return server.first_token_s()
    once("mintage")
    for a, b in alternating(pairs, lambda: once("mintage"), lambda: once("llama.cpp")):
        results.add("10", a, b)


def memory(results, pairs, models):
    kv_mib = 16
    with Server("mintage", "0.5B", extra=("--kv-cache-mib", str(kv_mib))) as server:
        server.first_token_s()
        resident = server.resident_mib() - kv_mib
    size = os.path.getsize(path("0.5B")) / 2**20
    results.add("11", 100 * (resident / size - 1), remark=f"{resident:.0f} MiB for a file of {size:.0f} MiB")


def own_share(results, pairs, models):
    for _ in range(pairs):
        report = mintage_json("robustness", "--model", path("0.5B"), "--users", "16", "--repeats", "1",
                              "--threads", THREADS)
        measured = report["measured"][0]
        results.add("12", 100 * measured["own_share"])
        results.add("12 taken", 100 * measured["left"])


ROWS = {1: prefill, 2: long_prompt, 3: decode, 4: depth, 5: users, 6: stall, 7: shared, 8: speculation, 9: draft_model,
        10: start, 11: memory, 12: own_share}
NEEDS_LLAMA = {1, 2, 3, 4, 5, 6, 7, 10}
# Rows of which a pair takes more than a minute.
SLOW = {2, 4}


def ratio_of(wanted, values):
    lower = wanted["unit"] in LOWER_IS_BETTER
    pairs = zip(values["ours"], values["theirs"])
    ratios = [b / a if lower else a / b for a, b in pairs]
    return statistics.median(ratios) if ratios else None


def verdict(wanted, value):
    """What was reached: the goal, the must, or neither."""
    def reached(limit):
        return limit is not None and (value <= limit if wanted["judged"] == "at most" else value >= limit)
    if value is None or (wanted["must"] is None and wanted["goal"] is None):
        return ""
    if reached(wanted["goal"]):
        return "goal"
    if reached(wanted["must"]):
        return "must" if wanted["goal"] is not None else "yes"
    return "**no**" if wanted["must"] is not None else "not yet"


def cells(key, values):
    wanted = LINES[key]
    ours = statistics.median(values["ours"])
    ratio = ratio_of(wanted, values)
    judged = ratio if wanted["judged"] == "ratio" else ours
    sign = {"ratio": "{:g}×", "at least": "≥ {:g} " + wanted["unit"], "at most": "≤ {:g} " + wanted["unit"]}

    def limit(value):
        return "–" if value is None else sign[wanted["judged"]].format(value)
    theirs = f"{statistics.median(values['theirs']):.4g} {wanted['unit']}" if values["theirs"] else "–"
    remark = f" ({values['remark']})" if values.get("remark") else ""
    return [str(wanted["row"]), wanted["work"], f"{ours:.4g} {wanted['unit']}{remark}", theirs,
            "–" if ratio is None else f"**{ratio:.2f}×**", limit(wanted["must"]), limit(wanted["goal"]),
            verdict(wanted, judged), str(len(values["ours"]))]


def with_least(values):
    """Adds the line of row 5 that follows from the others: no number of users may be slower than one."""
    medians = {count: statistics.median(values[f"5 {count}"]["ours"]) for count in USERS if f"5 {count}" in values}
    more = [rate for count, rate in medians.items() if count > 1]
    if 1 in medians and more:
        values = {**values, "5 least": {"ours": [min(more) / medians[1]], "theirs": []}}
    return values


def print_table(results):
    values = with_least(results.state["values"])
    print(f"{results.state['machine']}; medians of pairs, llama.cpp built native, the better of flash attention on and off\n")
    print("| # | work | Mintage | llama.cpp | ratio | must | goal | met | pairs |\n|---|---|---|---|---|---|---|---|---|")
    for key in LINES:
        if key in values and values[key]["ours"]:
            print("| " + " | ".join(cells(key, values[key])) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", default=",".join(map(str, ROWS)), help="numbers of rows")
    parser.add_argument("--pairs", type=int, help="pairs of each; by default 5, of rows 2 and 4 one")
    parser.add_argument("--models", default=",".join(MODELS), help="for rows 1 and 3")
    parser.add_argument("--users", default=",".join(map(str, USERS)), help="for row 5")
    parser.add_argument("--json", default="target/speed.json", help="where values are collected")
    parser.add_argument("--fresh", action="store_true", help="forget earlier values of these rows")
    parser.add_argument("--print", action="store_true", dest="only_print", help="measure nothing, show what there is")
    options = parser.parse_args()
    results = Results(options.json)
    rows = [int(row) for row in options.rows.split(",")] if not options.only_print else []
    if unknown := [row for row in rows if row not in ROWS]:
        sys.exit(f"no row {unknown[0]}; there are 1 to {len(ROWS)}")
    if not LLAMA and NEEDS_LLAMA & set(rows):
        sys.exit("set LLAMA_BIN to the folder of llama-bench and llama-server")
    for row in rows:
        if options.fresh:
            results.forget(row)
        print(f"row {row}", file=sys.stderr, flush=True)
        chosen = {"counts": [int(count) for count in options.users.split(",")]} if row == 5 else {}
        ROWS[row](results, options.pairs or (1 if row in SLOW else 5), options.models.split(","), **chosen)
    print_table(results)


if __name__ == "__main__":
    main()
