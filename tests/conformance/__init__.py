"""
What any router of prefill and decode servers must do, seen from its client and from its servers.

`make conformance ROUTER='vllm-router --port {port} --prefill {prefill} --decode {decode} ...'` runs it against a
router that is started by a command line; without one, against ours. docs/conformance.md says what is asked.
"""
