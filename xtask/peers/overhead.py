"""How much slower does the engine answer with keys, limits and a durable ledger than without any of them?

    python overhead.py --bin target/release/mintage --model MODEL.gguf [--users 4] [--tokens 256] [--pairs 8]

Two servers of the same binary and model stand side by side, one with everything on (keys, limits that count and never
refuse, the ledger with a commit for each request and its journal), one with everything off (no keys, no ledger). In
turns, so that what else the machine does falls on both, the same users stream the same number of tokens from one and
from the other; the other one is idle meanwhile. Of two servers that are alike the second to start is a percent or two
faster, so half of the pairs are with either first. Prints tokens a second of each turn, by the clock and by processor
time (which other programs disturb less), and the medians.
"""

import argparse
import http.client
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

START_S = 120
KEY = "sk-mint-overhead-0123456789abcdef0123456789"
PROMPTS = ["Write a long story about a river.", "Explain how a bicycle works, in detail.",
           "List the planets and describe each.", "Tell me everything about bread."]


class Server:
    def __init__(self, options, folder, everything):
        self.everything = everything
        settings = os.path.join(folder, "mintage.toml")
        with open(settings, "w") as file:
            file.write(f'''
data_dir = "{folder}"
[server]
listen = "127.0.0.1:0"
require_key = {str(everything).lower()}
[ledger]
enabled = {str(everything).lower()}
[engine]
kv_cache_mib = 256
context_tokens = 1024
[[model]]
source = "{os.path.abspath(options.model)}"
name = "m"
''')
        environment = {**os.environ, "MINTAGE_BOOTSTRAP_KEY": KEY if everything else ""}
        command = [options.bin, "--config", settings]
        self.log = os.path.join(folder, "log")
        with open(self.log, "w") as log:
            self.process = subprocess.Popen([*command, "serve"], env=environment, stdout=log, stderr=log)
        self.port = self.wait()
        if everything:
            limit = [*command, "limit", "--org", "default", "set", "--rpm", "1000000", "--tpm", "1000000000",
                     "--in-flight", "10000"]
            subprocess.run(limit, env=environment, check=True, capture_output=True)
            time.sleep(2)

    def wait(self):
        until = time.monotonic() + START_S
        while time.monotonic() < until and self.process.poll() is None:
            with open(self.log) as file:
                found = re.search(r"http://127\.0\.0\.1:(\d+)", file.read())
            if found:
                return int(found[1])
            time.sleep(0.05)
        with open(self.log) as file:
            sys.exit("a server did not start:\n" + file.read()[-2000:])

    def stream(self, prompt, tokens, counts):
        """Streams one answer; appends how many tokens it had."""
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": prompt}], "max_tokens": tokens,
                           "ignore_eos": True, "stream": True, "temperature": 0,
                           "stream_options": {"include_usage": True}})
        headers = {"content-type": "application/json"}
        if self.everything:
            headers["authorization"] = f"Bearer {KEY}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.request("POST", "/v1/chat/completions", body, headers)
        response = connection.getresponse()
        assert response.status == 200, response.read()
        text = response.read().decode()
        counts.append(json.loads(text.split("data: ")[-2])["usage"]["completion_tokens"])

    def processor_s(self):
        """Processor time of the process so far, seconds."""
        with open(f"/proc/{self.process.pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def turn(self, users, tokens):
        """Tokens a second, and tokens a second of processor time."""
        counts = []
        start, before = time.monotonic(), self.processor_s()
        threads = [threading.Thread(target=self.stream, args=(PROMPTS[i % len(PROMPTS)] + f" {i}", tokens, counts))
                   for i in range(users)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert counts == [tokens] * users, counts
        elapsed, spent = time.monotonic() - start, self.processor_s() - before
        return users * tokens / elapsed, users * tokens / spent

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bin", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--users", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=8, help="with each of the two first")
    options = parser.parse_args()
    speeds = {"on": [], "off": []}
    for first, second in (("on", "off"), ("off", "on")):
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
            servers = {name: Server(options, folder, name == "on") for name, folder in ((first, one), (second, other))}
            for server in servers.values():
                server.turn(options.users, 16)
            for pair in range(options.pairs):
                for name in (first, second) if pair % 2 == 0 else (second, first):
                    speeds[name].append(servers[name].turn(options.users, options.tokens))
                last = {name: speeds[name][-1] for name in speeds}
                print(f"{first} started first, pair {pair + 1}: on {last['on'][0]:.1f}, off {last['off'][0]:.1f} tokens/s; "
                      f"of processor time {last['on'][1]:.1f}, {last['off'][1]:.1f}", flush=True)
            for server in servers.values():
                server.stop()
    for what, at in (("of time", 0), ("of processor time", 1)):
        on, off = (statistics.median(turn[at] for turn in speeds[name]) for name in ("on", "off"))
        ratios = [a[at] / b[at] for a, b in zip(speeds["on"], speeds["off"])]
        halves = [statistics.median(half) for half in (ratios[:options.pairs], ratios[options.pairs:])]
        print(f"tokens a second {what}: medians on {on:.1f}, off {off:.1f}; medians of the pairs' ratios "
              f"{100 * (halves[0] - 1):+.2f} % where it started first, {100 * (halves[1] - 1):+.2f} % where second: "
              f"{100 * ((halves[0] * halves[1]) ** 0.5 - 1):+.2f} % between them")


if __name__ == "__main__":
    main()
