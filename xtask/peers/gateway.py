"""Requests a second of a gateway alone, beside those of `litellm[proxy]` in front of its own mock answers, in one run.

    python gateway.py --gateway target/release/examples/gateway --model MODEL.gguf [--seconds 5] [--connections 64]

Needs `pip install 'litellm[proxy]'` for the peer, which runs without any database here: no durable record is kept. Ours
is the example `gateway` of the server crate, with keys, limits and a durable ledger. Client and server share the machine.
"""

import argparse
import http.client
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time

CONFIG = """
model_list:
  - model_name: scripted
    litellm_params: {model: openai/scripted, api_key: none, mock_response: "Reverse a string in Python"}
general_settings: {master_key: sk-bench-key}
litellm_settings: {telemetry: false}
"""
BODY = b'{"model":"scripted","max_tokens":8,"messages":[{"role":"user","content":"Reverse a string in Python, please."}]}'
START_S = 120


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def worker(port, end, latencies):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"authorization": "Bearer sk-bench-key", "content-type": "application/json"}
    while time.monotonic() < end:
        start = time.monotonic()
        connection.request("POST", "/v1/chat/completions", BODY, headers)
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise SystemExit(f"the peer answers {response.status}: {body[:200]}")
        latencies.append(time.monotonic() - start)


def peer(options):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "config.yaml")
        with open(path, "w") as file:
            file.write(CONFIG)
        port = free_port()
        command = [options.litellm, "--config", path, "--host", "127.0.0.1", "--port", str(port)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            give_up = time.monotonic() + START_S
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    if process.poll() is not None or time.monotonic() > give_up:
                        raise SystemExit("the peer does not start")
                    time.sleep(0.5)
            worker(port, time.monotonic() + 2, [])
            latencies = []
            end = time.monotonic() + options.seconds
            threads = [threading.Thread(target=worker, args=(port, end, latencies)) for _ in range(options.connections)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            process.terminate()
            process.wait(20)
    latencies.sort()
    at = lambda part: 1000 * latencies[min(int(len(latencies) * part), len(latencies) - 1)]
    rate = len(latencies) / options.seconds
    print(f"litellm   : {rate:6.0f} requests/s, p50 {at(0.5):.2f} ms, p99 {at(0.99):.2f} ms, no durable record")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gateway", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--litellm", default=os.path.join(os.path.dirname(sys.executable), "litellm"))
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--rates", nargs="*", default=["1000", "3000", "5000", "10000"], help="requests due a second, ours only")
    options = parser.parse_args()
    load = [str(options.seconds), str(options.connections), *options.rates]
    subprocess.run([options.gateway, "bench", options.model, *load], check=True)
    peer(options)


if __name__ == "__main__":
    main()
