"""The commands of `mend`, one module per theme; `gateway.cli.COMMANDS` says which is where."""
