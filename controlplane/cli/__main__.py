"""`python -m controlplane.cli`: what `prfaas up` starts its processes with."""

from controlplane.cli import main

main(prog_name="prfaas")
