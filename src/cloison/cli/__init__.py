"""The command-line tools: a module a command, each with `parser()`, `run(args, connection)` and `main(argv)`."""
