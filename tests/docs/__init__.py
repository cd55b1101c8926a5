"""Every command of README and docs as typed, from a fresh checkout: bash tests/run.sh --docs"""
