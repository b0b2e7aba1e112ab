"""Policy at run time: files and facts kept in memory, verdicts, questions, administration (reference/qrexec.md 15-17)."""
