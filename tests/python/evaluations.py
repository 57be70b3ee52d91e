#!/usr/bin/env python3
"""lm-eval and aiperf, as published, against the real server: do they run unchanged, and do their token sums equal ours?

- `lm_eval` with `local-completions` (log-likelihoods of prompts, the tokeniser asked of the server) on the small task of
  multiple choices in the folder `lm_eval`;
- `aiperf` with streamed chats by four users: its sums of prompt and output tokens beside those of the usage records.

    python -m venv tools && tools/bin/pip install -r tests/python/requirements-tools.txt
    python tests/python/evaluations.py --bin target/release/mintage --model FILE.gguf --tools tools/bin --tokenizer FOLDER

`--tokenizer` is a folder with a Hugging Face tokeniser: aiperf makes its prompts up with it. Exit code 0 when everything
held. Needs `httpx`.
"""

import argparse
import glob
import json
import os
import subprocess
import sys
import tempfile
import types

import soak

HERE = os.path.dirname(os.path.abspath(__file__))
REQUESTS = 24


def run(command, **more):
    environment = {**os.environ, "OPENAI_API_KEY": soak.KEY, "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=900, **more)
    if done.returncode != 0:
        sys.exit(f"{command[0]} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout


def records(options, folder):
    environment = {**os.environ, "MINTAGE_DATA_DIR": folder}
    done = subprocess.run([options.bin, "usage", "--by", "client", "--json"], env=environment, text=True,
                          capture_output=True, check=True)
    rows = json.loads(done.stdout)
    tokens = [row["tokens"] for row in rows]
    prompt = sum(t["input"] + t["cached_input"] + t["explicit_cached"] + t["cache_created"] for t in tokens)
    return sum(row["requests"] for row in rows), prompt, sum(t["output"] + t["thinking"] for t in tokens)


def name_of(url):
    import httpx
    answer = httpx.get(url + "/v1/models", headers={"authorization": f"Bearer {soak.KEY}"})
    return answer.json()["data"][0]["id"]


def evaluate(options, url, work):
    """The share of questions that the model answers rightly."""
    model = ",".join([f"model={name_of(url)}", f"base_url={url}/v1/completions", "tokenizer_backend=remote",
                      "num_concurrent=4", "max_length=1024", f"auth_token={soak.KEY}"])
    run([os.path.join(options.tools, "lm_eval"), "run", "--model", "local-completions", "--model_args", model, "--tasks",
         "mintage_capitals", "--include_path", os.path.join(HERE, "lm_eval"), "--output_path", work],
        cwd=os.path.join(HERE, "lm_eval"))
    path, = glob.glob(os.path.join(work, "**", "results*.json"), recursive=True)
    with open(path) as file:
        return json.load(file)["results"]["mintage_capitals"]["acc,none"]


def load(options, url, work):
    """Requests, prompt tokens and output tokens as aiperf was told them."""
    run([os.path.join(options.tools, "aiperf"), "profile", "--url", url, "--model", name_of(url), "--api-key", soak.KEY,
         "--endpoint-type", "chat", "--streaming", "--use-server-token-count", "--concurrency", "4", "--request-count",
         str(REQUESTS), "--isl", "64", "--osl", "32", "--tokenizer", os.path.abspath(options.tokenizer), "--artifact-dir", work,
         "--ui", "none"], cwd=work)
    with open(os.path.join(work, "profile_export.jsonl")) as lines:
        requests = [json.loads(line) for line in lines]
    assert not any(request.get("error") for request in requests), requests
    count = lambda name: sum(request["metrics"][name]["value"] for request in requests)
    return len(requests), count("usage_prompt_tokens"), count("usage_completion_tokens")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bin", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--tools", required=True, help="folder with the programs lm_eval and aiperf")
    parser.add_argument("--tokenizer", required=True)
    options = parser.parse_args()
    server = types.SimpleNamespace(bin=os.path.abspath(options.bin), model=os.path.abspath(options.model))
    with tempfile.TemporaryDirectory() as work:
        folder = os.path.join(work, "one")
        os.mkdir(folder)
        with soak.running(server, folder) as (_, url):
            accuracy = evaluate(options, url, work)
        print(f"lm-eval: {accuracy:.3f} of the capitals; {records(options, folder)[0]} requests recorded", flush=True)
        assert accuracy > 0.5, "worse than a model of this size is"
        folder = os.path.join(work, "two")
        os.mkdir(folder)
        with soak.running(server, folder) as (_, url):
            counted = load(options, url, work)
        ours = records(options, folder)
        print("aiperf: {} requests, {} prompt tokens, {} output tokens".format(*counted))
        assert counted == ours, f"the records say {ours}"


if __name__ == "__main__":
    main()
