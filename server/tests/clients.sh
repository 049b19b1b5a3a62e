#!/usr/bin/env bash
# Fetches the clients of gates 137 and 194 from PyPI and npm, into target/clients. Does nothing where they are there already.
set -euo pipefail
cd "$(dirname "$0")/../.."
if ! target/clients/bin/python -c 'import openai, anthropic, ollama, langchain_openai, llm, schemathesis' 2>/dev/null; then
  echo "fetching the clients openai, anthropic, ollama, langchain-openai, llm and schemathesis from PyPI"
  python3 -m venv target/clients
  target/clients/bin/pip install --quiet --disable-pip-version-check openai anthropic ollama langchain-openai llm schemathesis
fi
if [ ! -d target/clients/node/node_modules/openai ]; then
  echo "fetching the client openai from npm"
  mkdir -p target/clients/node
  npm install --silent --no-audit --no-fund --prefix target/clients/node openai >/dev/null
fi
