#!/usr/bin/env python3
"""lm-eval and guidellm, as published, against the real server: do they run unchanged, and do their token sums equal ours?

- `lm_eval` with `local-completions` (log-likelihoods of prompts, the tokeniser asked of the server) on the small task of
  multiple choices in the folder `lm_eval`;
- `guidellm` with streamed chats by four users: its sums of prompt and output tokens beside those of the usage records.

    python -m venv tools && tools/bin/pip install guidellm 'lm_eval[api]'
    python tests/python/evaluations.py --bin target/release/mintage --model FILE.gguf --tools tools/bin --tokenizer FOLDER

They want hundreds of packages, so CI does not install them. `--tokenizer` is a folder with a Hugging Face tokeniser:
guidellm makes its prompts up with it. Exit code 0 when everything held. Needs `httpx`.
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
    environment = {**os.environ, "OPENAI_API_KEY": soak.KEY, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
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
                      "num_concurrent=4", "max_length=1024"])
    run([os.path.join(options.tools, "lm_eval"), "run", "--model", "local-completions", "--model_args", model, "--tasks",
         "mintage_capitals", "--include_path", os.path.join(HERE, "lm_eval"), "--output_path", work],
        cwd=os.path.join(HERE, "lm_eval"))
    path, = glob.glob(os.path.join(work, "**", "results*.json"), recursive=True)
    with open(path) as file:
        return json.load(file)["results"]["mintage_capitals"]["acc,none"]


def load(options, url, work):
    """Requests, prompt tokens and output tokens as guidellm counted them."""
    path = os.path.join(work, "guidellm.json")
    backend = f"kind=openai_http,target={url},model={name_of(url)},api_key={soak.KEY}"
    run([os.path.join(options.tools, "guidellm"), "run", "--backend", backend, "--profile", "kind=concurrent,streams=4",
         "--constraint", f"kind=max_requests,count={REQUESTS}", "--tokenizer", f"kind=huggingface_auto,model={options.tokenizer}",
         "--data", "kind=synthetic_text,prompt_tokens=64,output_tokens=32", "--output", f"kind=json,path={path}",
         "--disable-console-interactive"])
    with open(path) as file:
        requests = json.load(file)["benchmarks"][0]["requests"]
    assert not requests.get("errored"), requests["errored"][0]["info"]["error"]
    done = requests["successful"]
    return len(done), sum(r["prompt_tokens"] for r in done), sum(r["output_tokens"] for r in done)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bin", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--tools", required=True, help="folder with the programs lm_eval and guidellm")
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
        print("guidellm: {} requests, {} prompt tokens, {} output tokens".format(*counted))
        assert counted == ours, f"the records say {ours}"


if __name__ == "__main__":
    main()
