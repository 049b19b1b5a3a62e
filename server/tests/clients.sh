#!/usr/bin/env bash
# Fetches the clients of gate 137 from PyPI, into target/clients. Does nothing where they are there already.
set -euo pipefail
cd "$(dirname "$0")/../.."
target/clients/bin/python -c 'import openai, anthropic, ollama, langchain_openai' 2>/dev/null && exit
echo "fetching the clients openai, anthropic, ollama and langchain-openai from PyPI"
python3 -m venv target/clients
target/clients/bin/pip install --quiet --disable-pip-version-check openai anthropic ollama langchain-openai
