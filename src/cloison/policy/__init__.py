"""qrexec policy: rules and facts and a request in, a decision out, with the rule that decided.

Pure: files come through a `Reader`, facts as what `internal.GetSystemInfo` answers; who asks the person, starts qubes and
connects calls is somebody else. First match wins, no match denies, any error denies (reference/qrexec.md 12 to 14, 18).
"""
